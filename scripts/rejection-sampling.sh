#!/bin/sh
# rejection-sampling.sh [SEED] - rejection-sampling fine-tuning of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, 3.2.3): a reward
# model chooses the best of SAMPLES answers to each prompt, and the model is fine-tuned on these; each round also takes the best
# answers of all earlier rounds.
#
# The answers are letters, and a hidden rule says which are good; the reward model has learned it from comparisons, and gold is the
# mean score by the rule. The paper: 70B, up to 100 samples, a temperature that is adapted in each round; with the best of the last
# round alone some abilities got worse, hence all rounds. Control: an answer drawn at random in place of the best.
# shellcheck disable=SC1091
export LOOP_BASE=own
cd "$(dirname "$0")/.." && . scripts/loop.sh && . scripts/letters.sh
: "${ROUNDS:=3}"
reward_model
base=$letters/policy.bin
gold_table "rejection sampling, $SAMPLES samples a prompt"
gold_row policy "$letters/policy"
for label in best control; do
    from=$letters/policy
    set --
    for i in $(seq "$ROUNDS"); do
        to=$out/$label$i
        set -- "$@" -i "$to.chosen.jsonl"
        if [ $label = best ]; then choose="--reward-model $letters/rm.bin"; else choose="--reward random"; fi
        # shellcheck disable=SC2086
        stage "$to.chosen.jsonl" ./generate -c "$from.bin" -i "$letters/prompts.jsonl" -o "$to.chosen.jsonl" --num-samples "$SAMPLES" \
            -g 16 --temperature 1 --slots 128 --seed $((seed * 10 + i)) $choose --keep best
        pick "$to.kept" "$@" --as sft --shuffle
        sft "$to" "$letters/policy" "$to.kept"
        from=$to
        gold_row "$label, round $i" "$to" "$to.kept"
    done
done
say "control: one of the samples at random"
page
