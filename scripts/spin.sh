#!/bin/sh
# spin.sh [SEED] - SPIN (Chen et al. 2024, arXiv 2401.01335): a model plays against its last self. The demonstration is chosen, the
# last model's own answer is rejected, by DPO with the last model as reference. The margin disappears when the model writes
# what the data has.
#
# The paper: beta (there lambda) 0.1, rounds 0 to 3, from round 1 on the pairs of the last two rounds. Here beta is 1: with 0.1
# the toy model loses its format. Control: another sample of the model's own as chosen, which has nothing to teach.
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${ROUNDS:=3}"
tasks "$out/shown.jsonl" $((seed * 100 + 5)) "$PROBLEMS" --format chat
pick "$out/prompts" -i "$out/shown.jsonl" --rename completion=answer
say "SPIN, $PROBLEMS demonstrations (seed $seed); rejected: the model's answers that differ from them"
table round
row base "$start"
for label in spin control; do
    from=$start
    before=
    for i in $(seq 0 "$ROUNDS"); do
        to=$out/$label$i
        complete "$to.all" "$from" "$out/prompts.jsonl" --num-samples 2 --temperature 1 --seed $((seed + i)) --reward random
        if [ $label = spin ]; then pick "$to.new" -i "$to.all.jsonl" --where 'sample == 0' --spin
        else pick "$to.new" -i "$to.all.jsonl" --group index --pairs reward --as preference; fi
        pick "$to.pairs" -i "$to.new.jsonl" ${before:+-i "$before"} --shuffle
        dpo "$to" "$from" "$to.pairs" --beta 1
        before=$to.new.jsonl
        from=$to
        row "$label, round $i" "$to" "$to.new"
    done
done
say "control: of two own answers one is chosen at random"
page
