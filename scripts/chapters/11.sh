# shellcheck shell=dash disable=SC2154
# Chapter 11: REINFORCE (Williams 1992). The gradient of the mean reward is estimated from samples; at a policy that stands still
# (a learning rate of 1e-30) the square of its norm is that of the true gradient and the variance of the estimate.
title "the policy gradient"
still "$out/many" -p 512 -x 12
still "$out/few" -p 32 -x 60
stage "$out/learned.bin" ./train_ppo -c "$base" -i "$out/problems.shard" -o "$out/learned.bin" --algo reinforce --kl-coef 0 -p 256 -g 12 \
    -x 120 -l 7e-4 --warmup-steps 10 --adam-beta2 0.99 --temperature 0.7 --slots 256 --sample-count 0 --seed "$seed" \
    --metrics "$out/learned.metrics.jsonl"
before=$(greedy "$start") after=$(greedy "$out/learned") few=$(square few) many=$(square many)
claim "rewards of its own samples teach a model, without one demonstration" "$before % -> $after %" "$after > $before + 10"
# E|g|^2 = G + V / n: two sample sizes give the variance V of one sample and the square G of the true gradient.
claim "a sample's gradient is mostly noise: sixteen times as many have a far smaller one" \
    "mean square of the gradient with 32 samples $(short "$few"), with 512 $(short "$many")" "$few > 3 * $many"
share=$(awk "BEGIN { v = ($few - $many) / (1 / 32 - 1 / 512); g = $many - v / 512; print 100 * g / (g + v) }")
claim "of one sample's squared gradient, the true gradient is a small part" "$(short "$share") %" "$share < 10"
