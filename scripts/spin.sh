#!/bin/sh
# spin.sh [SEED] - SPIN (Chen et al. 2024, arXiv 2401.01335): a model plays against its last self. The demonstration is chosen, the
# last model's own answer is rejected, by DPO with the last model as reference. The margin disappears when the model writes
# what the data has: the last lines print, for each round, how many answers to held-out problems differ from the demonstrations,
# and the mean margin of the new model over the last one for all of them, in nats, where equal answers have a margin of 0.
#
# The paper: beta (there lambda) 0.1, rounds 0 to 3, from round 1 on the pairs of the last two rounds. Here beta is 1: with 0.1
# the toy model loses its format. Control: another sample of the model's own as chosen, which has nothing to teach.
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${ROUNDS:=3}"
tasks "$out/shown.jsonl" $((seed * 100 + 5)) "$PROBLEMS" --format chat
pick "$out/prompts" -i "$out/shown.jsonl" --rename completion=answer
tasks "$out/unseen.jsonl" $((seed * 100 + 6)) "$HELDOUT" --split heldout --format chat
pick "$out/games" -i "$out/unseen.jsonl" --rename completion=answer

# games MODEL FROM: the pairs of demonstrations and answers of FROM for held-out problems, as a shard if there are any.
games() {
    complete "$1.games.all" "$2" "$out/games.jsonl" --num-samples 1 --temperature 1 --seed $((seed + 100 + i)) --reward random
    pick "$1.games" -i "$1.games.all.jsonl" --spin
    [ ! -s "$1.games.jsonl" ] || shard "$1.games"
}
# margin MODEL: prints the mean margin over all held-out problems, and the number of answers that differ.
margin() {
    local differ
    differ=$(wc -l <"$1.games.jsonl")
    sed -n 's/.*"eval_rewards\/margins":\([-0-9.e]*\).*/\1/p' "$1.metrics.jsonl" | tail -n 1 |
        awk -v n="$differ" -v all="$HELDOUT" '{ m = $1 } END { printf "%8d %10.3f\n", n, n ? m * n / all : 0 }'
}
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
        if [ $label = spin ]; then games "$to" "$from"; fi
        if [ -s "$to.games.jsonl" ]; then dpo "$to" "$from" "$to.pairs" --beta 1 -j "$to.games.shard" --eval-steps "$STEPS"
        else dpo "$to" "$from" "$to.pairs" --beta 1; fi
        before=$to.new.jsonl
        from=$to
        row "$label, round $i" "$to" "$to.new"
    done
done
say "control: of two own answers one is chosen at random"
say "held-out answers that differ from the demonstrations, and the margin:"
for i in $(seq 0 "$ROUNDS"); do printf 'round %s %s\n' "$i" "$(margin "$out/spin$i")"; done
page
