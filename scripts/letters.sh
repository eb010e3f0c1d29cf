# shellcheck shell=dash disable=SC2154
# letters.sh - a policy that writes letters, preferences by a hidden rule, and a reward model of them (README.md, "The whole chain"), for
# scripts that read scripts/loop.sh: policy and reward_model make $letters/policy.bin and $letters/rm.bin; gold scores by the rule.

# prefs ROWS OPTION...: makes ROWS.jsonl by make_prefs, and ROWS.shard.
prefs() {
    local rows=$1
    shift
    stage "$rows.jsonl" ./data/make_prefs "$@" -o "$rows.jsonl"
    stage "$rows.shard" ./data/make_shard -i "$rows.jsonl" -o "$rows.shard"
}

# The letters: a hidden rule, its preferences, and a policy that writes letters at random (README.md, "The whole chain").
rule=char=a:1,length:-0.25
letters=$loops/letters-$seed
letters() { # NAME OPTION...
    local rows=$letters/$1
    shift
    prefs "$rows" --rule $rule --min-length 3 --seed "$seed" "$@"
}
policy() {
    mkdir -p "$letters"
    letters answers --format chat --count 3000
    letters prefs --count 3000
    letters prefs-val --count 300 --split heldout
    letters prompts --format prompt --count 1000
    letters prompts-val --format prompt --count 100 --split heldout
    stage "$letters/policy.bin" ./train_sft --layers 2 --width 64 --context 64 -i "$letters/answers.shard" -x 100 \
        --batch-tokens 2048 -l 2e-3 --seed "$seed" -o "$letters/policy.bin"
}
reward_model() {
    policy
    stage "$letters/rm.bin" ./train_rm -c "$letters/policy.bin" -i "$letters/prefs.shard" --per-device-train-batch-size 32 -x 150 \
        -l 1e-3 --seed "$seed" -o "$letters/rm.bin"
}
ppo() { # MODEL OPTION...
    local to=$1
    shift
    stage "$to.bin" ./train_ppo -c "$letters/policy.bin" --reward-model "$letters/rm.bin" -i "$letters/prompts.shard" -p 64 -g 16 \
        -l 1e-3 --sample-count 0 --seed "$seed" -o "$to.bin" --metrics "$to.metrics.jsonl" "$@"
}
# gold MODEL: the mean score of its samples by the hidden rule.
gold_of() {
    ./evaluate -c "$1" -i "$letters/prompts-val.shard" --reward command --reward-cmd "./data/make_prefs --score --rule $rule" \
        -g 16 --num-samples 4 >"$2"
}
gold() {
    local scores
    scores=$out/$(basename "$1").gold.json
    stage "$scores" gold_of "$1.bin" "$scores" && figure reward "$scores"
}
# gold_table TITLE, gold_row LABEL MODEL [ROWS]: a table of recipes: gold, the rows that the model was trained on, and how many of
# these are distinct.
gold_table() { printf '%s (seed %s)\n%-24s %8s %9s %9s\n' "$1" "$seed" round gold rows distinct; }
gold_row() {
    local count distinct score
    score=$(gold "$2")
    sizes ${3:+"$3"}
    printf '%-24s %8.3f %9s %9s\n' "$1" "$score" "$count" "$distinct"
}
values() { sed -n "/^{\"step\"/ s|.*\"$1\":\([-0-9.e]*\).*|\1|p" "$2"; } # values KEY METRICS: one line for each step that has it
last() { values "$1" "$2" | tail -n 1; }                                 # last KEY METRICS: its value in the last of these steps
