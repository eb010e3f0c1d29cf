# shellcheck shell=dash disable=SC2154
# Chapter 2: likelihood, KL, entropy.
title "likelihood, KL, entropy"
tasks "$out/chat.shard" $((seed * 100 + 3)) 300 --split heldout --format chat
stage "$out/more.bin" ./train_sft -c "$base" -i "$shared/demos.shard" -o "$out/more.bin" -x 40 --batch-tokens 2048 -l 1e-3
apart() { ./evaluate -c "$1" -i "$out/chat.shard" --reference "$2" >"$3"; }
apart "$base" "$base" "$out/same.json" 2>>"$out/log"
apart "$out/more.bin" "$base" "$out/apart.json" 2>>"$out/log"
loss=$(figure loss "$out/apart.json") perplexity=$(figure perplexity "$out/apart.json")
claim "perplexity is exp(loss)" \
    "loss $(short "$loss"), perplexity $(short "$perplexity")" "($perplexity - exp($loss)) ^ 2 < 1e-6"
same=$(figure kl "$out/same.json") kl=$(figure kl "$out/apart.json")
claim "KL(p, p) is 0" "$(short "$same")" "$same ^ 2 < 1e-12"
claim "KL(p, q) is above 0" \
    "$(short "$kl") nats a token between a model and the same model after more training" "$kl > 0.001"
