#!/bin/sh
# check_rlaif.sh [SEED...] - RLAIF beside true labels. The policy, fine-tuned on comparisons as a judge, labels 2000 other
# pairs. Reward models learn from the true labels, from the judge's as hard ones and as soft ones. PPO trains on each of them.
# Prints a table with a row for each seed (1 to 5 if none is given), and the mean over the seeds, in a few minutes per seed.
#
# The preferences follow the hidden rule of README.md's chain. COMPARISONS (1000) is the number that the judge learns from.
# A row has the judge's accuracy on its 2000 pairs in both orders and in one, the accuracy and the log loss of each reward model
# on 300 held-out pairs, and the mean score by the rule of 400 samples for held-out prompts after PPO (before it: policy).
# Fails if the mean score with either kind of the judge's labels is not above that of the policy.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 1 2 3 4 5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s train_sft train_rm train_ppo evaluate data/make_prefs data/make_shard data/pick >&2
rule=char=a:1,length:-0.25
prefs() { data/make_prefs --rule $rule --min-length 3 "$@" 2>/dev/null; }
shard() { data/make_shard --quiet -i - -o "$work/$1" 2>/dev/null; }
quiet() { "$@" 2>"$work/log" || { tail -n 3 "$work/log" >&2; exit 1; }; }
field() { sed -n "s/.*\"$1\":\([-0-9.e]*\).*/\1/p"; }
printf '{user}%s' 'compare {prompt} 1 {completion_a} 2 {completion_b}=' >"$work/question"

# Rows that ask the question of the file above, with the better completion first in every second one. The texts of a line stand
# between its quotes.
questions() {
    awk -F'"' '{ one = $8; two = $12; label = 1
        if (NR % 2) { one = $12; two = $8; label = 2 }
        printf "{\"prompt\":\"compare %s 1 %s 2 %s=\",\"completion\":\"%d\"}\n", $4, one, two, label }'
}

score() { # MODEL
    quiet ./evaluate -c "$1" -i "$work/held_prompts" --reward command -g 16 --num-samples 4 \
        --reward-cmd "data/make_prefs --score --rule $rule" >"$work/figures"
    field reward <"$work/figures"
}

# labels SHARD OPTION...: prints accuracy and log loss of the reward model, and the score after PPO.
labels() {
    data=$1
    shift
    quiet ./train_rm -c "$work/policy" -i "$work/$data" -x 120 -l 1e-3 --seed "$seed" -o "$work/rm" "$@"
    quiet ./evaluate --reward-model "$work/rm" -i "$work/held" >"$work/figures"
    accuracy=$(field accuracy <"$work/figures") loss=$(field log_loss <"$work/figures")
    quiet ./train_ppo -c "$work/policy" --reward-model "$work/rm" -i "$work/prompts" -p 64 -g 16 -x 60 -l 1e-3 --kl-coef 0.1 \
        --sample-count 0 --seed "$seed" -o "$work/ppo"
    reward=$(score "$work/ppo")
    printf ' %s %s %s' "$accuracy" "$loss" "$reward"
}

prefs --count 300 --split heldout | shard held
prefs --format prompt --count 100 --split heldout | shard held_prompts
for seed; do
    prefs --format chat --count 3000 --seed "$seed" | shard answers
    prefs --format prompt --count 1000 --seed "$seed" | shard prompts
    prefs --count "${COMPARISONS:-1000}" --seed $((seed + 100)) | questions | shard questions
    prefs --count 2000 --seed $((seed + 200)) | shard pairs
    quiet ./train_sft --layers 2 --width 64 --context 64 -i "$work/answers" -x 100 --batch-tokens 2048 -l 2e-3 --seed "$seed" \
        -o "$work/policy"
    quiet ./train_sft -c "$work/policy" -i "$work/questions" -x 300 --batch-tokens 4096 -l 3e-3 --seed "$seed" -o "$work/judge"
    quiet ./evaluate --judge "$work/judge" --judge-template "$work/question" -i "$work/pairs" \
        --completions "$work/labelled.jsonl" >"$work/figures"
    printf '%s %s %s' "$seed" "$(field accuracy <"$work/figures")" "$(field single_order_accuracy <"$work/figures")"
    quiet data/pick -i "$work/labelled.jsonl" --pairs p -o "$work/labels.jsonl"
    shard judged <"$work/labels.jsonl"
    reward=$(score "$work/policy")
    printf ' %s' "$reward"
    labels pairs
    labels judged --no-use-margin
    labels judged --soft-labels
    echo
done >"$work/rows"
awk '
    function row(name, x, i) {
        printf "| %s | %.1f | %.1f | %.2f |", name, 100 * x[2], 100 * x[3], x[4]
        for (i = 5; i < 14; i += 3) printf " %.1f | %.3f | %.2f |", 100 * x[i], x[i + 1], x[i + 2]
        print ""
    }
    BEGIN {
        print "| seed | judge, both orders | one | policy | true labels: accuracy | log loss | score | hard | | | soft | | |"
        print "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    }
    { for (i = 1; i <= NF; i++) { x[i] = $i; sum[i] += $i } row($1, x) }
    END {
        for (i = 1; i <= NF; i++) sum[i] /= NR
        row("mean", sum)
        exit !(NR && sum[10] > sum[4] && sum[13] > sum[4])
    }' "$work/rows"
