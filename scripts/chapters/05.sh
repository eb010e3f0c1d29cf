# shellcheck shell=dash disable=SC2154
# Chapter 5: supervised fine-tuning.
title "supervised fine-tuning"
stage "$out/new.bin" ./train_sft --layers 2 --width 96 --heads 4 --context 48 -i "$shared/demos.shard" -o "$out/new.bin" -x 1 \
    --batch-tokens 2048 -l 1e-5
before=$(greedy "$out/new") after=$(greedy "$start")
claim "demonstrations teach a task to a model that cannot do it" \
    "held-out accuracy $before % -> $after %" "$after > $before + 20"
