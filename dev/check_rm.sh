#!/bin/sh
# check_rm.sh [SEED...] - end-to-end check of what reward models learn: four tables on standard output, in about two minutes.
#
#   1  a known rule, over three seeds: held-out accuracy, margin, calibration     (fails if the accuracy is 90 % or less)
#   2  accuracy by the fraction of flipped labels: on correct labels, and on labels as noisy as those of the training data,
#      where no model can exceed 1 - rate
#   3  accuracy by the number of pairs
#   4  sums worked out step by step: outcome and process reward models choose among samples of a policy that is wrong more
#      often than right; percent, mean (least to greatest) of the seeds given (1, 2 and 3 if none)
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s train_sft train_rm evaluate data/make_prefs data/make_shard >&2
rule="--rule char=a:1,length:-0.5"
status=0

shard() { # NAME OPTIONS OF make_prefs
    name=$1
    shift
    data/make_prefs "$@" 2>/dev/null | data/make_shard --quiet -i - -o "$work/$name"
}

# Trains $work/rm on $work/train.
train() { # SEED OPTIONS
    seed=$1
    shift
    ./train_rm --layers 2 --width 32 --heads 2 --context 64 -i "$work/train" -o "$work/rm" \
        --per-device-train-batch-size 32 -l 3e-3 --warmup-steps 20 --seed "$seed" \
        "$@" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
}

# Prints a value of evaluate's JSON on a shard.
figure() { # KEY SHARD [OPTIONS]
    key=$1 name=$2
    shift 2
    ./evaluate "$@" -i "$work/$name" 2>/dev/null | sed -n "s/.*\"$key\":\([0-9.eE+-]*\).*/\1/p"
}

echo "| seed | held-out accuracy | margin | log loss | calibration error |"
echo "|------|-------------------|--------|----------|-------------------|"
shard held $rule --count 1000 --split heldout
shard train $rule --count 2000
for seed in 1 2 3; do
    train $seed --num-train-epochs 3
    accuracy=$(figure accuracy held --reward-model "$work/rm")
    echo "$seed $accuracy $(figure margin held --reward-model "$work/rm")" \
        "$(figure log_loss held --reward-model "$work/rm")" "$(figure ece held --reward-model "$work/rm")" |
        awk '{ printf "| %4d | %15.1f %% | %6.2f | %8.3f | %15.1f %% |\n", $1, 100 * $2, $3, $4, 100 * $5 }'
    [ "$(echo "$accuracy > 0.9" | awk '{ print ($1 > $3) }')" = 1 ] || status=1
done

echo
echo "| labels flipped       | accuracy, true labels | accuracy, noisy labels | maximum  |"
echo "|----------------------|-----------------------|------------------------|----------|"
for rate in 0 0.1 0.2 0.3 0.4 0.5; do
    shard train $rule --count 600 --flip $rate
    shard noisy $rule --count 1000 --flip $rate --split heldout --seed 7
    for seed in 1 2 3; do
        train $seed --num-train-epochs 6
        echo "$(figure accuracy held --reward-model "$work/rm") $(figure accuracy noisy --reward-model "$work/rm")"
    done | awk -v f=$rate '{ a += $1 / 3; b += $2 / 3 } END {
        printf "| %18.0f %% | %19.1f %% | %20.1f %% | %6.1f %% |\n", 100 * f, 100 * a, 100 * b, 100 * (1 - f) }'
done

echo
echo "|  pairs | held-out accuracy |"
echo "|--------|-------------------|"
for pairs in 20 60 200 600 2000; do
    shard train $rule --count $pairs
    for seed in 1 2 3; do
        train $seed -x 200
        figure accuracy held --reward-model "$work/rm"
    done | awk -v n=$pairs '{ a += $1 / 3 } END { printf "| %6d | %15.1f %% |\n", n, 100 * a }'
done

echo
sums="--rule sum --digits 1 --terms 3"
shard chat $sums --format chat --steps --count 3000
shard answers $sums --format unpaired --steps --count 20000
shard steps $sums --format step --count 20000
shard tasks $sums --format prompt --count 200 --split heldout
value() { sed -n "s/.*\"$1\":\([0-9.eE+-]*\).*/\1/p" "$work/$2.json"; }
[ $# -gt 0 ] || set -- 1 2 3
for seed; do
    ./train_sft --layers 2 --width 64 --heads 2 --context 48 -i "$work/chat" -o "$work/sft" --max-steps 300 --batch-tokens 2048 \
        --learning-rate 5e-3 --warmup-steps 20 --seed "$seed" 2>/dev/null
    for kind in orm:answers prm:steps; do
        ./train_rm --kind "${kind%:*}" -c "$work/sft" -i "$work/${kind#*:}" -o "$work/${kind%:*}" --max-steps 3000 \
            --per-device-train-batch-size 32 --learning-rate 1e-3 --warmup-steps 20 --seed "$seed" 2>/dev/null
        ./evaluate -c "$work/sft" --reward-model "$work/${kind%:*}" -i "$work/tasks" --num-samples 16 -g 24 2>/dev/null \
            >"$work/${kind%:*}.json"
    done
    for samples in 1 2 4 8 16; do
        echo $samples "$(value pass@$samples orm)" "$(value majority@$samples orm)" "$(value best@$samples orm)" \
            "$(value weighted@$samples orm)" "$(value best@$samples prm)" "$(value weighted@$samples prm)"
    done
done >"$work/chosen"
echo "| samples | any right     | majority      | best, outcome | weighted, outcome | best, process | weighted, process |"
echo "|---------|---------------|---------------|---------------|-------------------|---------------|-------------------|"
awk '{
    for (i = 2; i <= 7; i++) {
        sum[$1, i] += 100 * $i
        if (!($1 in seeds) || 100 * $i < low[$1, i]) low[$1, i] = 100 * $i
        if (!($1 in seeds) || 100 * $i > high[$1, i]) high[$1, i] = 100 * $i
    }
    seeds[$1]++
} END {
    split("13 13 13 17 13 17", width)
    for (n = 1; n <= 16; n *= 2) {
        printf "| %7d |", n
        for (i = 2; i <= 7; i++)
            printf " %-*s |", width[i - 1], sprintf("%.0f (%.0f to %.0f)", sum[n, i] / seeds[n], low[n, i], high[n, i])
        print ""
    }
}' "$work/chosen"
exit $status
