# shellcheck shell=dash disable=SC2154
# Chapter 18: online and iterative preference learning.
title "online and iterative preference learning"
script iterative-dpo
o=$loops/iterative-dpo-$seed last=${ROUNDS:-3}
before=$(greedy "$start") after=$(percent accuracy "$o/dpo$last.json") control=$(percent accuracy "$o/control$last.json")
claim "rounds of DPO on the model's own verified samples improve it" "$before % -> $after %" "$after > $before + 5"
claim "it is the order of the pairs that teaches" "pairs in random order: $control %" "$after > $control + 5"
