#!/bin/sh
# self-rewarding.sh [SEED] - self-rewarding language models (Yuan et al. 2024, arXiv 2401.10020): the model that answers is also
# the judge of its answers, and DPO on its own verdicts improves it.
#
# An answer is five letters. M1 is trained on demonstrations, which are letters at random (IFT), and on verdicts (EFT): "adbea?"
# has the score 1 and a point for each a, at most 5. In each round the last model answers new prompts SAMPLES times and
# scores its answers; the best and the worst become a pair unless the scores are close. The reference is the last model. The
# paper: Llama 2 70B, prompts that the model writes from 8 examples, 4 answers at temperature 0.7 and top-p 0.9, the mean of
# 3 verdicts by an additive 5-point question, M1 to M3. Here the score is the exact expectation over the verdict.
#
# Control: pairs in random order. The column judge has how often the model itself orders two answers with different points
# as they should be.
#
# Environment, beside that of scripts/loop.sh: ROWS (6000), the rows of IFT and EFT together.
# shellcheck shell=dash disable=SC1091
export LOOP_BASE=own
: "${BASE_STEPS:=400}" "${STEPS:=40}" "${DPO_RATE:=1e-4}" "${ROUNDS:=2}" "${ROWS:=6000}" "${PROBLEMS:=400}"
cd "$(dirname "$0")/.." && . scripts/loop.sh
base=$out/m1.bin
printf '{completion}?' >"$out/verdict.txt"

# demonstrations FILE: rows of IFT, and as many verdicts on answers with all shares of a.
demonstrations() {
    awk -v seed="$seed" -v rows="$ROWS" 'function letter(a) { return rand() < a ? "a" : substr("bcdefgh", 1 + int(7 * rand()), 1) }
        function row(asked, said) { print "{\"prompt\":\"" asked "\",\"completion\":\"" said "\"}" }
        BEGIN { srand(seed); for (n = 0; n < rows; n++) {
            a = n % 2 ? rand() : 0.125; said = ""
            for (i = 0; i < 5; i++) said = said letter(a)
            copy = said; points = 1 + gsub("a", "a", copy)
            if (n % 2) row(said "?", points > 5 ? 5 : points); else row(letter(0.125) letter(0.125) ":", said) } }' >"$1"
}
prompts() { awk -v seed="$2" -v n="$3" 'BEGIN { srand(seed); for (i = 0; i < n; i++) print "{\"prompt\":\"" substr("abcdefgh", 1 + int(8 * rand()), 1) substr("abcdefgh", 1 + int(8 * rand()), 1) ":\"}" }' >"$1"; }
# judged ROWS MODEL PROMPTS JUDGE: samples with the scores of a judge; random: drawn scores.
judged() {
    local rows=$1 model=$2 from=$3 judge=$4
    set -- --reward random
    [ "$judge" = random ] || set -- --judge "$judge.bin" --judge-scale 5 --judge-template "$out/verdict.txt" --reward judge=score
    stage "$rows.jsonl" ./generate -c "$model.bin" -i "$from.jsonl" -o "$rows.jsonl" -g 8 --slots 128 --num-samples "$SAMPLES" \
        --temperature 0.7 --top-p 0.9 --seed "$seed" "$@"
}
# line LABEL MODEL [ROWS]: a line of the table, of answers to held-out prompts that the model has scored.
line() {
    judged "$2.held" "$2" "$out/held" "$2"
    local rows=-
    [ $# -lt 3 ] || rows=$(wc -l <"$3.jsonl")
    awk -v label="$1" -v rows="$rows" '{ r = s = $0; sub(/.*"reward":/, "", r); sub(/.*"completion":"/, "", s); sub(/".*/, "", s)
        if (!(s in seen)) distinct++; seen[s]; points[n] = gsub("a", "a", s); score[n++] = r + 0; all += points[n - 1] }
        END { for (i = 0; i < n; i++) for (k = i + 1; k < n && k < i + 50; k++) if (points[i] != points[k]) {
            pairs++; right += (points[i] > points[k]) == (score[i] > score[k]) }
            printf "%-28s %7.2f %9s %9.1f %% %9d\n", label, all / n, rows, pairs ? 100 * right / pairs : 0, distinct }' "$2.held.jsonl"
}

printf 'self-rewarding (seed %s)\n%-28s %7s %9s %11s %9s\n' "$seed" model points pairs judge distinct
stage "$out/m1.jsonl" demonstrations "$out/m1.jsonl"
stage "$out/m1.shard" ./data/make_shard -i "$out/m1.jsonl" -o "$out/m1.shard" --template plain
stage "$base" ./train_sft --layers 2 --width 64 --heads 4 --context 24 -i "$out/m1.shard" -o "$base" --max-steps "$BASE_STEPS" \
    --batch-tokens 2048 --learning-rate 4e-3 --warmup-steps 10 --logging-steps 100 --seed "$seed"
stage "$out/held.jsonl" prompts "$out/held.jsonl" "$((seed * 100 + 3))" 100
line "M1, IFT and EFT" "$out/m1"
for label in m random; do
    from=$out/m1
    for i in $(seq 2 $((ROUNDS + 1))); do
        to=$out/$label$i
        stage "$to.prompts.jsonl" prompts "$to.prompts.jsonl" "$((seed * 100 + i))" "$PROBLEMS"
        judged "$to.samples" "$from" "$to.prompts" "$([ $label = random ] && echo random || echo "$from")"
        pick "$to.pairs" -i "$to.samples.jsonl" --group index --pairs reward --min-margin 0.002 --as preference
        dpo "$to" "$from" "$to.pairs" --beta 0.1
        from=$to
        line "$label$i" "$to" "$to.pairs"
    done
done
say "random: which sample is chosen is drawn at random"
page
