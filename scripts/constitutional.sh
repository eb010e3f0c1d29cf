#!/bin/sh
# constitutional.sh [SEED] - Constitutional AI (Bai et al. 2022, arXiv 2212.08073) with letters: a model criticises and revises its
# own answers by principles, learns from the revisions, and then from a judge that follows the same principles.
#
# An answer is five letters, and helpful if it has the letter that the prompt asks for; d and e are harmful. The base model
# answers, criticises ("d?" - "yes"), revises ("d>a") and compares two answers by a principle; nothing in it avoids d and e.
#
#   SL-CAI   REVISIONS times a principle is drawn for each answer, the model criticises and revises; SFT on the last revision
#            (the paper: 4 revisions, 16 principles, 182k red-team prompts). Control: SFT on the answers before their revision
#   RL-CAI   two answers of that model, compared by the base model with a principle drawn for each pair, in both orders; a reward
#            model of the soft labels; PPO with it and a check that the answer helps (the paper: people's preferences)
#
# Environment, beside that of scripts/loop.sh:
#
#   REVISIONS   of an answer (2)
#   ROWS        demonstrations that the base model is trained on (8000)
#   RL_STEPS    steps of PPO (60)
#   TIE         pairs whose label is closer to 1/2 than this are dropped (0.02)
# shellcheck shell=dash disable=SC1091
export LOOP_BASE=own
: "${STEPS:=120}" "${BASE_STEPS:=800}" "${REVISIONS:=2}" "${ROWS:=8000}" "${PROBLEMS:=900}" "${RL_STEPS:=60}" "${TIE:=0.02}"
cd "$(dirname "$0")/.." && . scripts/loop.sh
base=$out/base.bin
printf '{"critique":"d?","revision":"d>a"}\n{"critique":"e?","revision":"e>a"}\n' >"$out/principles.jsonl"
printf 'd?\ne?\n' >"$out/principles.txt"
printf '{principle}{completion_a}|{completion_b}|' >"$out/compare.txt"
for turn in critique revision; do printf '{shot}{%s}{/shot}' $turn >"$out/$turn.txt"; done

# What the base model can do: answers, critiques with revisions, comparisons.
demonstrations() {
    awk -v seed="$seed" -v rows="$1" 'function letter() { return substr("abcde", 1 + int(5 * rand()), 1) }
        function answer(p,   s, i, at) { at = 1 + int(5 * rand()); for (i = 1; i <= 5; i++) s = s (i == at ? p : letter()); return s }
        function pair(asked, said) { return "{\"role\":\"user\",\"content\":\"" asked "\"},{\"role\":\"assistant\",\"content\":\"" said "\"}" }
        BEGIN { srand(seed); while (n < rows) {
            p = substr("abc", 1 + int(3 * rand()), 1); x = rand() < 0.5 ? "d" : "e"
            a = r = answer(p); b = answer(p); copy = b; fewer = gsub(x, "a", r) - gsub(x, "a", copy)
            if (n % 5 > 2 && !fewer) continue
            t = n % 5 > 2 ? pair(x "?" a "|" b "|", fewer < 0 ? "1" : "2") : pair(p ":", a)
            if (n % 5 == 1 || n % 5 == 2) t = t "," pair(x "?", r == a ? "no" : "yes") "," pair(x ">a", r)
            print "{\"messages\":[" t "]}"; n++ } }' >"$2"
}
prompts() { awk -v n="$2" 'BEGIN { for (i = 0; i < n; i++) { p = substr("abc", i % 3 + 1, 1); print "{\"prompt\":\"" p ":\",\"pattern\":\"" p "\"}" } }' >"$1"; }
# say_again ROWS FROM TEMPLATE NUMBER: the base model answers a message that a principle of draw NUMBER makes.
say_again() {
    stage "$1.jsonl" ./generate -c "$base" -i "$2.jsonl" -o "$1.jsonl" --continue-as "$out/$3.txt" --shots "$out/principles.jsonl" \
        --num-shots 1 --seed "$4" --temperature 0 -g 8 --slots 128
}
answers() { stage "$1.jsonl" ./generate -c "$2.bin" -i "$3.jsonl" -o "$1.jsonl" -g 8 --temperature 1 --slots 128 --seed "$seed" --num-samples "${4:-1}"; }
# line LABEL MODEL: a line of the table.
line() {
    answers "$2.held" "$2" "$out/held"
    awk -F'"' -v label="$1" '{ bad += $12 ~ /[de]/; good += index($12, $8) > 0; n++ }
        END { printf "%-34s %8.1f %% %8.1f %%\n", label, 100 * bad / n, 100 * good / n }' "$2.held.jsonl"
}

stage "$out/base.jsonl" demonstrations "$ROWS" "$out/base.jsonl"
stage "$out/asks.jsonl" prompts "$out/asks.jsonl" "$PROBLEMS"
stage "$out/held.jsonl" prompts "$out/held.jsonl" "$HELDOUT"
stage "$out/base.shard" ./data/make_shard -i "$out/base.jsonl" -o "$out/base.shard" --template plain
stage "$base" ./train_sft --layers 2 --width 64 --heads 4 --context 48 -i "$out/base.shard" -o "$base" --max-steps "$BASE_STEPS" \
    --batch-tokens 2048 --learning-rate 4e-3 --warmup-steps 10 --logging-steps 100 --seed "$seed"
printf 'Constitutional AI (seed %s)\n%-34s %10s %10s\n' "$seed" model harmful helpful
line base "$out/base"
answers "$out/revised0" "$out/base" "$out/asks"
for k in $(seq "$REVISIONS"); do
    say_again "$out/critique$k" "$out/revised$((k - 1))" critique $((seed * 100 + k)) # both draw the same principle
    say_again "$out/again$k" "$out/critique$k" revision $((seed * 100 + k))
    pick "$out/revised$k" -i "$out/again$k.jsonl" --drop messages
done
for k in 0 "$REVISIONS"; do pick "$out/sft$k" -i "$out/revised$k.jsonl" --as sft; done
sft "$out/control" "$out/base" "$out/sft0"
line "control: SFT without revision" "$out/control"
sft "$out/sl" "$out/base" "$out/sft$REVISIONS"
line "SL-CAI, $REVISIONS revisions" "$out/sl"
answers "$out/two" "$out/sl" "$out/asks" 2
pick "$out/two-pairs" -i "$out/two.jsonl" --group index --pairs sample && shard "$out/two-pairs"
stage "$out/labelled.jsonl" ./evaluate --judge "$base" --judge-template "$out/compare.txt" --judge-principles "$out/principles.txt" \
    -i "$out/two-pairs.shard" --completions "$out/labelled.jsonl"
pick "$out/preferences" -i "$out/labelled.jsonl" --pairs p --tie "$TIE"
for rows in preferences asks; do shard "$out/$rows"; done
stage "$out/rm.bin" ./train_rm -c "$out/sl.bin" -i "$out/preferences.shard" -o "$out/rm.bin" --soft-labels --max-steps 100 \
    --per-device-train-batch-size 32 --learning-rate 1e-3 --seed "$seed" --metrics "$out/rm.metrics.jsonl"
stage "$out/rl.bin" ./train_ppo -c "$out/sl.bin" --reward-model "$out/rm.bin" --reward regex -i "$out/asks.shard" -o "$out/rl.bin" -p 64 -g 8 -x "$RL_STEPS" \
    --learning-rate 1e-3 --kl-coef 0.05 --temperature 1 --slots 64 --seed "$seed" --metrics "$out/rl.metrics.jsonl"
line "RL-CAI" "$out/rl"
page
