# shellcheck shell=dash disable=SC2154
# Chapter 22: verifiers. A reward that checks less than the answer is optimised all the same: here one that only asks for four
# digits in order, whatever the problem.
title "verifiers"
sorted='/^(0 )*(1 )*(2 )*(3 )*(4 )*(5 )*(6 )*(7 )*(8 )*(9 )*[0-9]$/'
grpo "$out/verified" "$start" --max-steps 120 --temperature 0.6
grpo "$out/sloppy" "$start" --max-steps 120 --temperature 0.6 --reward regex="$sorted"
before=$(greedy "$start") verified=$(greedy "$out/verified") sloppy=$(greedy "$out/sloppy")
reward=$(last reward "$out/sloppy.metrics.jsonl")
chosen() { ./evaluate -c "$base" -i "$held" --num-samples 8 --temperature 0.7 --max-new-tokens 12 --slots 128 --reward "$1" >"$2"; }
for check in verify sloppy; do
    stage "$out/best-$check.json" chosen "$([ $check = verify ] && echo verify || echo "regex=$sorted")" "$out/best-$check.json"
done
one=$(percent pass@1 "$out/best-verify.json") best=$(percent best@8 "$out/best-verify.json") worse=$(percent best@8 "$out/best-sloppy.json")
claim "a verifier chooses among samples, as well as it checks" \
    "one of 8 samples: at random right in $one %, by the sloppy check $worse %, by the check of the answer $best %" \
    "$one < $worse && $worse < $best"
claim "a check of the answer teaches the task" "held-out accuracy $before % -> $verified %" "$verified > $before + 10"
claim "a check of something easier is satisfied, and the task is not learned" \
    "reward $(short "$reward"), accuracy $before % -> $sloppy %" "$reward > 0.95 && $sloppy < $verified - 10"
