#!/bin/sh
# tulu.sh [SEED] - the recipe of Tulu 3 (Lambert et al. 2024, arXiv 2411.15124) with toys: supervised fine-tuning on a mixture,
# length-normalised DPO on the model's own answers, and reinforcement learning with verifiable rewards (RLVR).
#
#   mixture    demonstrations of two skills, weighted; rows that share n-grams with the evaluation are dropped (the paper: 8-grams,
#              939k prompts of many skills)
#   DPO        SAMPLES answers of the SFT model to each prompt, a better against a worse one; sigmoid_norm, beta 5 (the paper: a
#              judge rates answers of several models, the on-policy ones matter most)
#   RLVR       PPO in the paper, here GRPO; the reward is the check of the answer, beta 0.05
#
# Control: RLVR from the SFT model without DPO.
#
# Environment, beside that of scripts/loop.sh: RL_STEPS (240), the steps of RLVR, and PROMPTS (32), the prompts of a step.
# shellcheck disable=SC1091
[ -n "${LOOP_MODEL:-}" ] || : "${SFT_RATE:=5e-4}" "${DPO_RATE:=3e-5}"
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${RL_STEPS:=240}" "${PROMPTS:=32}"

# rlvr MODEL FROM
rlvr() {
    # shellcheck disable=SC2086,SC2154
    stage "$1$ext" ./train_grpo -c "$2$ext" -i "$out/problems.shard" -o "$1$ext" --num-prompts "$PROMPTS" --num-generations 8 $training \
        --max-completion-length "$ANSWER_TOKENS" --max-steps "$RL_STEPS" --reward verify --beta 0.05 --learning-rate "$RL_RATE" \
        --warmup-steps 5 --adam-beta2 0.99 --slots 256 --logging-steps 20 --metrics "$1.metrics.jsonl" --seed "$seed"
}

say "Tulu 3's recipe (seed $seed)"
table stage
row base "$start"
tasks "$out/problems.jsonl" $((seed * 100 + 6)) $((PROBLEMS * 2))
tasks "$out/held.jsonl" $((seed * 100 + 3)) "$HELDOUT" --split heldout
stage "$out/problems.shard" ./data/make_shard -i "$out/problems.jsonl" -o "$out/problems.shard" --model "$base"
stage "$out/adds.jsonl" ./data/make_tasks --task add --digits 2 --count 300 --seed $((seed * 100 + 7)) --format chat -o "$out/adds.jsonl"
tasks "$out/sorts.jsonl" $((seed * 100 + 8)) 600 --format chat
pick "$out/clean" -i "$out/sorts.jsonl" --decontaminate "$out/held.jsonl" --ngram "$NGRAM"
for rows in clean adds; do shard "$out/$rows"; done
# shellcheck disable=SC2086
stage "$out/sft$ext" ./train_sft -c "$base" -i "$out/clean.shard:3" -i "$out/adds.shard:1" -o "$out/sft$ext" --max-steps "$STEPS" \
    --batch-tokens 1536 $training --learning-rate "$SFT_RATE" --warmup-steps 5 --logging-steps 20 \
    --metrics "$out/sft.metrics.jsonl" --seed "$seed"
row "SFT on the mixture" "$out/sft" "$out/clean"
samples "$out/samples" "$out/sft" "$out/problems.jsonl"
pick "$out/pairs" -i "$out/samples.jsonl" --group index --pairs right --pairs-per-group 2 --as preference
dpo "$out/dpo" "$out/sft" "$out/pairs" --loss-type sigmoid_norm --beta 5
row "DPO on its own answers" "$out/dpo" "$out/pairs"
rlvr "$out/control" "$out/sft"
row "control: RLVR without DPO" "$out/control"
rlvr "$out/rlvr" "$out/dpo"
row "RLVR" "$out/rlvr"
page
