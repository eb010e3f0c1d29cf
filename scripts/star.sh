#!/bin/sh
# star.sh [SEED] - STaR (Zelikman et al. 2022, arXiv 2203.14465): a model learns from its own right solutions, and from those
# that it writes when it is shown the answer.
#
# In each round the last model answers the problems greedily. Right solutions are kept. For wrong ones the model is asked again
# with the answer as a hint (rationalisation); if the solution is then right it is kept, without the hint. The next model is
# trained from the base on all that was kept. The paper: GPT-J, 40 steps at first and 20 % more each round, until the
# accuracy no longer rises. Control: the same rounds without rationalisation.
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${ROUNDS:=3}"
problems=$out/problems.shard
tasks "$problems" $((seed * 100 + 5)) "$PROBLEMS"
printf '%s\n' '{prompt}({answer})' >"$out/hint.txt"

# round LABEL NUMBER FROM HINTS: one round from the model FROM, with rationalisation if HINTS is yes; trains LABELNUMBER.
round() {
    local to=$out/$1$2 rational=
    complete "$to.plain" "$3" "$problems" --temperature 0 --reward verify
    pick "$to.right" -i "$to.plain.jsonl" --where right --as sft
    if [ "$4" = yes ]; then
        pick "$to.wrong" -i "$to.plain.jsonl" --where 'not right' --drop right,reward,rewards,completion,tokens
        complete "$to.hinted" "$3" "$to.wrong.jsonl" --temperature 0 --reward verify --prompt-template "$out/hint.txt"
        rational=$to.rational
        pick "$rational" -i "$to.hinted.jsonl" --where right --as sft
    fi
    pick "$to.kept" -i "$to.right.jsonl" ${rational:+-i "$rational.jsonl"} --dedupe text --shuffle
    sft "$to" "$start" "$to.kept"
}

say "STaR, $PROBLEMS problems, held-out accuracy (seed $seed)"
table round
row base "$start"
first=$STEPS
for hints in yes no; do
    label=$([ $hints = yes ] && echo star || echo control)
    from=$start
    STEPS=$first
    for i in $(seq "$ROUNDS"); do
        round $label "$i" "$from" $hints
        from=$out/$label$i
        row "$label, round $i" "$from" "$out/$label$i.kept"
        STEPS=$((STEPS * 12 / 10))
    done
done
say "control: without rationalisation; the rows are the problems solved so far"
page
