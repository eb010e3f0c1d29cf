# shellcheck shell=dash disable=SC2154
# Chapter 23: GRPO.
title "GRPO"
for reward in verify random; do
    grpo "$out/$reward" "$start" --max-steps 150 --reward $reward --temperature 0.6
done
before=$(greedy "$start") after=$(greedy "$out/verify") control=$(greedy "$out/random")
claim "rewards of checked answers teach without a demonstration" "$before % -> $after %" "$after > $before + 10"
claim "random rewards teach nothing" "$control %" "$control < $before + 5"
