# shellcheck shell=dash disable=SC2154
# Chapter 23: GRPO.
title "GRPO"
tasks "$out/problems.shard" $((seed * 100 + 6)) 4000
for reward in verify random; do
    stage "$out/$reward.bin" ./train_grpo -c "$base" -i "$out/problems.shard" -o "$out/$reward.bin" --num-prompts 32 \
        --num-generations 8 --max-completion-length 12 --max-steps 150 --reward $reward --temperature 0.6 --learning-rate 7e-4 \
        --warmup-steps 10 --adam-beta2 0.99 --slots 256 --logging-steps 50 --seed "$seed"
done
before=$(greedy "$start") after=$(greedy "$out/verify") control=$(greedy "$out/random")
claim "rewards of checked answers teach without a demonstration" "$before % -> $after %" "$after > $before + 10"
claim "random rewards teach nothing" "$control %" "$control < $before + 5"
