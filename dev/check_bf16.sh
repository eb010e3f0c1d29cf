#!/bin/sh
# check_bf16.sh [SEED...] - whether training in bfloat16 follows training in float32, on the demo's task (sorting six digits): ten
# minutes with the seeds 1, 2 and 3.
#
# For each seed and dtype, 500 steps of train_sft from random weights; then, from a model that is trained for 75 steps in float32,
# 200 steps of train_grpo. Prints the loss and the reward in windows of steps: the mean over the seeds in both dtypes, their
# difference, and the standard deviation over the seeds in float32. Exits with 1 if the mean difference over the windows, without
# its sign, is larger than the mean of that deviation.
set -eu
cd "$(dirname "$0")/.."
make -s train_sft train_grpo data/make_tasks >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- 1 2 3
run() { "$@" --logging-steps 1000 2>"$work/log" || { tail -n 1 "$work/log" >&2; exit 1; }; }
sft() { # SEED DTYPE STEPS OUTPUT
    run ./train_sft --layers 4 --width 128 --heads 4 --context 32 -i "$work/sft.shard" -o "$4" --max-steps "$3" --batch-tokens 4096 \
        --learning-rate 2e-3 --warmup-steps 20 --seed "$1" --dtype "$2" --metrics "$work/sft-$2-$1.jsonl"
}
tasks() { data/make_tasks --task sort --items 6 --largest 9 "$@" 2>/dev/null; }
tasks --count 6000 --seed 11 --format chat -o "$work/sft.shard"
tasks --count 8000 --seed 12 -o "$work/train.shard"
for seed; do
    sft "$seed" float32 75 "$work/start.bin"
    for dtype in float32 bf16; do
        sft "$seed" "$dtype" 500 "$work/sft.bin"
        run ./train_grpo -c "$work/start.bin" -i "$work/train.shard" -o "$work/grpo.bin" --num-prompts 32 --num-generations 16 \
            --max-completion-length 14 --max-steps 200 --temperature 0.6 --learning-rate 4e-4 --warmup-steps 20 --adam-beta2 0.99 \
            --micro-tokens 8192 --slots 512 --seed "$seed" --dtype "$dtype" --metrics "$work/grpo-$dtype-$seed.jsonl"
    done
done
# compare NAME METRIC WINDOW: a table, a line for each window of steps.
compare() {
    for dtype in float32 bf16; do
        for seed in $seeds; do
            sed -n "s/^{\"step\":\([0-9]*\),.*\"$2\":\([-0-9.e+]*\),.*/$dtype $seed \1 \2/p" "$work/$1-$dtype-$seed.jsonl"
        done
    done | awk -v name="$1" -v metric="$2" -v window="$3" -v seeds="$seeds" '
        { w = int(($3 - 1) / window); if (w > last) last = w; sum[$1, w] += $4; n[$1, w]++; one[$2, w] += $1 == "float32" ? $4 : 0 }
        END {
          count = split(seeds, seed)
          printf "%-6s %-12s %9s %9s %11s %16s\n", name, "steps", "float32", "bf16", "difference", "deviation, seeds"
          for (w = 0; w <= last; w++) {
              a = sum["float32", w] / n["float32", w]; b = sum["bf16", w] / n["bf16", w]; square = 0
              for (s = 1; s <= count; s++) { d = one[seed[s], w] * count / n["float32", w] - a; square += d * d }
              deviation = count > 1 ? sqrt(square / (count - 1)) : 0
              gap += (b > a ? b - a : a - b) / (last + 1); noise += deviation / (last + 1)
              printf "%-6s %-12s %9.4f %9.4f %+11.4f %16.4f\n", metric, (w * window + 1) "-" ((w + 1) * window), a, b, b - a, deviation
          }
          printf "%-6s %-12s %31.4f %16.4f\n", "mean", "", gap, noise
          exit count > 1 && gap > noise
        }'
}
seeds="$*"
status=0
compare sft loss 50 || status=1
compare grpo reward 25 || status=1
exit $status
