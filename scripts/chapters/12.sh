# shellcheck shell=dash disable=SC2154
# Chapter 12: baselines, advantages, GAE (Schulman et al. 2016). At a policy that stands still all unbiased estimators have the same
# mean, so the mean square of the gradient compares their variances.
title "baselines and advantages"
# 20 estimates of 256 samples each, also with a reward that is 1 too large: 2 if the answer is right, else 1.
shifted="--reward verify:1,random=1:1"
still "$out/none" -p 64 -G 4 -x 20 --baseline none
still "$out/mean" -p 64 -G 4 -x 20
# shellcheck disable=SC2086
still "$out/none-shifted" -p 64 -G 4 -x 20 --baseline none $shifted
# shellcheck disable=SC2086
still "$out/mean-shifted" -p 64 -G 4 -x 20 $shifted
# A critic of the score of letters, about which a prefix says something. Few samples: nearly all of the square is variance.
reward_model
critic() { # MODEL CRITIC LAMBDA PROMPTS STEPS
    stage "$out/$1.bin" ./train_ppo -c "$letters/policy.bin" --reward-model "$letters/rm.bin" -i "$letters/prompts.shard" -o "$out/$1.bin" \
        --kl-coef 0 -p "$4" -g 16 -l 1e-30 --temperature 1 --slots 256 --sample-count 0 --num-ppo-epochs 4 --whiten-advantages no --lam "$3" \
        --lam-critic 1 --critic "$2.bin" --critic-learning-rate 1e-3 --cliprange-value 0 --warmup-steps 10 -x "$5" --seed "$seed" \
        --critic-output "$out/$1.critic.bin" --metrics "$out/$1.metrics.jsonl"
}
critic learns "$letters/policy" 1 64 320
for lambda in 1 0.7 0; do critic gae$lambda "$out/learns.critic" $lambda 4 800; done
none=$(square none) mean=$(square mean) none_shifted=$(square none-shifted) mean_shifted=$(square mean-shifted)
claim "without a baseline, a constant that is added to all rewards is noise" \
    "mean square of the gradient $(short "$none"), with 1 more $(short "$none_shifted")" "$none_shifted > 2 * $none"
claim "with one it changes nothing" "$(short "$mean"), with 1 more $(short "$mean_shifted")" "($mean_shifted / $mean - 1) ^ 2 < 1e-4"
claim "so a baseline lowers the variance where rewards are far from 0" "$(short "$mean_shifted") instead of $(short "$none_shifted")" \
    "$mean_shifted < $none_shifted / 2"
g1=$(square gae1) g7=$(square gae0.7) g0=$(square gae0) known=$(last critic/vf_explained_var "$out/learns.metrics.jsonl")
claim "a critic learns what to expect of a prefix" "it explains $(short "$known") of the variance of the returns" "$known > 0.3"
claim "GAE with lambda below 1 gives up some truth for less variance" \
    "with lambda 1, 0.7, 0: $(short "$g1"), $(short "$g7"), $(short "$g0")" "$g7 < 0.8 * $g1 && $g0 < 0.8 * $g1"
