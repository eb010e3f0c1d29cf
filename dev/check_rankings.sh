#!/bin/sh
# check_rankings.sh [SEED...] - what train_rm learns from rankings of four completions and from pairs of the same rankings, on
# a known rule whose order is drawn from a Plackett-Luce model: two tables on standard output, in a few minutes.
#
#   one pair        a random pair of each ranking
#   all pairs       its six pairs as rows of their own, of which six times as many make a step
#   pairwise        the ranking, --loss-type pairwise
#   plackett_luce   the ranking, --loss-type plackett_luce
#
#   1  accuracy on 2000 pairs that follow the rule exactly, by the number of rankings, after 150 steps of 16 rankings; percent,
#      mean (least to greatest) of the seeds given (1 to 5 if none); fails if a ranking teaches less than one pair of it
#   2  the same with 600 rankings, by the number of steps, and the tokens that a step processes
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 1 2 3 4 5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s train_rm evaluate data/make_prefs data/make_shard >&2
rule="--rule char=a:1,length:-0.5"
shard() { data/make_shard --quiet -i - -o "$work/$1"; }

# Makes the shards of COUNT rankings of SEED. A line of make_prefs has the completions between every second pair of quotes.
rankings() { # COUNT SEED
    data/make_prefs $rule --format ranking --temperature 1 --count "$1" --seed "$2" 2>/dev/null >"$work/rows"
    shard pairwise <"$work/rows"
    cp "$work/pairwise" "$work/plackett_luce"
    awk -F'"' -v seed="$2" 'BEGIN { srand(seed) } {
        i = int(4 * rand()); j = (i + 1 + int(3 * rand())) % 4
        if (i > j) { k = i; i = j; j = k }
        printf "{\"prompt\":\"%s\",\"chosen\":\"%s\",\"rejected\":\"%s\"}\n", $4, $(8 + 2 * i), $(8 + 2 * j)
    }' "$work/rows" | shard one
    awk -F'"' '{ for (i = 0; i < 4; i++) for (j = i + 1; j < 4; j++)
        printf "{\"prompt\":\"%s\",\"chosen\":\"%s\",\"rejected\":\"%s\"}\n", $4, $(8 + 2 * i), $(8 + 2 * j)
    }' "$work/rows" | shard all
}

# Trains on $work/DATA and prints the accuracy on the held-out pairs. The tokens of all steps are left in $work/tokens.
accuracy() { # DATA SEED STEPS
    case $1 in
    all) options="--per-device-train-batch-size 96" ;;
    one) options="--per-device-train-batch-size 16" ;;
    *) options="--per-device-train-batch-size 16 --loss-type $1" ;;
    esac
    rm -f "$work/run.jsonl"
    ./train_rm --layers 2 --width 32 --heads 2 --context 64 -i "$work/$1" -o "$work/rm" --learning-rate 2e-3 \
        --warmup-steps 10 --max-steps "$3" --seed "$2" --normalize none $options --metrics "$work/run.jsonl" 2>"$work/log" ||
        { cat "$work/log" >&2; exit 1; }
    sed -n 's/.*"num_tokens": *\([0-9]*\).*/\1/p' "$work/run.jsonl" | tail -n 1 >"$work/tokens"
    ./evaluate --reward-model "$work/rm" -i "$work/held" 2>/dev/null | sed -n 's/.*"accuracy":\([0-9.eE+-]*\).*/\1/p'
}

# Prints a row of a table from lines of KEY DATA ACCURACY.
rows() {
    awk '{
        x = 100 * $3; sum[$1, $2] += x; n[$1, $2]++
        if (n[$1, $2] == 1 || x < low[$1, $2]) low[$1, $2] = x
        if (n[$1, $2] == 1 || x > high[$1, $2]) high[$1, $2] = x
        if (!($1 in seen)) order[++keys] = $1
        seen[$1] = 1
    } END {
        split("one all pairwise plackett_luce", data)
        for (k = 1; k <= keys; k++) {
            printf "| %8d |", order[k]
            for (d = 1; d <= 4; d++) {
                i = order[k] SUBSEP data[d]
                printf " %.1f (%.1f to %.1f) |", sum[i] / n[i], low[i], high[i]
            }
            print ""
            least = sum[order[k], "one"]
            bad = bad || sum[order[k], "pairwise"] < least || sum[order[k], "plackett_luce"] < least
        }
        exit bad
    }'
}

data/make_prefs $rule --count 2000 --split heldout 2>/dev/null | shard held
status=0
for count in 50 150 600 2400; do
    for seed; do
        rankings $count "$seed"
        for data in one all pairwise plackett_luce; do
            right=$(accuracy $data "$seed" 150)
            echo $count $data "$right"
        done
    done
done >"$work/table"
echo "| rankings | one pair of each | all pairs | pairwise | plackett_luce |"
echo "|---|---|---|---|---|"
rows <"$work/table" || status=1
for steps in 10 20 40 80 160; do
    for seed; do
        rankings 600 "$seed"
        for data in one all pairwise plackett_luce; do
            right=$(accuracy $data "$seed" $steps)
            echo $steps $data "$right"
            echo $data $steps "$(cat "$work/tokens")" >>"$work/fed"
        done
    done
done >"$work/table"
echo
echo "| steps | one pair of each | all pairs | pairwise | plackett_luce |"
echo "|---|---|---|---|---|"
rows <"$work/table" || status=1
awk '{ sum[$1] += $3; n[$1] += $2 } END {
    printf "tokens of a step, each completion with a prompt of its own: one pair %.0f, all pairs %.0f, rankings %.0f\n",
        sum["one"] / n["one"], sum["all"] / n["all"], sum["pairwise"] / n["pairwise"] }' "$work/fed"
exit $status
