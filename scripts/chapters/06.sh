# shellcheck shell=dash disable=SC2154
# Chapter 6: Self-Instruct.
title "Self-Instruct"
script self-instruct
o=$loops/self-instruct-$seed
before=$(percent accuracy "$o/base.json") after=$(percent accuracy "$o/instructed.json") control=$(percent accuracy "$o/control.json")
claim "a model learns to follow instructions from those that it wrote itself" "$before % -> $after %" "$after > $before + 50"
claim "more than from the seeds alone" "SFT on the 20 seeds: $control %" "$after > $control + 20"
