#!/bin/sh
# check_tpo.sh [SEED...] - what train_dpo learns from preferences with gold answers, --loss-type tpo and tpo-l, beside losses
# that do not use them: a table on standard output, in a few minutes.
#
# The task is that of check_dpo.sh: completions of six letters, of which those with more of the letter a are better. A row has
# four of them with different numbers: the gold answer has the most, the chosen completion more than the rejected one. Figures
# are win rates in percent against the samples of the SFT model that every run starts from, where ties count half, by the number
# of steps: mean (least to greatest) of the seeds given (1 to 5 if none). `gold as chosen`: pairs of the gold answer and the
# rejected completion. Fails if 80 steps of tpo do not win more often than those of sigmoid on the same rows.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 1 2 3 4 5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s train_sft train_dpo generate data/make_prefs data/make_shard >&2

. dev/win_rate.sh

for seed; do
    # A line of make_prefs has the completions between every second pair of quotes.
    prefs --count 400 --seed "$seed" --format ranking >"$work/rows"
    awk -F'"' '{
        printf "{\"prompt\":\"%s\",\"chosen\":\"%s\",\"rejected\":\"%s\",\"reference\":\"%s\"}\n", $4, $10, $12, $8
    }' "$work/rows" | shard triples
    awk -F'"' '{ printf "{\"prompt\":\"%s\",\"chosen\":\"%s\",\"rejected\":\"%s\"}\n", $4, $8, $12 }' "$work/rows" |
        shard gold
    sft_model "$seed"
    while IFS='|' read -r name data options; do
        for steps in 10 20 40 80; do
            # shellcheck disable=SC2086
            quiet ./train_dpo -c "$work/sft.bin" --seed "$seed" -l 1e-4 --warmup-steps 10 --per-device-train-batch-size 16 \
                -x $steps -i "$work/$data.shard" -o "$work/out.bin" $options
            echo "$name|$steps|$(win_rate "$work/out.bin")"
        done
    done <<LOSSES
sigmoid|triples|--loss-type sigmoid
sigmoid, gold as chosen|gold|--loss-type sigmoid
sigmoid,sft|triples|--loss-type sigmoid,sft
sigmoid,sft, gold as chosen|gold|--loss-type sigmoid,sft
tpo|triples|--loss-type tpo
tpo --beta 0.1|triples|--loss-type tpo --beta 0.1
tpo --beta 0.1 --tpo-alpha 0|triples|--loss-type tpo --beta 0.1 --tpo-alpha 0
tpo-l --beta 2|triples|--loss-type tpo-l --beta 2
LOSSES
done | awk -F'|' '{
    x = $3; sum[$1, $2] += x; n[$1, $2]++
    if (n[$1, $2] == 1 || x < low[$1, $2]) low[$1, $2] = x
    if (n[$1, $2] == 1 || x > high[$1, $2]) high[$1, $2] = x
    if (!($1 in seen)) order[++names] = $1
    seen[$1] = 1
} END {
    print "| `--loss-type` | 10 steps | 20 | 40 | 80 |\n|---|---|---|---|---|"
    for (k = 1; k <= names; k++) {
        printf "| %s |", order[k]
        for (steps = 10; steps <= 80; steps *= 2) {
            i = order[k] SUBSEP steps
            printf " %.0f (%.0f to %.0f) |", sum[i] / n[i], low[i], high[i]
        }
        print ""
    }
    exit sum["tpo" SUBSEP 80] <= sum["sigmoid" SUBSEP 80]
}'
