#!/bin/sh
# llama3.sh [SEED] - the post-training of Llama 3 (Grattafiori et al. 2024, arXiv 2407.21783, 4.1) with toys: rounds of rejection
# sampling, SFT and DPO; each round begins with the samples of the last round's best model.
#
#   reward model   on comparisons (the paper: more of them in each round)
#   rejection      SAMPLES answers of the last model, the reward model's best (the paper: 10 to 30)
#   SFT            of the *base* on the best answers of this and earlier rounds
#   DPO            of that model on pairs of the last model's samples, best against worst, with an SFT term of weight 0.2 on the
#                  chosen ones (the paper also leaves tokens of the format out of the loss)
#
# The answers are letters, and gold is their mean score by a hidden rule that the comparisons follow. The paper: six rounds; models
# of a round that differ in data or hyperparameters are averaged. Control: the same without DPO.
# shellcheck disable=SC1091
export LOOP_BASE=own
: "${STEPS:=40}"
cd "$(dirname "$0")/.." && . scripts/loop.sh && . scripts/letters.sh
: "${ROUNDS:=3}"
reward_model
base=$letters/policy.bin
gold_table "Llama 3's recipe, $SAMPLES samples a prompt"
gold_row policy "$letters/policy"
for label in dpo control; do
    from=$letters/policy
    set --
    for i in $(seq "$ROUNDS"); do
        to=$out/$label$i
        stage "$to.samples.jsonl" ./generate -c "$from.bin" -i "$letters/prompts.jsonl" -o "$to.samples.jsonl" --num-samples "$SAMPLES" \
            -g 16 --temperature 1 --slots 128 --seed $((seed * 10 + i)) --reward-model "$letters/rm.bin"
        pick "$to.best" -i "$to.samples.jsonl" --group index --best 1 --by reward
        set -- "$@" -i "$to.best.jsonl"
        pick "$to.kept" "$@" --as sft --shuffle
        sft "$to.sft" "$letters/policy" "$to.kept"
        from=$to.sft
        if [ $label = dpo ]; then
            pick "$to.pairs" -i "$to.samples.jsonl" --group index --pairs reward --min-margin 0.1 --as preference
            dpo "$to" "$to.sft" "$to.pairs" --loss-type sigmoid,sft --loss-weights 1,0.2 --beta 0.1
            from=$to
        fi
        gold_row "$label, round $i" "$from" "$to.kept"
    done
done
say "control: rejection sampling and SFT without DPO"
page
