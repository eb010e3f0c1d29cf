#!/bin/sh
# check_losses.sh [SEED...] - learning curves of the losses and advantages of train_grpo that are not TRL's, beside dapo, or of
# prime beside rloo: five seeds, some minutes.
#
# The task is that of scripts/demo.sh, sorting, with four digits and a smaller model: a transformer of two layers is trained
# on worked examples, but stopped while it makes many mistakes; then each method trains it on the reward of the verifier
# alone, with two passes of two mini-batches over each generation, forty in all. Prints, as mean and standard deviation over
# the seeds: the reward over the last ten generations, its difference from that of BASELINE (dapo) with the same seed, the
# greedy accuracy on held-out problems, the probability that one of eight samples is right, and entropy and length at the end.
# METHODS="dapo opo" runs some of the methods; those of doc/ppo.md are "rloo prime prime_coef prime_warmup prime_both".
# OUT=FOLDER keeps the metrics; runs that it has are not made again. SFT_STEPS (110) is the number of steps on the worked
# examples, STEPS (160) that of each method.
#
# GUIDED=1 runs the methods that learn from demonstrations, on a task that the model cannot do by itself: it is fine-tuned to
# sort two digits, and the prompts have three, so that no sample is right. luffy has a demonstration in each group
# (--n-prefix 1), mixed_policy the same without policy shaping, sft_dapo is dapo after fine-tuning on as many demonstrations
# as luffy has. STEPS is 300, with one step for each generation; SFT_STEPS is not used.
set -eu
cd "$(dirname "$0")/.."
make -s train_sft train_grpo train_ppo data/make_tasks >&2
work=${OUT:-$(mktemp -d)}
mkdir -p "$work"
[ -n "${OUT-}" ] || trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- 1 2 3 4 5
tasks() { data/make_tasks --task sort --items 4 --largest 9 "$@" 2>/dev/null; }
all="dapo max_rl pass_k grpo_passk opo gpg optimal_token_baseline dppo clip_cov kl_cov positive_nll"
all="$all gfpo_length gfpo_efficiency reset a2po"
[ -z "${GUIDED-}" ] || all="dapo mixed_policy luffy sft_dapo"
baseline=${BASELINE:-dapo}

options() {
    case $1 in
    dapo | sft_dapo) ;;
    luffy) echo "--n-prefix 1" ;;
    mixed_policy) echo "--n-prefix 1 --off-policy-reshape no_reshape" ;;
    max_rl | grpo_passk | opo | gpg | optimal_token_baseline) echo "--advantage-estimator $1" ;;
    pass_k) echo "--advantage-estimator pass_k --pass-k 4" ;;
    dppo) echo "--loss-type dppo" ;;
    clip_cov) echo "--loss-type clip_cov --clip-cov-ratio 0.02 --clip-cov-lb 0.1" ;;
    kl_cov) echo "--loss-type kl_cov --kl-cov-ratio 0.02" ;;
    positive_nll) echo "--positive-nll-coef 0.1" ;;
    gfpo_length) echo "--num-remains-in-group 4" ;;
    gfpo_efficiency) echo "--num-remains-in-group 4 --group-filter token_efficiency" ;;
    reset) echo "--beta 0.05 --ref-reset-steps 80" ;;
    a2po) echo "--algo a2po" ;;
    rloo) echo "--algo rloo --kl-coef 0" ;;
    prime) echo "--algo prime --prm-learning-rate 7e-4 --beta-train 1" ;;
    prime_coef) echo "--algo prime --prm-learning-rate 7e-4 --beta-train 1 --reward-dpo-coef 1" ;;
    prime_warmup) echo "--algo prime --prm-learning-rate 7e-4 --beta-train 1 --prm-warmup 160 --max-steps 320" ;;
    prime_both) echo "$(options prime_warmup) --reward-dpo-coef 1" ;;
    *) echo "check_losses.sh: $1: unknown" >&2; return 1 ;;
    esac
}

# Trains by a method, with options $3. a2po, of train_ppo, has one completion of each of eight times as many prompts.
improve() {
    program="./train_grpo --num-prompts 16 --num-generations 8 --num-iterations 2 --steps-per-generation 2"
    case $1 in
    a2po) program="./train_ppo --num-prompts 128" ;;
    rloo | prime*) program="./train_ppo --num-prompts 16 --num-generations 8 --num-ppo-epochs 2 --num-mini-batches 2" ;;
    esac
    # shellcheck disable=SC2086
    $program -c "$work/sft-$2.bin" -i "$work/train-$2.shard" -j "$work/heldout-$2.shard" -o "$work/out-$2.bin" \
        --max-completion-length 12 --max-steps "${STEPS:-160}" --temperature 0.6 --learning-rate 7e-4 --warmup-steps 20 \
        --micro-tokens 4096 --slots 128 --eval-steps 1000 --eval-samples 8 --sample-count 0 --seed "$2" \
        --metrics "$work/$1-$2.jsonl" $3
}

# Fine-tunes model $1 on shard $2 for $3 steps, into model $4.
tune() {
    # shellcheck disable=SC2086
    ./train_sft $1 -i "$work/$2.shard" -o "$work/$4.bin" --max-steps "$3" --batch-tokens 1024 --learning-rate 5e-3 \
        --warmup-steps 10 --seed "$seed" 2>"$work/log-$seed"
}

# The models and the prompts of GUIDED=1. 66 steps of 1024 tokens have the 4800 demonstrations of 300 generations.
prepare_guided() {
    data/make_tasks --task sort --items 2 --largest 9 --split all --count 80 --seed $((seed * 10 + 1)) --format chat \
        -o "$work/sft-$seed.shard" 2>"$work/log-$seed"
    three="data/make_tasks --task sort --items 3 --largest 9"
    $three --count 500 --seed $((seed * 10 + 2)) --target-key target -o "$work/train-$seed.shard" 2>"$work/log-$seed"
    $three --count 500 --seed $((seed * 10 + 2)) --format chat -o "$work/demonstrations-$seed.shard" 2>"$work/log-$seed"
    $three --count 80 --seed $((seed * 10 + 3)) --split heldout -o "$work/heldout-$seed.shard" 2>"$work/log-$seed"
    tune "--layers 1 --width 32 --heads 2 --context 24" "sft-$seed" 150 "sft-$seed"
    tune "-c $work/sft-$seed.bin" "demonstrations-$seed" 66 "tuned-$seed"
}

# Trains by a method of GUIDED=1, with options $3.
improve_guided() {
    model=sft
    [ "$1" != sft_dapo ] || model=tuned
    # shellcheck disable=SC2086
    ./train_grpo --num-prompts 16 --num-generations 8 $3 -c "$work/$model-$2.bin" -i "$work/train-$2.shard" \
        -j "$work/heldout-$2.shard" -o "$work/out-$2.bin" --max-completion-length 8 --max-steps "${STEPS:-300}" \
        --learning-rate 3e-3 --micro-tokens 4096 --slots 128 --eval-steps 1000 --eval-samples 8 --sample-count 0 --seed "$2" \
        --metrics "$work/$1-$2.jsonl"
}

# The model and the prompts without GUIDED.
prepare() {
    tasks --count 2000 --seed $((seed * 10 + 1)) --format chat -o "$work/sft-$seed.shard"
    tasks --count 2000 --seed $((seed * 10 + 2)) -o "$work/train-$seed.shard"
    tasks --count 300 --seed $((seed * 10 + 3)) --split heldout -o "$work/heldout-$seed.shard"
    ./train_sft --layers 2 --width 64 --heads 2 --context 32 -i "$work/sft-$seed.shard" -o "$work/sft-$seed.bin" \
        --max-steps "${SFT_STEPS:-110}" --batch-tokens 2048 --learning-rate 3e-3 --warmup-steps 20 --seed "$seed" \
        2>"$work/log-$seed"
}

kind=${GUIDED:+_guided}
for seed; do
    "prepare$kind"
    for method in ${METHODS:-$all}; do
        more=$(options "$method")
        grep -qs '"record":"end"' "$work/$method-$seed.jsonl" && continue
        "improve$kind" "$method" "$seed" "$more" 2>"$work/log-$seed" || { tail -n 1 "$work/log-$seed" >&2; exit 1; }
        echo "seed $seed  $method" >&2
    done
done

# The mean of a key over the last `last` lines that have it, of one run.
value() {
    awk -v key="\"$2\":" -v last="$3" '{
        at = index($0, key)
        if (!at || $0 !~ /^{"step"/) next
        x = substr($0, at + length(key)) + 0
        all[n++] = x
    }
    END {
        from = n > last ? n - last : 0
        for (i = from; i < n; i++) sum += all[i]
        if (n) print sum / (n - from)
    }' "$1"
}

# Mean and standard deviation of numbers, one a line, times $1.
moments() {
    awk -v factor="$1" -v form="$2" '{
        x[n++] = factor * $1
        sum += factor * $1
    }
    END {
        if (!n) {
            printf "-"
            exit
        }
        for (i = 0; i < n; i++) squares += (x[i] - sum / n) ^ 2
        deviation = n > 1 ? sqrt(squares / (n - 1)) : 0
        printf form " ± " form, sum / n, deviation
    }'
}

# Mean and standard deviation of a key over the seeds.
spread() {
    key=$1 last=$2 method=$3 factor=$4 form=$5
    shift 5
    for seed; do value "$work/$method-$seed.jsonl" "$key" "$last"; done | moments "$factor" "$form"
}

# The key of a method's reward or entropy, which train_ppo has under other names.
key() {
    case $1 in
    a2po | rloo | prime*) [ "$2" = reward ] && echo objective/scores || echo policy/entropy_avg ;;
    *) echo "$2" ;;
    esac
}

# Mean and standard deviation of the reward minus that of the baseline with the same seed.
gain() {
    method=$1
    shift
    for seed; do
        [ -f "$work/$baseline-$seed.jsonl" ] || continue
        echo "$(value "$work/$method-$seed.jsonl" "$(key "$method" reward)" 10)" \
            "$(value "$work/$baseline-$seed.jsonl" "$(key "$baseline" reward)" 10)" |
            awk '{ print $1 - $2 }'
    done | moments 100 %.1f
}

echo "| method | options | reward % | minus $baseline's | greedy % | pass@8 % | entropy | length |"
echo "|---|---|---|---|---|---|---|---|"
for method in ${METHODS:-$all}; do
    more=$(options "$method")
    echo "| $method | ${more:+\`$more\`} | $(spread "$(key "$method" reward)" 10 "$method" 100 %.1f "$@") |" \
        "$(gain "$method" "$@") | $(spread eval_accuracy 1 "$method" 100 %.1f "$@") |" \
        "$(spread eval_pass@8 1 "$method" 100 %.1f "$@") |" \
        "$(spread "$(key "$method" entropy)" 10 "$method" 1 %.3f "$@") |" \
        "$(spread completions/mean_length 10 "$method" 1 %.2f "$@") |"
done
