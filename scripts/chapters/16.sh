# shellcheck shell=dash disable=SC2154
# Chapter 16: what goes wrong in DPO, and IPO (Azar et al. 2023, arXiv 2310.12036): eight pairs that are learned by heart.
title "DPO by heart, and IPO"
policy
letters few --count 8 --seed $((seed + 200))
# pairs MODEL ROWS OPTION...
pairs() {
    local to=$out/$1 rows=$2
    shift 2
    stage "$to.bin" ./train_dpo -c "$letters/policy.bin" -i "$letters/$rows.shard" -o "$to.bin" --warmup-steps 10 --seed "$seed" \
        --metrics "$to.metrics.jsonl" "$@"
}
for steps in 100 600; do
    pairs dpo$steps few -x $steps -l 5e-4 --lr-scheduler-type constant --beta 0.1
    pairs ipo$steps few -x $steps -l 5e-4 --lr-scheduler-type constant --beta 0.5 --loss-type ipo_sum
done
pairs plain prefs -x 100 -l 3e-4
pairs anchored prefs -x 100 -l 3e-4 --loss-type sigmoid,sft --loss-weights 1,1
# margin MODEL BETA: of the log-ratios, at the end.
margin() { awk "BEGIN { print $(last rewards/margins "$out/$1.metrics.jsonl") / $2 }"; }
d1=$(margin dpo100 0.1) d6=$(margin dpo600 0.1) i1=$(margin ipo100 0.5) i6=$(margin ipo600 0.5)
claim "the margin of DPO's log-ratios grows as long as it is trained" "after 100, 600 steps $(short "$d1"), $(short "$d6")" "$d6 > 1.15 * $d1"
claim "that of IPO stops at 1 / (2 beta), here 1" "$(short "$i1"), $(short "$i6")" "($i1 - 1) ^ 2 < 0.04 && ($i6 - 1) ^ 2 < 0.01"
plain=$(last logratios/chosen "$out/plain.metrics.jsonl") anchored=$(last logratios/chosen "$out/anchored.metrics.jsonl")
claim "DPO makes the chosen answers less likely, too, if they resemble the rejected ones" \
    "log-ratio of the chosen answers $(short "$plain")" "$plain < 0"
claim "the SFT loss beside it prevents most of that" "$(short "$anchored")" "$anchored > $plain / 3"
