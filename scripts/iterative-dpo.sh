#!/bin/sh
# iterative-dpo.sh [SEED] - iterative DPO on verified samples (Pang et al. 2024, Iterative Reasoning Preference Optimization, arXiv
# 2404.19733): in each round the last model samples, a right and a wrong solution of a problem become a pair, and DPO with an
# SFT term trains the model further, with the last model as reference.
#
# The paper: Llama-2-70B-chat on GSM8K, 30 samples and 10 pairs of a problem, 4 rounds, beta 0.1, weight 1 of the SFT term. Control:
# pairs in random order.
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${ROUNDS:=3}"
say "iterative DPO, $PROBLEMS problems and $SAMPLES samples a round (seed $seed)"
table round
row base "$start"
for label in dpo control; do
    from=$start
    for i in $(seq "$ROUNDS"); do
        to=$out/$label$i
        tasks "$to.shard" $((seed * 100 + 10 + i)) "$PROBLEMS"
        samples "$to.samples" "$from" "$to.shard" "$([ $label = dpo ] && echo verify || echo random)"
        pick "$to.pairs" -i "$to.samples.jsonl" --group index --pairs reward --pairs-per-group 2 --as preference
        dpo "$to" "$from" "$to.pairs" --loss-type sigmoid,sft --loss-weights 1,1 --beta 0.1
        from=$to
        row "$label, round $i" "$to" "$to.pairs"
    done
done
say "control: which sample is chosen is drawn at random"
page
