# shellcheck shell=dash disable=SC2154
# Chapter 9: InstructGPT: SFT, a reward model, PPO.
title "InstructGPT: SFT, a reward model, PPO"
reward_model
ppo "$out/ppo" -x 100 --kl-coef 0.1
before=$(gold "$letters/policy") after=$(gold "$out/ppo")
claim "PPO against a reward model raises what the preferences stand for" \
    "score by the hidden rule $(short "$before") -> $(short "$after")" "$after > $before + 0.5"
