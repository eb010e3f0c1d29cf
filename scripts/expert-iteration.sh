#!/bin/sh
# expert-iteration.sh [SEED] - expert iteration (Anthony et al. 2017, arXiv 1705.08439; for language models Polu et al. 2022,
# 2202.01344): in each round the last model samples, and is trained further on its right samples.
#
# With FROM=base each round trains the base instead (ReST-EM, which scripts/rest-em.sh runs). Control: the same rounds on as many
# samples, right or not.
#
# Environment, beside that of scripts/loop.sh:
#
#   FROM          the model that each round trains: last or base (last)
#   PER_PROBLEM   right samples of a problem that are kept, at most (4)
#   TITLE         title of the table (expert iteration)
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${ROUNDS:=3}" "${FROM:=last}" "${PER_PROBLEM:=4}"
say "${TITLE:-expert iteration}, $PROBLEMS problems and $SAMPLES samples a round, each round from the $FROM model (seed $seed)"
table round
row base "$start"
for label in right any; do
    from=$start
    for i in $(seq "$ROUNDS"); do
        to=$out/$label$i
        tasks "$to.shard" $((seed * 100 + 10 + i)) "$PROBLEMS"
        samples "$to.samples" "$from" "$to.shard"
        pick "$to.right" -i "$to.samples.jsonl" --where right --group index --dedupe text --max-per-group "$PER_PROBLEM" --as sft
        pick "$to.any" -i "$to.samples.jsonl" --as sft --sample "$(wc -l <"$to.right.jsonl")"
        sft "$to" "$([ "$FROM" = base ] && echo "$start" || echo "$from")" "$to.$label"
        from=$to
        row "$([ $label = right ] && echo "$name" || echo control), round $i" "$to" "$to.$label"
    done
done
say "control: any samples"
page
