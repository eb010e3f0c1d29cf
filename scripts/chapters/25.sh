# shellcheck shell=dash disable=SC2154
# Chapter 25: recipes.
title "recipes"
script tulu
o=$loops/tulu-$seed
sft=$(percent accuracy "$o/sft.json") after=$(percent accuracy "$o/rlvr.json")
claim "verified rewards add to fine-tuning and preferences" "Tulu 3: SFT $sft %, after DPO and RLVR $after %" "$after > $sft + 3"
script llama3
o=$loops/llama3-$seed last=${ROUNDS:-3}
after=$(figure reward "$o/dpo$last.gold.json") control=$(figure reward "$o/control$last.sft.gold.json")
claim "rounds of rejection sampling gain by DPO in each" \
    "Llama 3: score by the hidden rule $(short "$after"), without DPO $(short "$control")" "$after > $control + 0.2"
