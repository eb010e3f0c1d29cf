#!/bin/sh
# rft.sh [SEED] - rejection-sampling fine-tuning (Yuan et al. 2023, arXiv 2308.01825): of many samples of each problem, the right
# ones with different equations become training data for the base.
#
# The paper: 100 samples at temperature 0.7 of each problem of GSM8K, all with a distinct list of equations. Control: as many
# samples of the same model, right or not.
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && . scripts/loop.sh
problems=$out/problems.shard
tasks "$problems" $((seed * 100 + 5)) "$PROBLEMS"
samples "$out/all" "$start" "$problems"
pick "$out/right" -i "$out/all.jsonl" --where 'right and finished' --group index --dedupe equations --max-per-group 4 --as sft
pick "$out/any" -i "$out/all.jsonl" --where finished --as sft --sample "$(wc -l <"$out/right.jsonl")"
sft "$out/rft" "$start" "$out/right"
sft "$out/control" "$start" "$out/any"
say "rejection-sampling fine-tuning, $PROBLEMS problems, $SAMPLES samples each (seed $seed)"
table model
row base "$start"
row "rft: right samples" "$out/rft" "$out/right"
row "control: any samples" "$out/control" "$out/any"
page
