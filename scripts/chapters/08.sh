# shellcheck shell=dash disable=SC2154
# Chapter 8: comparisons and reward models.
title "comparisons and reward models"
reward_model
letters noisy --count 3000 --flip 0.3
stage "$out/noisy.bin" ./train_rm -c "$letters/policy.bin" -i "$letters/noisy.shard" --per-device-train-batch-size 32 -x 150 \
    -l 1e-3 --seed "$seed" -o "$out/noisy.bin"
./evaluate --reward-model "$letters/rm.bin" -i "$letters/prefs-val.shard" >"$out/rm.json" 2>>"$out/log"
./evaluate --reward-model "$out/noisy.bin" -i "$letters/prefs-val.shard" >"$out/noisy.json" 2>>"$out/log"
clean=$(percent accuracy "$out/rm.json") noisy=$(percent accuracy "$out/noisy.json")
claim "a model learns from comparisons alone which completion is better" "held-out accuracy $clean %" "$clean > 80"
claim "wrong labels cost accuracy, less than their share" \
    "with 30 % of the labels flipped $noisy %" "$noisy < $clean && $noisy > 60"
