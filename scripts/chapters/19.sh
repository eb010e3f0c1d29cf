# shellcheck shell=dash disable=SC2154
# Chapter 19: STaR, self-consistency, rejection sampling.
title "STaR, self-consistency, rejection sampling"
script rft
o=$loops/rft-$seed
before=$(greedy "$start") after=$(percent accuracy "$o/rft.json") control=$(percent accuracy "$o/control.json")
claim "a model improves on its own right samples" "$before % -> $after %" "$after > $before + 5"
claim "it is the choice that teaches" "trained on any samples: $control %" "$after > $control + 5"
