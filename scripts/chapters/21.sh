# shellcheck shell=dash disable=SC2154
# Chapter 21: test-time compute.
# thought TOKENS: accuracy in percent with this budget.
thought() {
    awk "BEGIN { printf \"%.1f\", 100 * $(sed -n "s/.*{\"accuracy\":\([0-9.e-]*\),\"think_tokens\":$1,.*/\1/p" "$out/forced.json") }"
}
title "test-time compute"
greedy "$start" >>"$out/log"
one=$(percent pass@1 "$start.json") many=$(percent pass@8 "$start.json") votes=$(percent majority@8 "$start.json")
claim "more samples hold a right answer more often" "pass@1 $one %, pass@8 $many %" "$many > $one + 10"
claim "a vote of 8 samples is better than one" "majority@8 $votes %" "$votes > $one + 2"
# Sums of four digits, worked out step by step, by a policy half of whose demonstrations are wrong.
sums() { prefs "$@" --rule sum --digits 1 --terms 4 --seed "$seed"; }
sums "$out/solutions" --format chat --steps --count 4000
sums "$out/steps" --format step --count 30000
sums "$out/sums" --format prompt --count 300 --split heldout
stage "$out/policy.bin" ./train_sft --layers 2 --width 64 --heads 4 --context 72 -i "$out/solutions.shard" -o "$out/policy.bin" \
    -x 400 --batch-tokens 2048 -l 5e-3 --warmup-steps 20 --seed "$seed"
stage "$out/prm.bin" ./train_rm --kind prm -c "$out/policy.bin" -i "$out/steps.shard" -o "$out/prm.bin" -x 3000 \
    --per-device-train-batch-size 64 -l 2e-3 --warmup-steps 50 --seed "$seed"
search() { # SOLUTIONS POLICY REWARD_MODEL PROBLEMS OUTPUT
    ./evaluate -c "$2" --reward-model "$3" -i "$4" --num-samples "$1" --temperature 1 -g 40 --search best-of-n,beam,dvts,rebase \
        --compute-curve "$out/compute.jsonl" --report "$out/compute.html" >"$5"
}
stage "$out/search.json" search 8 "$out/policy.bin" "$out/prm.bin" "$out/sums.shard" "$out/search.json"
found() { awk "BEGIN { printf \"%.1f\", 100 * $(sed -n "s/.*\"$1\":{\"accuracy\":\([0-9.e-]*\),.*/\1/p" "$out/search.json") }"; }
votes=$(percent majority@8 "$out/search.json") weighted=$(percent weighted@8 "$out/search.json")
beam=$(found beam) dvts=$(found dvts)
claim "with as many tokens, a process model's votes beat a majority, and search beats votes" \
    "8 solutions: majority $votes %, weighted $weighted %, beam $beam %, DVTS $dvts %" \
    "$votes < $weighted && $weighted < $beam && $weighted < $dvts"
say "curves: $out/compute.html"
# Sums of five digits. The thought is the steps, often broken off; it ends with #, and the answer follows.
prefs "$out/worked" --rule sum --digits 1 --terms 5 --format step --count 12000 --seed "$seed"
prefs "$out/fives" --rule sum --digits 1 --terms 5 --format prompt --count 300 --split heldout --seed "$seed"
thoughts() {
    awk -F'"' -v seed="$seed" 'BEGIN { srand(seed) } !/false/ {
        thought = ""
        for (i = 8; $i != "labels"; i += 2) { thought = thought $i ";"; answer = $i }
        sub(/.*=/, "", answer)
        if (rand() < 0.7) thought = substr(thought, 1, int(rand() * length(thought)))
        printf "{\"prompt\":\"%s\",\"completion\":\"%s#%s\"}\n", $4, thought, answer }' "$1" >"$2"
}
stage "$out/thoughts.jsonl" thoughts "$out/worked.jsonl" "$out/thoughts.jsonl"
stage "$out/thoughts.shard" ./data/make_shard -i "$out/thoughts.jsonl" -o "$out/thoughts.shard"
stage "$out/thinker.bin" ./train_sft --layers 2 --width 64 --heads 4 --context 72 -i "$out/thoughts.shard" -o "$out/thinker.bin" \
    -x 500 --batch-tokens 2048 -l 5e-3 --warmup-steps 20 --seed "$seed"
force() { ./evaluate -c "$2" -i "$3" --num-samples 0 -g 4 --think-end '#' --think-tokens "$1" >"$4"; }
stage "$out/forced.json" force 1,12,24,36 "$out/thinker.bin" "$out/fives.shard" "$out/forced.json"
brief=$(thought 1) long=$(thought 36) scaling=$(figure scaling "$out/forced.json")
claim "a longer thought gives a better answer" \
    "thoughts of at most 1, 12, 24, 36 tokens: $brief, $(thought 12), $(thought 24), $long %; scaling $(short "$scaling")" \
    "$scaling > 0 && $long > $brief + 10"
