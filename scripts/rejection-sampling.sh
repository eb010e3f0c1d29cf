#!/bin/sh
# rejection-sampling.sh [SEED] - the rejection sampling of Llama 2 (Touvron et al. 2023, arXiv 2307.09288): a reward model chooses
# the best of the last model's samples, and the next model is trained on the best samples of all rounds so far.
#
# Here the reward model is an outcome model, trained on samples of the base with their labels. Control: a sample drawn at random
# in place of the best.
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${ROUNDS:=3}"
tasks "$out/labelled.shard" $((seed * 100 + 5)) 2000
samples "$out/labelled" "$start" "$out/labelled.shard"
pick "$out/labels" -i "$out/labelled.jsonl" --unpaired
shard "$out/labels"
stage "$out/rm.bin" ./train_rm --kind orm -c "$base" -i "$out/labels.shard" -o "$out/rm.bin" --max-steps $((STEPS * 3)) \
    --per-device-train-batch-size 32 --learning-rate 1e-3 --logging-steps 40 --seed "$seed"
say "rejection sampling by a reward model, $PROBLEMS problems and $SAMPLES samples a round (seed $seed)"
table round
row base "$start"
for label in best control; do
    from=$start
    set --
    for i in $(seq "$ROUNDS"); do
        to=$out/$label$i
        tasks "$to.shard" $((seed * 100 + 10 + i)) "$PROBLEMS"
        complete "$to.samples" "$from" "$to.shard" --num-samples "$SAMPLES" --temperature 0.7 --seed "$seed" \
            --reward-model "$out/rm.bin"
        if [ $label = best ]; then pick "$to.new" -i "$to.samples.jsonl" --group index --best 1 --by reward --as sft
        else pick "$to.new" -i "$to.samples.jsonl" --group index --max-per-group 1 --as sft; fi
        set -- "$@" -i "$to.new.jsonl"
        pick "$to.rows" "$@" --shuffle
        sft "$to" "$from" "$to.rows"
        from=$to
        row "$label, round $i" "$to" "$to.rows"
    done
done
say "control: a sample drawn at random"
page
