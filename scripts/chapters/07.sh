# shellcheck shell=dash disable=SC2154
# Chapter 7: what comparisons say (Bradley and Terry 1952). A comparison is right with probability sigmoid(difference of two scores);
# chapter 8 goes on with the reward model.
title "comparisons"
rm_of() { # MODEL PAIRS: a reward model of PAIRS.shard
    stage "$out/$1.bin" ./train_rm -c "$letters/policy.bin" -i "$2.shard" --per-device-train-batch-size 32 -x 200 -l 5e-4 --seed "$seed" \
        -o "$out/$1.bin" --metrics "$out/$1.metrics.jsonl"
}
judged() { ./evaluate --reward-model "$1" -i "$2" >"$3"; }
policy
letters unsure --count 6000 --temperature 1
letters unsure-val --count 2000 --split heldout --temperature 1 --seed $((seed + 100))
letters sure-val --count 2000 --split heldout --seed $((seed + 100))
rm_of unsure "$letters/unsure"
for val in unsure sure; do
    stage "$out/$val.json" judged "$out/unsure.bin" "$letters/$val-val.shard" "$out/$val.json"
done
right=$(awk -F'"' '# the share of comparisons that agree with the scores: letters a, less a quarter of the length
    function score(s,   n) { n = gsub(/a/, "a", s); return n - length(s) / 4 }
    { x = score($8) - score($12); if (x) { n++; good += x > 0 } } END { printf "%.1f", 100 * good / n }' "$letters/unsure.jsonl")
true=$(percent accuracy "$out/sure.json") noisy=$(percent accuracy "$out/unsure.json") ece=$(percent ece "$out/unsure.json")
claim "a model of many unsure comparisons orders answers better than the comparisons do" \
    "comparisons that are right $right %, the model $true %" "$true > $right + 5"
claim "no model agrees with new comparisons more often than these are right" "$noisy %" "$noisy < $right + 3"
claim "its probabilities are true: of pairs to which it gives p, p come out so" "expected calibration error $ece %" "$ece < 6"
