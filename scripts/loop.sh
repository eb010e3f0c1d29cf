# shellcheck shell=dash
# loop.sh - what the scripts of loops (generate, judge, pick, retrain) share; they read it by `. scripts/loop.sh`.
#
# The toy task of all of them is to sort four digits; a hundred answers take a tenth of a second of a processor. The base
# model is trained on a few thousand demonstrations, and stopped while it still makes many mistakes. A fifth of its
# demonstrations have a prompt that ends with the answer in parentheses, so that it can use a hint. Everything is written to
# loops/ (or $LOOP_OUT): a folder for each script and seed, with its log. Environment, with defaults for the toy task:
#
#   ROUNDS           rounds of a script that has them, with a default of its own
#   PROBLEMS         problems of a round, or prompts (1000)
#   SAMPLES          samples of a problem (4)
#   STEPS            steps of SFT or DPO in a round (60)
#   BASE_STEPS       steps of the base model's training (110)
#   SHOWN            demonstrations that the base model is trained on (4000)
#   HELDOUT          problems of the evaluation (300)
#   ANSWER_TOKENS    most tokens of an answer (12; with LOOP_MODEL 32)
#   SFT_RATE         learning rate of SFT (1e-3; with LOOP_MODEL 5e-4, also for the base)
#   DPO_RATE         learning rate of DPO (3e-4; with LOOP_MODEL 5e-5)
#   RL_RATE          learning rate of tulu.sh's reinforcement learning (5e-4; with LOOP_MODEL 3e-4)
#   NGRAM            words of an n-gram that tulu.sh's training data and its evaluation must not share (5; with LOOP_MODEL 13)
#
# LOOP_MODEL=FILE runs star.sh and tulu.sh with a real model, by adapters of rank 16 that each output has in its weights, in bfloat16.
# The task is then word problems of one step in the form of GSM8K, and the base is this model after a few demonstrations.
#
# A script that reads this file can set LOOP_NAME, the name of its folder (default: that of the script), and LOOP_BASE=own if it makes
# its base model itself. A default that it sets before it reads this file replaces the one above.
#
# A stage that is complete is skipped when a script runs again. It runs again if its command or one of its input files changed.
set -eu
name=${LOOP_NAME:-$(basename "$0" .sh)}
seed=${1:-1}
case $seed in *[!0-9]*) printf '%s: %s: the seed must be a whole number\n' "$name" "$seed" >&2; exit 2 ;; esac
if [ $# -gt 1 ]; then printf '%s: %s: unexpected argument, expected at most a seed\n' "$name" "$2" >&2; exit 2; fi
loops=${LOOP_OUT:-loops}
out=$loops/$name-$seed
: "${LOOP_MODEL:=}" "${PROBLEMS:=1000}" "${SAMPLES:=4}" "${STEPS:=60}" "${BASE_STEPS:=110}" "${SHOWN:=4000}" "${HELDOUT:=300}"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"
mkdir -p "$out"
: >"$out/log"
say() { printf '%s\n' "$*"; }

case $LOOP_MODEL,$name in
,* | *,star | *,tulu) ;;
*) printf '%s: LOOP_MODEL: only star.sh and tulu.sh run with a real model\n' "$name" >&2; exit 2 ;;
esac
# ext: of the files of models; training and sampling: options of all trainers and samplers. Problems in words share most of their
# words, so that only long n-grams show that a problem is the same.
if [ -n "$LOOP_MODEL" ]; then
    ext=.safetensors training='--lora-rank 16 --dtype bf16 --micro-tokens 1024' sampling='--dtype bf16' task='--task word --level 1'
    : "${SFT_RATE:=5e-4}" "${DPO_RATE:=5e-5}" "${RL_RATE:=3e-4}" "${ANSWER_TOKENS:=32}" "${NGRAM:=13}"
else
    ext=.bin training='' sampling='' task='--task sort --items 4 --largest 9'
    : "${SFT_RATE:=1e-3}" "${DPO_RATE:=3e-4}" "${RL_RATE:=5e-4}" "${ANSWER_TOKENS:=12}" "${NGRAM:=5}"
fi

# stage OUTPUT COMMAND...: runs the command, which writes OUTPUT, unless the same command has written it from the same files.
stage() {
    local made=$1 key
    shift
    key=$(for word; do
        printf '%s\n' "$word"
        case $word in "$made" | *.metrics.jsonl) ;; *) [ ! -f "$word" ] || cksum <"$word" ;; esac
    done | cksum)
    [ -e "$made" ] && [ "$(cat "$made.key" 2>/dev/null)" = "$key" ] && return
    printf '+ %s\n' "$*" >>"$out/log"
    "$@" >>"$out/log" 2>&1 || { printf '%s: a stage failed: %s\n' "$name" "$*" >&2; tail -n 3 "$out/log" >&2; exit 1; }
    printf '%s' "$key" >"$made.key"
}

# tasks OUTPUT SEED COUNT [OPTION...]: problems of the task.
tasks() {
    local made=$1 first=$2 count=$3 rows=$1
    shift 3
    case $LOOP_MODEL,$made in ?*,*.shard) rows=${made%.shard}.jsonl ;; esac
    # shellcheck disable=SC2086
    stage "$rows" ./data/make_tasks $task --seed "$first" --count "$count" "$@" -o "$rows"
    [ "$rows" = "$made" ] || stage "$made" ./data/make_shard -i "$rows" -o "$made" --model "$LOOP_MODEL"
}

# shard ROWS: makes ROWS.shard of ROWS.jsonl, with the tokenizer and the template of the base model.
shard() { stage "$1.shard" ./data/make_shard -i "$1.jsonl" -o "$1.shard" --model "$base" --skip-bad; }

# sft MODEL FROM ROWS [OPTION...]: fine-tunes the model FROM on ROWS.jsonl.
sft() {
    local to=$1 from=$2 rows=$3
    shift 3
    shard "$rows"
    # shellcheck disable=SC2086
    stage "$to$ext" ./train_sft -c "$from$ext" -i "$rows.shard" -o "$to$ext" --max-steps "$STEPS" --batch-tokens 1536 $training \
        --learning-rate "$SFT_RATE" --warmup-steps 5 --logging-steps 20 --metrics "$to.metrics.jsonl" --seed "$seed" "$@"
}

# dpo MODEL FROM ROWS [OPTION...]: trains FROM on the pairs of ROWS.jsonl, with FROM as the reference.
dpo() {
    local to=$1 from=$2 rows=$3
    shift 3
    shard "$rows"
    # shellcheck disable=SC2086
    stage "$to$ext" ./train_dpo -c "$from$ext" -i "$rows.shard" -o "$to$ext" --max-steps "$STEPS" $training \
        --per-device-train-batch-size 32 --learning-rate "$DPO_RATE" --warmup-steps 5 --logging-steps 20 \
        --metrics "$to.metrics.jsonl" --seed "$seed" "$@"
}

# complete ROWS MODEL PROBLEMS OPTION...: completes a file of problems.
complete() {
    local rows=$1 model=$2 from=$3
    shift 3
    # shellcheck disable=SC2086
    stage "$rows.jsonl" ./generate -c "$model$ext" -i "$from" -o "$rows.jsonl" --max-new-tokens "$ANSWER_TOKENS" --slots 128 \
        $sampling "$@"
}

# samples ROWS MODEL PROBLEMS REWARD: draws SAMPLES completions of each problem and scores them.
samples() { complete "$1" "$2" "$3" --num-samples "$SAMPLES" --temperature 0.7 --seed "$seed" --reward "${4:-verify}"; }

pick() { local rows=$1; shift; stage "$rows.jsonl" ./data/pick -o "$rows.jsonl" "$@"; }

measure() {
    # shellcheck disable=SC2086
    ./evaluate -c "$1" -i "$held" --num-samples 8 --temperature 0.7 --max-new-tokens "$ANSWER_TOKENS" --slots 128 $sampling \
        >"${1%"$ext"}.json"
}
figure() { sed -n "s/.*\"$1\":\([-0-9.e]*\).*/\1/p" "$2"; } # figure KEY FILE: a number of a JSON object

# sizes [ROWS]: sets count to the number of rows of ROWS.jsonl and distinct to that of different ones; without ROWS both to -.
sizes() {
    count=- distinct=-
    [ $# -gt 0 ] || return 0
    count=$(wc -l <"$1.jsonl")
    distinct=$(sort -u "$1.jsonl" | wc -l)
}
table() { printf '%-28s %9s %7s %7s %7s %9s %8s\n' "$1" greedy pass@1 pass@8 length rows distinct; }
# row LABEL MODEL [ROWS]: a line of the table: greedy accuracy and pass@8 on held-out problems, the rows that the model was
# trained on, and how many of these are distinct.
row() {
    stage "$2.json" measure "$2$ext"
    local count distinct
    sizes ${3:+"$3"}
    printf '%-28s %7s %% %5s %% %5s %% %7.1f %9s %8s\n' "$1" "$(percent accuracy "$2.json")" \
        "$(percent pass@1 "$2.json")" "$(percent pass@8 "$2.json")" "$(figure mean_length "$2.json")" "$count" "$distinct"
}
percent() { awk "BEGIN { printf \"%.1f\", 100 * $(figure "$1" "$2") }"; } # percent KEY FILE

# page: one HTML page over the rounds, from the metrics of all trainings.
page() {
    set -- "$out"/*.metrics.jsonl
    [ -e "$1" ] && ./data/show --report "$out/report.html" "$@" >/dev/null 2>>"$out/log" && say "curves: $out/report.html"
}

# ---- the base model, which the scripts of one seed share, unless one has LOOP_BASE=own ----
[ "${LOOP_BASE:-}" != own ] || return 0
shared=$loops/base-$seed
mkdir -p "$shared"
start=$shared/base base=$shared/base$ext
held=$shared/heldout.shard
tasks "$held" $((seed * 100 + 3)) "$HELDOUT" --split heldout
tasks "$shared/shown.jsonl" $((seed * 100 + 1)) "$SHOWN" --format chat
tasks "$shared/answers.jsonl" $((seed * 100 + 1)) "$SHOWN"
pick "$shared/hints" -i "$shared/shown.jsonl" --join "$shared/answers.jsonl" --on prompt --set 'prompt={prompt}({answer})' \
    --as sft --sample $((SHOWN / 4))
pick "$shared/demos" -i "$shared/shown.jsonl" -i "$shared/hints.jsonl" --as sft --shuffle
if [ -n "$LOOP_MODEL" ]; then
    stage "$shared/demos.shard" ./data/make_shard -i "$shared/demos.jsonl" -o "$shared/demos.shard" --model "$LOOP_MODEL"
    # shellcheck disable=SC2086
    stage "$base" ./train_sft -c "$LOOP_MODEL" -i "$shared/demos.shard" -o "$base" --max-steps "$BASE_STEPS" --batch-tokens 1536 \
        $training --learning-rate "$SFT_RATE" --warmup-steps 5 --logging-steps 5 --seed "$seed"
else
    stage "$shared/demos.shard" ./data/make_shard -i "$shared/demos.jsonl" -o "$shared/demos.shard" --template plain
    stage "$base" ./train_sft --layers 2 --width 96 --heads 4 --context 48 -i "$shared/demos.shard" -o "$base" \
        --max-steps "$BASE_STEPS" --batch-tokens 2048 --learning-rate 2e-3 --warmup-steps 10 --logging-steps 50 --seed "$seed"
fi
