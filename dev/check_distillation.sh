#!/bin/sh
# check_distillation.sh [SEED...] - what a student learns from a teacher, from rewards, and from data: a table on standard
# output, in some minutes.
#
# The task is that of README.md's tour, sorting four digits. The teacher has four layers, the student one; it is fine-tuned for
# 150 steps and then trained for 100 steps (or $STEPS) on as many answers (256 per step) in each way. The figures are means and
# standard deviations over the seeds (1 to 5 if none is given), in percent of the 200 held-out problems: greedy accuracy, and
# right samples. Fails if the exact on-policy divergence does not teach more than GRPO without a teacher.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 1 2 3 4 5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s train_sft train_grpo evaluate data/make_tasks >&2
tasks() { data/make_tasks --task sort --items 4 --largest 9 "$@" 2>/dev/null; }
quiet() { "$@" >"$work/log" 2>&1 || { tail -n 3 "$work/log" >&2; exit 1; }; }
tuned() { # LAYERS WIDTH STEPS NAME
    quiet ./train_sft --layers "$1" --width "$2" --heads 4 --context 32 -i "$work/sft.shard" -o "$work/$4" -x "$3" \
        --batch-tokens 2048 -l 2e-3 --warmup-steps 10
}
figures() { # NAME MODEL: adds a row
    quiet ./evaluate -c "$2" -i "$work/heldout.shard" -g 12 --num-samples 8 --slots 256
    sed -n "s/.*\"accuracy\":\([-0-9.e]*\).*\"pass@1\":\([-0-9.e]*\).*/$1|\1 \2/p" "$work/log" >>"$work/rows"
}

tasks --count 3000 --seed 1 --format chat -o "$work/sft.shard"
tasks --count 3000 --seed 2 -o "$work/tasks.shard"
tasks --count 200 --seed 3 --split heldout -o "$work/heldout.shard"
tuned 4 128 250 teacher
tuned 1 64 150 student
on="./train_grpo -i $work/tasks.shard -p 32 -G 8 -g 12 --slots 256 --sample-count 0"
off="./train_sft -i $work/sft.shard --batch-tokens 5376"
teacher="--teacher $work/teacher"
figures teacher "$work/teacher"
figures before "$work/student"
for seed; do
    while IFS='|' read -r name command; do
        # shellcheck disable=SC2086
        quiet $command -c "$work/student" -o "$work/out" -x "${STEPS:-100}" -l 7e-4 --warmup-steps 5 --adam-beta2 0.99 \
            --seed "$seed"
        figures "$name" "$work/out"
    done <<METHODS
GRPO, no teacher|$on
on-policy, sampled|$on $teacher --reward none --distill-estimator sampled
on-policy, exact|$on $teacher --reward none
train_sft on the data|$off
off-policy, forward KL|$off $teacher
METHODS
done
awk -F'|' '{
        split($2, x, " ")
        if (!($1 in count)) order[++names] = $1
        k = ++count[$1]
        for (f = 1; f <= 2; f++) value[$1, f, k] = 100 * x[f]
    } END {
        print "| | greedy accuracy | right samples |\n|---|---|---|"
        for (i = 1; i <= names; i++) {
            m = order[i]
            printf "| %s |", m
            for (f = 1; f <= 2; f++) {
                sum = squares = 0
                for (k = 1; k <= count[m]; k++) sum += value[m, f, k]
                mean[m, f] = sum / count[m]
                for (k = 1; k <= count[m]; k++) squares += (value[m, f, k] - mean[m, f]) ^ 2
                if (count[m] > 1) printf " %.1f ± %.1f |", mean[m, f], sqrt(squares / (count[m] - 1))
                else printf " %.1f |", mean[m, f]
            }
            print ""
        }
        exit mean["on-policy, exact", 2] <= mean["GRPO, no teacher", 2]
    }' "$work/rows"
