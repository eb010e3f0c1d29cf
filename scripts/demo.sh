#!/bin/sh
# demo.sh [SEED] - demonstration: SFT from random weights, then GRPO, on the CPU, in a few minutes.
#
# The task is to sort six digits. A transformer of 0.8 M parameters starts from random weights and is trained on worked
# examples (train_sft), but stopped while it still makes many mistakes. Then it trains on problems whose answers are only
# verified, not shown (train_grpo). Held-out problems are in neither set: data/make_tasks splits by a hash. All output is
# written to demo/ (or $DEMO_OUT): the models, the metrics and the report demo/report.html.
#
#   DEMO_REWARD=random scripts/demo.sh     control experiment: with random rewards nothing is learned
set -eu
cd "$(dirname "$0")/.."
seed=${1:-1}
out=${DEMO_OUT:-demo}
mkdir -p "$out"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"
say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
tasks() { ./data/make_tasks --task sort --items 6 --largest 9 "$@"; }

say "1. Data: problems with demonstrations, problems with answers to check, held-out problems"
tasks --count 6000 --seed $((seed * 10 + 1)) --format chat -o "$out/sft.shard"
tasks --count 8000 --seed $((seed * 10 + 2)) -o "$out/train.shard"
tasks --count 300 --seed $((seed * 10 + 3)) --split heldout -o "$out/heldout.shard"

say "2. Supervised fine-tuning, from random weights"
./train_sft --layers 4 --width 128 --heads 4 --context 32 -i "$out/sft.shard" -o "$out/sft.bin" \
    --max-steps 75 --batch-tokens 4096 --learning-rate 2e-3 --warmup-steps 20 --seed "$seed" \
    --logging-steps 20 --metrics "$out/sft.jsonl"

say "3. GRPO with verifiable rewards"
./train_grpo -c "$out/sft.bin" -i "$out/train.shard" -j "$out/heldout.shard" -o "$out/grpo.bin" \
    --num-prompts 32 --num-generations 16 --max-completion-length 14 --max-steps 600 --reward "${DEMO_REWARD:-verify}" \
    --temperature 0.6 --learning-rate 4e-4 --warmup-steps 20 --adam-beta2 0.99 --micro-tokens 8192 --slots 512 --seed "$seed" \
    --eval-steps 100 --logging-steps 50 --metrics "$out/grpo.jsonl" --report "$out/report.html"

say "4. Held-out problems: greedy accuracy, pass@k, majority@k"
for model in sft grpo; do
    ./evaluate -c "$out/$model.bin" -i "$out/heldout.shard" --num-samples 8 --max-new-tokens 14 >"$out/$model.json"
done
say "The report is in $out/report.html; try:  ./generate -c $out/grpo.bin 'sort 3 1 4 1 5 9:'"
