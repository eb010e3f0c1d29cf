# shellcheck shell=dash disable=SC2154
# Chapter 14: the KL leash.
title "the KL leash"
reward_model
for kl in 0.02 0.1 1; do ppo "$out/kl$kl" -x 60 --kl-coef $kl; done
a=$(last objective/kl "$out/kl0.02.metrics.jsonl") b=$(last objective/kl "$out/kl0.1.metrics.jsonl")
c=$(last objective/kl "$out/kl1.metrics.jsonl")
claim "a stronger penalty keeps the policy nearer to the reference" \
    "KL at the end $(short "$a"), $(short "$b"), $(short "$c") with --kl-coef 0.02, 0.1, 1" "$a > $b && $b > $c"
