# shellcheck shell=dash disable=SC2154
# Chapter 15: DPO.
title "DPO"
policy
stage "$out/dpo.bin" ./train_dpo -c "$letters/policy.bin" -i "$letters/prefs.shard" -x 100 -l 1e-4 --warmup-steps 10 \
    --seed "$seed" -o "$out/dpo.bin" --metrics "$out/dpo.metrics.jsonl"
before=$(gold "$letters/policy") after=$(gold "$out/dpo")
claim "preferences train a policy without a reward model" \
    "score by the hidden rule $(short "$before") -> $(short "$after")" "$after > $before + 0.3"
