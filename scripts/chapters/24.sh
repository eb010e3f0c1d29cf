# shellcheck shell=dash disable=SC2154
# Chapter 24: refinements of GRPO, each from the same base. Those that make two steps on each generation make more of them.
title "DAPO, Dr. GRPO, GSPO, CISPO"
refined() { # NAME OPTION...: sets after
    local name=$1
    shift
    grpo "$out/$name" "$start" --temperature 0.6 "$@"
    after=$(greedy "$out/$name")
}
zero() { mean frac_reward_zero_std "$out/$1.metrics.jsonl"; }
before=$(greedy "$start")
refined grpo --max-steps 150 --loss-type grpo
grpo=$after wasted=$(zero grpo)
claim "GRPO" "$before % -> $grpo %" "$grpo > $before + 10"
claim "a part of its groups has equal rewards, and no gradient" "$(short "$wasted") of the completions" "$wasted > 0.02"
refined dapo --max-steps 160 --num-iterations 2 --loss-type dapo --dynamic-sampling --max-resamples 100 --epsilon 0.2 --epsilon-high 0.28
kept=$(zero dapo)
claim "DAPO replaces them" "$(short "$kept") are left; $before % -> $after %" "$kept < 0.001 && $after > $before + 10"
refined dr_grpo --max-steps 150 --loss-type dr_grpo --scale-rewards none
claim "Dr. GRPO divides neither by lengths nor by deviations" "$before % -> $after %" "$after > $before + 10"
refined gspo --max-steps 240 --num-iterations 2 --loss-type gspo
claim "GSPO has one ratio for a completion" "$before % -> $after %" "$after > $before + 10"
refined cispo --max-steps 240 --num-iterations 2 --loss-type cispo
claim "CISPO clips the weight of a token and keeps its gradient" "$before % -> $after %" "$after > $before + 10"
