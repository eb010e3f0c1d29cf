# shellcheck shell=dash disable=SC2154
# Chapter 13: PPO's clip (Schulman et al. 2017). Several passes over the same samples, also with a larger learning rate, with and without it.
title "PPO"
reward_model
# passes MODEL NUMBER STEPS OPTION...: generations of 64 samples, each used NUMBER times.
passes() {
    local to=$1 n=$2 steps=$3
    shift 3
    ppo "$out/$to" --num-ppo-epochs "$n" -x "$steps" --kl-coef 0.1 "$@"
}
passes once 1 14 -l 2e-4
passes often 8 112 -l 2e-4
passes clipped 16 160 -l 1e-3
passes free 16 160 -l 1e-3 --cliprange 1e6
of() { mean "$1" "$out/$2.metrics.jsonl"; }
ratio=$(of val/ratio_var once) clipped=$(of policy/approxkl_avg clipped) free=$(of policy/approxkl_avg free)
claim "samples that are used once have a ratio of 1: nothing can be clipped" "variance of the ratio $(short "$ratio")" "$ratio < 1e-6"
once=$(last objective/scores "$out/once.metrics.jsonl") often=$(last objective/scores "$out/often.metrics.jsonl")
claim "eight passes learn more from the same samples" "score $(short "$once") after one pass, $(short "$often")" "$often > $once + 0.3"
claim "the clip keeps the policy near the one that wrote the samples" \
    "KL between them, mean over the steps: $(short "$clipped"), without the clip $(short "$free")" "$free > 2 * $clipped"
near=$(largest objective/kl "$out/clipped.metrics.jsonl") far=$(largest objective/kl "$out/free.metrics.jsonl")
claim "without it the policy leaves the reference, too" "largest KL $(short "$near"), without the clip $(short "$far")" "$far > 3 * $near"
