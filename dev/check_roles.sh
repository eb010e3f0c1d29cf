#!/bin/sh
# check_roles.sh [SEED...] - what hierarchical_grpo learns from proposers and solvers (dev/propose.py), beside dapo: a table on
# standard output, in some minutes.
#
# A small model is fine-tuned on both parts, and stopped while it makes many mistakes. Each method then trains it by the
# rewards alone: dapo is train_grpo's default, unscaled the same with --scale-rewards none, which like hierarchical_grpo does
# not divide by a deviation. Both compare all completions of a prompt, whatever their part. Figures are means and standard
# deviations over the seeds (1 to 5 if none is given): the share of right samples of 2048 random sums, its difference from
# that of dapo with the same seed, and the mean reward of the proposers in the last ten generations. Fails if hierarchical_grpo
# does not solve more sums than the model that it began with. Environment:
# SFT_STEPS (150), the steps of the fine-tuning, and STEPS (150), those of each method.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 1 2 3 4 5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s train_sft train_grpo evaluate data/make_shard >&2
quiet() { "$@" >"$work/log" 2>&1 || { tail -n 3 "$work/log" >&2; exit 1; }; }

solved() { # MODEL: prints the share of right samples
    quiet ./evaluate -c "$1" -i "$work/tasks" -g 64 --num-samples 32 --slots 256 --tool-cmd 'python3 dev/propose.py solve'
    sed -n 's/.*"solver":{[^}]*"reward":\([-0-9.e]*\).*/\1/p' "$work/log"
}

python3 dev/propose.py demos 4000 >"$work/demos.jsonl"
data/make_shard --quiet -i "$work/demos.jsonl" -o "$work/demos" --template chatml
yes '{"prompt":"Sums: ","answer":"","task":"game"}' | head -n 64 |
    data/make_shard --quiet -i - -o "$work/tasks" --template chatml 2>/dev/null
for seed; do
    quiet ./train_sft --layers 2 --width 64 --heads 2 --context 96 -i "$work/demos" -o "$work/sft" -x "${SFT_STEPS:-150}" \
        --batch-tokens 2048 -l 5e-3 --warmup-steps 10 --seed "$seed"
    right=$(solved "$work/sft")
    echo "start $seed $right 0"
    for method in dapo unscaled hierarchical_grpo; do
        case $method in
        dapo) options= ;;
        unscaled) options="--scale-rewards none" ;;
        *) options="--advantage-estimator hierarchical_grpo --episode-agents solver" ;;
        esac
        rm -f "$work/m.jsonl"
        # shellcheck disable=SC2086
        quiet ./train_grpo -c "$work/sft" -i "$work/tasks" -o "$work/out" -p 8 -G 16 -g 64 -x "${STEPS:-150}" -l 1e-3 \
            --slots 128 --warmup-steps 5 --adam-beta2 0.99 --sample-count 0 --seed "$seed" --reward none \
            --tool-cmd 'python3 dev/propose.py' --metrics "$work/m.jsonl" $options
        proposers=$(sed -n 's/^{"step".*"role\/proposer\/reward":\([-0-9.e]*\).*/\1/p' "$work/m.jsonl" | tail -n 10 |
            awk '{ x += $1 } END { print x / NR }')
        right=$(solved "$work/out")
        echo "$method $seed $right $proposers"
    done
done >"$work/rows"
awk '
    function moments(a, n, form, i, sum, squares) {
        for (i = 1; i <= n; i++) sum += a[i]
        for (i = 1; i <= n; i++) squares += (a[i] - sum / n) ^ 2
        return sprintf(form " ± " form, sum / n, n > 1 ? sqrt(squares / (n - 1)) : 0)
    }
    { k = ++count[$1]; right[$1, k] = 100 * $3; reward[$1, k] = $4 }
    END {
        print "| method | solved % | minus dapo | reward of proposers |\n|---|---|---|---|"
        split("start dapo unscaled hierarchical_grpo", name)
        for (m = 1; m <= 4; m++) {
            for (i = 1; i <= k; i++) { a[i] = right[name[m], i]; b[i] = a[i] - right["dapo", i]; c[i] = reward[name[m], i] }
            printf "| %s | %s | %s | %s |\n", name[m], moments(a, k, "%.1f"), moments(b, k, "%.1f"),
                (m == 1 ? "-" : moments(c, k, "%.2f"))
            for (i = 1; i <= k; i++) total[m] += a[i]
        }
        exit total[4] <= total[1]
    }' "$work/rows"
