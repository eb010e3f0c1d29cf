#!/bin/sh
# check_dpo.sh - end-to-end check of what train_dpo learns, over three seeds: a few minutes.
#
#   every loss     win rate of its samples against the SFT model's by the rule that made the labels, where ties count half;
#                  reward accuracy and log-ratios on held-out pairs
#   ipo, sigmoid   margin of log-ratios over time on eight pairs without noise: that of ipo stays at 1 / (2 beta)
#   kto            the same win rate after training on unpaired completions
#   online         the same win rate, and the mean score of the policy's own completions in the first and the last step
#
#     dev/check_dpo.sh [SEED...]
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s train_sft train_dpo generate data/make_prefs data/make_shard >&2

. dev/win_rate.sh

value() { grep '^{"step"' "$work/m.jsonl" | tail -n 1 | sed -n "s|.*\"$1\":\([-0-9.eE+]*\).*|\1|p"; }
train() { # LOSS OPTIONS...: writes $work/out.bin and $work/m.jsonl
    loss=$1
    shift
    rm -f "$work/m.jsonl"
    quiet ./train_dpo -c "$work/sft.bin" --seed "$seed" -l 1e-4 --warmup-steps 10 --per-device-train-batch-size 16 \
        -x 80 -o "$work/out.bin" --loss-type "$loss" --metrics "$work/m.jsonl" "$@"
}

printf '%4s %-36s %8s %10s %10s %10s\n' seed loss "wins %" "held-out %" chosen rejected
for seed in "${@:-1 2 3}"; do for seed in $seed; do
    prefs --count 400 --seed "$seed" | shard prefs
    prefs --count 200 --seed "10$seed" | shard held
    prefs --count 400 --seed "$seed" --format unpaired | shard labels
    prefs --count 64 --seed "$seed" --format prompt | shard prompts 2>/dev/null
    prefs --count 8 --seed "$seed" | shard few
    sft_model "$seed"
    for loss in sigmoid sigmoid_norm hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero \
        apo_down discopop dpop orpo simpo cpo sigmoid,sft; do
        more=
        case $loss in exo_pair) more="--label-smoothing 0.001" ;; robust) more="--label-smoothing 0.1" ;;
        sigmoid_norm | simpo) more="--beta 1" ;; ipo) more="--beta 0.5" ;; esac
        train "$loss" -i "$work/prefs.shard" -j "$work/held.shard" --eval-steps 80 $more
        printf '%4s %-36s %8.1f %10.1f %10.6s %10.6s\n' "$seed" "$loss $more" "$(win_rate "$work/out.bin")" \
            "$(value eval_rewards/accuracies | awk '{ print 100 * $1 }')" "$(value eval_logratios/chosen)" \
            "$(value eval_logratios/rejected)"
    done
    train kto -i "$work/labels.shard" --desirable-weight 3
    printf '%4s %-36s %8.1f\n' "$seed" kto "$(win_rate "$work/out.bin")"
    for loss in sigmoid ipo_sum; do
        rm -f "$work/m.jsonl"
        quiet ./train_dpo -c "$work/sft.bin" --seed "$seed" -i "$work/few.shard" --per-device-train-batch-size 8 \
            -l 2e-3 --lr-scheduler-type constant --beta 0.5 -x 200 -o "$work/out.bin" --loss-type $loss --metrics "$work/m.jsonl"
        sed -n 's/.*"rewards\/margins":\([-0-9.eE+]*\).*/\1/p' "$work/m.jsonl" | awk -v s="$seed" -v l="$loss" '
            NR == 50 || NR == 100 || NR == 200 { m = m sprintf(" %7.2f", 2 * $1) }
            END { printf "%4s %-36s margin of log-ratios after 50, 100, 200 steps:%s\n", s, l " on 8 pairs", m }'
    done
    for way in online_dpo xpo nash_md; do
        rm -f "$work/m.jsonl"
        quiet ./train_dpo -c "$work/sft.bin" --seed "$seed" -i "$work/prompts.shard" --online --online-loss $way \
            --reward-cmd 'data/make_prefs --score --rule char=a' --per-device-train-batch-size 16 -x 60 -l 1e-3 -g 6 \
            --sample-count 0 -o "$work/out.bin" --metrics "$work/m.jsonl"
        printf '%4s %-36s %8.1f   score: first %.2f, last %.2f\n' "$seed" "$way" "$(win_rate "$work/out.bin")" \
            "$(grep -m 1 '^{"step"' "$work/m.jsonl" | sed -n 's|.*"objective/scores":\([-0-9.eE+]*\).*|\1|p')" \
            "$(value objective/scores)"
    done
done; done
