#!/bin/sh
# self-instruct.sh [SEED] - Self-Instruct (Wang et al. 2023, arXiv 2212.10560): a base model that has only seen text writes new
# instructions after a few examples, answers them, and learns from the result to follow instructions without examples.
#
# The base is trained on pages of questions and answers (sorting four digits), never on a conversation. From SEEDS human tasks the
# pool grows in each round: SHOTS examples of the pool, a new instruction; kept if it is well formed and its ROUGE-L with every
# earlier one is below NEAR; then the answer, again after examples. At last SFT on the pool. The paper: GPT-3, 175 seeds, 8 examples
# (6 by people, 2 by the model), ROUGE-L below 0.7, 52k instructions. Control: SFT on the seeds alone.
#
# Environment, beside that of scripts/loop.sh: SEEDS (20), SHOTS (3), NEAR (0.85), and WRITTEN (600), the instructions that the model
# writes in a round.
# shellcheck shell=dash disable=SC1091
export LOOP_BASE=own
: "${BASE_STEPS:=300}" "${STEPS:=150}"
cd "$(dirname "$0")/.." && . scripts/loop.sh
: "${ROUNDS:=2}" "${SEEDS:=20}" "${SHOTS:=3}" "${WRITTEN:=600}" "${NEAR:=0.85}"
base=$out/base.bin held=$out/held.shard
examples='<|endoftext|>{shot}Q: {prompt}\nA: {completion}\n{/shot}Q: ' # a page begins with this token
printf %b "$examples" >"$out/ask.txt"
printf %b "$examples{prompt}\\nA: " >"$out/answer.txt"
line_end='
'

# pages FILE ROWS: documents of four questions with their answers.
pages() {
    awk -F'"' '{ for (i = 1; i < NF; i++) { if ($i == "prompt") q = $(i + 2); if ($i == "answer") a = $(i + 2) }
        page = page "Q: " q "\\nA: " a "\\n"; if (NR % 4 == 0) { print "{\"text\":\"" page "\"}"; page = "" } }' "$2" >"$1"
}
# written ROWS FROM TEMPLATE FIELD OPTION...: completes a file of rows after examples of the pool.
written() {
    local rows=$1 from=$2 template=$3 field=$4
    shift 4
    stage "$rows.jsonl" ./generate -c "$base" -i "$from.jsonl" -o "$rows.jsonl" --raw --prompt-template "$out/$template.txt" \
        --shots "$pool.jsonl" --num-shots "$SHOTS" --output-field "$field" --stop "$line_end" -g 24 --slots 128 --seed $((seed * 10 + i)) "$@"
}

tasks "$held" $((seed * 100 + 3)) "$HELDOUT" --split heldout
tasks "$out/text.jsonl" $((seed * 100 + 1)) 8000
stage "$out/pages.jsonl" pages "$out/pages.jsonl" "$out/text.jsonl"
stage "$out/pages.shard" ./data/make_shard -i "$out/pages.jsonl" -o "$out/pages.shard"
stage "$base" ./train_sft --layers 2 --width 96 --heads 4 --context 160 -i "$out/pages.shard" -o "$base" --max-steps "$BASE_STEPS" \
    --batch-tokens 4096 --learning-rate 3e-3 --warmup-steps 10 --logging-steps 50 --seed "$seed"
tasks "$out/human.jsonl" $((seed * 100 + 5)) "$SEEDS"
pick "$out/seeds" -i "$out/human.jsonl" --rename answer=completion --drop task
awk -v n="$WRITTEN" 'BEGIN { for (i = 0; i < n; i++) print "{\"written\":" i "}" }' >"$out/blank.jsonl"
say "Self-Instruct from $SEEDS tasks (seed $seed)"
table model
row "base, without examples" "${base%.bin}"
pool=$out/seeds
for i in $(seq "$ROUNDS"); do
    written "$out/new$i" "$out/blank" ask prompt --temperature 1
    pick "$out/formed$i" -i "$out/new$i.jsonl" --where 'matches(prompt, /^sort( \d){4}:$/)' --drop prompt_tokens,prompt_finished,prompt_logprob,written
    written "$out/solved$i" "$out/formed$i" answer completion --temperature 0
    pick "$out/pool$i" -i "$pool.jsonl" -i "$out/solved$i.jsonl" --drop-near "$NEAR" --near-field prompt --as sft
    pool=$out/pool$i
    say "round $i: $(wc -l <"$out/new$i.jsonl") instructions, $(wc -l <"$out/formed$i.jsonl") well formed, pool of $(wc -l <"$pool.jsonl")"
done
sft "$out/control" "${base%.bin}" "$out/seeds"
row "control: SFT on the seeds" "$out/control" "$out/seeds"
sft "$out/instructed" "${base%.bin}" "$pool"
row "SFT on the pool" "$out/instructed" "$pool"
page
