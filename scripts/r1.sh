#!/bin/sh
# r1.sh [SEED] - the recipe of DeepSeek-R1 (arXiv 2501.12948) with toys: a cold start on a few long solutions, reinforcement
# learning with verified rewards, rejection sampling into training data for the base, reinforcement learning again, and
# distillation into a smaller model.
#
#   cold start      SFT of the base on COLD demonstrations (the paper: thousands of long chains of thought)
#   first RL        GRPO, rewards: the answer, and the format (there <think>, here digits and blanks alone)
#   rejection       samples of that model, right ones, to SFT of the *base* (the paper: 600k reasoning rows, 200k others)
#   second RL       GRPO from there
#   distilled       a model of a quarter of the size, SFT on the last model's right samples; no RL
#
# Control: the first RL with rewards drawn at random.
#
# Environment, beside that of scripts/loop.sh: COLD (200), and RL_STEPS (100), the steps of GRPO in each of its runs.
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${COLD:=200}" "${RL_STEPS:=100}"
tasks "$out/cold.jsonl" $((seed * 100 + 5)) "$COLD" --format chat
tasks "$out/problems.shard" $((seed * 100 + 6)) 4000

# grpo MODEL FROM REWARD
grpo() {
    stage "$1.bin" ./train_grpo -c "$2.bin" -i "$out/problems.shard" -o "$1.bin" --num-prompts 32 --num-generations 8 \
        --max-completion-length 12 --max-steps "$RL_STEPS" --reward "$3" --learning-rate 7e-4 --warmup-steps 5 \
        --adam-beta2 0.99 --slots 256 --logging-steps 20 --metrics "$1.metrics.jsonl" --seed "$seed"
}

say "R1's recipe (seed $seed)"
table stage
row base "$start"
sft "$out/cold-start" "$start" "$out/cold"
row "cold start" "$out/cold-start" "$out/cold"
grpo "$out/control" "$out/cold-start" random
row "control: random rewards" "$out/control"
grpo "$out/rl1" "$out/cold-start" verify:1,regex='/^[0-9 ]*$/':0.1
row "first RL" "$out/rl1"
samples "$out/rl1-samples" "$out/rl1" "$out/problems.shard"
pick "$out/rejection" -i "$out/rl1-samples.jsonl" --where 'right and finished' --group index --dedupe text --max-per-group 2 --as sft
sft "$out/sft" "$start" "$out/rejection"
row "rejection sampling to base" "$out/sft" "$out/rejection"
grpo "$out/rl2" "$out/sft" verify:1,regex='/^[0-9 ]*$/':0.1
row "second RL" "$out/rl2"
samples "$out/rl2-samples" "$out/rl2" "$out/problems.shard"
pick "$out/teacher" -i "$out/rl2-samples.jsonl" --where 'right and finished' --group index --dedupe text --max-per-group 2 --as sft
shard "$out/teacher"
stage "$out/distilled.bin" ./train_sft --layers 2 --width 48 --heads 2 --context 48 -i "$out/teacher.shard" -o "$out/distilled.bin" \
    --max-steps $((BASE_STEPS * 2)) --batch-tokens 1536 --learning-rate 6e-3 --warmup-steps 10 --logging-steps 50 \
    --metrics "$out/distilled.metrics.jsonl" --seed "$seed"
row "distilled, a quarter the size" "$out/distilled" "$out/teacher"
page
