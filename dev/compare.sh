#!/bin/sh
# compare.sh TOPIC... - benchmarks of this project's programs and their peers, in turn, on an otherwise idle machine.
#
#   train, train-bf16         a step of GPT-2 124M, B=4 T=256: PyTorch, eager (bf16: autocast, float32 weights on both sides)
#   generate, generate-bf16   GPT-2 124M, 32 sequences, 32 + 64 tokens: transformers' generate with its cache
#   grpo, grpo-bf16           6 layers, width 384, 8 prompts x 8 samples, 32 + 64 tokens: TRL's GRPOTrainer
#   rm, rm-bf16               6 layers, width 384, 8 pairs, prompts of 256, completions of 16 to 96 tokens: TRL's RewardTrainer
#   dpo, dpo-bf16             the same pairs, a reference model on both sides: TRL's DPOTrainer
#   rloo, rloo-bf16           the same model and samples with a reference model: TRL's RLOOTrainer
#   train-smollm2             train with SmolLM2-135M's shape; train-smollm2-bf16 likewise
#   lora-smollm2              the same step for adapters of rank 16: PEFT; lora-smollm2-bf16 likewise
#   sft-smollm2               SmolLM2-135M's shape, 4 rows of a prompt and a completion: TRL's SFTTrainer; sft-smollm2-bf16
#                             likewise, and sft-lora-smollm2 and sft-lora-smollm2-bf16 for adapters of rank 16
#   generate-smollm2          generate with SmolLM2-135M's shape; generate-smollm2-bf16 likewise
#   grpo-smollm2              grpo with SmolLM2-135M's shape, 4 prompts x 8 samples; grpo-smollm2-bf16 likewise
#   llama-cpp                 decode of one sequence, greedy, from the same GGUF file, for each file of $GGUF, or for
#                             SmolLM2-135M in Q4_1 (dev/real_model.sh), F16 and Q8_0: llama.cpp, with its defaults
#   turns                     6 layers, width 384, 128 completions of 4 turns with tools that answer after 0.1 s (mean): the tool
#                             loop of TRL's GRPOTrainer. Prints seconds, and the share of them in which the model computes
#   tokenizer                 GPT-2's BPE: tiktoken
#   all                       all of these
#
# The peers are installed from PyPI (dev/requirements.txt) into a virtual environment, which is created if it is missing:
# PEERS_VENV, or ~/.cache/llmc-peers if that is not set. Both sides have OMP_NUM_THREADS threads, by
# default one for each core. The script runs make first. It prints one line per topic with the results of both sides and their
# ratio.
set -eu
cd "$(dirname "$0")/.."
venv=${PEERS_VENV:-$HOME/.cache/llmc-peers}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
threads=${OMP_NUM_THREADS:-$(nproc)}

python() {
    if [ ! -x "$venv/bin/python" ]; then
        echo "compare.sh: creating $venv from dev/requirements.txt" >&2
        python3 -m venv "$venv" && "$venv/bin/pip" install -q -r dev/requirements.txt >&2
    fi
    "$venv/bin/python" "$@" 2>"$work/peer.log" || { cat "$work/peer.log" >&2; exit 1; }
}

peer() { python "$@" --threads "$threads" >"$work/peer.out" && tail -n 1 "$work/peer.out"; }

field() { printf '%s' "$1" | sed -n "s/.*\"$2\": *\([0-9.eE+-]*\).*/\1/p"; }

# The share of the arithmetic peak that this project's side reaches, if it is known, also gives the highest ratio that this
# processor allows.
row() { # TOPIC UNIT OURS PEERS OUR_MEMORY PEERS_MEMORY [SHARE]
    awk -v t="$1" -v u="$2" -v a="$3" -v b="$4" -v m="$5" -v n="$6" -v s="${7-}" 'BEGIN {
        printf "%-14s ours %9.4g %s (%s MiB)   peer %9.4g %s (%s MiB)   %.2f times", t, a, u, m, b, u, n, a / b
        if (s) printf "; ours is at %.0f %% of the arithmetic peak, where it would be %.2f times", 100 * s, a / b / s
        print "" }'
}

rate() { # TOPIC OURS PEER: each side is a JSON line with tokens_per_second and peak_rss_mib
    row "$1" tokens/s "$(field "$2" tokens_per_second)" "$(field "$3" tokens_per_second)" \
        "$(field "$2" peak_rss_mib)" "$(field "$3" peak_rss_mib)" "$(field "$2" share_of_peak)"
}

steps_rate() { # of $topic, whose steps/s are $ours and whose peer's JSON line is $theirs
    row "$topic" steps/s "$ours" "$(field "$theirs" steps_per_second)" "$(cat "$work/rss")" \
        "$(field "$theirs" peak_rss_mib)" "$(cat "$work/share")"
}

# Prints the median of a metric's values after the first two steps.
median() { # METRIC
    sed -n "s|.*\"$1\":\([0-9.eE+-]*\).*|\1|p" "$work/m.jsonl" | tail -n +3 | sort -n |
        awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

# Runs a trainer: writes its peak memory in MiB to $work/rss, its share of the arithmetic peak to $work/share, and prints the
# steps/s of the median step after the first two.
trainer() { # PROGRAM OPTIONS...
    "$@" -o /dev/null --metrics "$work/m.jsonl" 2>"$work/ours.log" || { cat "$work/ours.log" >&2; exit 1; }
    awk '/^peak memory/ { scale["kB"] = 1e3; scale["MB"] = 1e6; scale["GB"] = 1e9; sub(",", "", $4)
        printf "%.0f\n", $3 * scale[$4] / 1048576 }' "$work/ours.log" >"$work/rss"
    median perf/share_of_peak >"$work/share"
    median step_time | awk '{ print 1 / $1 }'
    rm "$work/m.jsonl"
}

# Both sides train on the same pairs.
pairs_topic() { # rm|dpo OPTIONS...
    data/make_prefs --count 200 --prompt-length 256 --min-length 16 --max-length 96 -o "$work/prefs.jsonl" 2>/dev/null
    data/make_shard --quiet -i "$work/prefs.jsonl" -o "$work/prefs.shard"
    method=$1
    shift
    ours=$(trainer "./train_$method" --dtype "$dtype" --layers 6 --heads 6 --width 384 --context 1024 \
        -i "$work/prefs.shard" --per-device-train-batch-size 8 --max-steps 12 "$@")
    theirs=$(peer "dev/peers/peer_$method.py" --data "$work/prefs.jsonl" --dtype "$peers_dtype")
}

# Runs train_grpo or train_ppo with RLOO. The shard has no tokenizer and so no stop token: every sample has the full length.
sampled() { # VOCABULARY PROMPTS PROGRAM OPTION...
    vocab=$1 prompts=$2
    shift 2
    build/bench_prompts -o "$work/prompts.shard" --count 64 --length 32 --vocab "$vocab" 2>/dev/null
    trainer "$@" -i "$work/prompts.shard" --reward random --num-prompts "$prompts" --num-generations 8 \
        --max-completion-length 64 --max-steps 8 --sample-count 0 --micro-tokens 2048
}
steps() { # PROGRAM [OPTION...]
    sampled 260 8 "$@" --dtype "$dtype" --layers 6 --heads 6 --width 384 --context 128
}

# Trains train_sft on rows with one token per byte. Prints a JSON line with the tokens/s of all steps after the first.
rows_of_sft() { # OPTION...
    data/make_prefs --count 200 --prompt-length 128 --min-length 16 --max-length 256 -o "$work/prefs.jsonl" 2>/dev/null
    sed 's/"chosen"/"completion"/; s/, *"rejected":.*/}/' "$work/prefs.jsonl" >"$work/rows.jsonl"
    data/make_shard --quiet -i "$work/rows.jsonl" -o "$work/rows.shard"
    ./train_sft "$@" -i "$work/rows.shard" -o /dev/null --batch-tokens 1100 --max-steps 8 --metrics "$work/m.jsonl" \
        2>"$work/ours.log" || { cat "$work/ours.log" >&2; exit 1; }
    sed -n 's/.*"num_tokens":\([0-9]*\),.*"step_time":\([0-9.eE+-]*\).*/\1 \2/p' "$work/m.jsonl" |
        awk -v peak="$(sed -n 's/.*"peak_memory":\([0-9]*\).*/\1/p' "$work/m.jsonl")" -v share="$(median perf/share_of_peak)" '
            NR == 1 { first = $1 } NR > 1 { t += $2 }
            END { printf "{\"tokens_per_second\": %.1f, \"peak_rss_mib\": %d, \"share_of_peak\": %s}\n",
                      ($1 - first) / t, peak / 1048576, share }'
    rm "$work/m.jsonl"
}

# Both sides begin with the model of the same folder.
smollm2() {
    [ -e "$work/smollm2" ] || python dev/peers/peer_folder.py "$work/smollm2"
}

# Prints the files of the topic llama-cpp, one per line.
gguf_files() {
    if [ -n "${GGUF-}" ]; then
        printf '%s\n' $GGUF
        return
    fi
    file=$(dev/real_model.sh fetch | tail -n 1)
    echo "$file"
    for type in f16 q8_0; do
        build/copy_model --dtype $type "$file" "$work/SmolLM2-135M-Instruct.$type.gguf" >&2
        echo "$work/SmolLM2-135M-Instruct.$type.gguf"
    done
}

# Prints a JSON line like the peer's: the best of three runs of generate.
decode() { # FILE
    for _ in 1 2 3; do
        /usr/bin/time -f 'peak %M' ./generate -c "$1" --quantize keep --temperature 0 --max-new-tokens 256 --verbose \
            "Write a long story about a ship." 2>&1 >/dev/null
    done | awk '/tok\/s after it/ { sub(/ tok\/s after it.*/, ""); if ($NF > rate) rate = $NF }
        /^peak/ { peak = $2 }
        END { printf "{\"tokens_per_second\": %.2f, \"peak_rss_mib\": %d}\n", rate, peak / 1024 }'
}

# Runs both sides of the topic turns, whose own side is also run in lock-step.
turns() {
    OMP_NUM_THREADS=$threads build/bench_turns --layers 6 --width 384 | sed -n '2,/lock-step/p'
    theirs=$(peer dev/peers/peer_turns.py)
    printf '   TRL        %6.2f s, %5.1f %% of them computing\n' "$(field "$theirs" seconds)" \
        "$(field "$theirs" computing | awk '{ print 100 * $1 }')"
}

[ $# -gt 0 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
make -s all bench >&2
for topic in "$@"; do
    case $topic in *-bf16) dtype=bf16 peers_dtype=bfloat16 ;; *) dtype=float32 peers_dtype=float32 ;; esac
    case $topic in lora-* | sft-lora-*) rank="--lora-rank 16" ;; *) rank= ;; esac
    case $topic in
    train | train-bf16)
        rate "$topic" "$(build/bench_train --dtype $dtype 2>/dev/null | tail -n 1)" \
            "$(peer dev/peers/peer_train.py --dtype $peers_dtype)" ;;
    generate | generate-bf16)
        rate "$topic" "$(build/bench_decode --no-single --dtype $dtype 2>/dev/null | tail -n 1)" \
            "$(peer dev/peers/peer_generate.py --dtype $peers_dtype)" ;;
    grpo | grpo-bf16)
        ours=$(steps ./train_grpo)
        theirs=$(peer dev/peers/peer_grpo.py --dtype $peers_dtype)
        steps_rate ;;
    rm | rm-bf16)
        pairs_topic rm --normalize none
        steps_rate ;;
    dpo | dpo-bf16)
        pairs_topic dpo
        steps_rate ;;
    rloo | rloo-bf16)
        ours=$(steps ./train_ppo --algo rloo --temperature 1)
        theirs=$(peer dev/peers/peer_grpo.py --algo rloo --dtype $peers_dtype)
        steps_rate ;;
    train-smollm2 | train-smollm2-bf16 | lora-smollm2 | lora-smollm2-bf16)
        smollm2
        rate "$topic" "$(build/bench_train --model smollm2-135m $rank --dtype $dtype 2>/dev/null | tail -n 1)" \
            "$(peer dev/peers/peer_train.py --model "$work/smollm2" $rank --dtype $peers_dtype)" ;;
    sft-smollm2 | sft-smollm2-bf16 | sft-lora-smollm2 | sft-lora-smollm2-bf16)
        smollm2
        ours=$(rows_of_sft -c "$work/smollm2" $rank --dtype $dtype)
        theirs=$(peer dev/peers/peer_sft.py --model "$work/smollm2" --data "$work/prefs.jsonl" $rank --dtype $peers_dtype)
        rate "$topic" "$ours" "$theirs" ;;
    generate-smollm2 | generate-smollm2-bf16)
        smollm2
        rate "$topic" "$(build/bench_decode --model smollm2-135m --no-single --dtype $dtype 2>/dev/null | tail -n 1)" \
            "$(peer dev/peers/peer_generate.py --model "$work/smollm2" --dtype $peers_dtype)" ;;
    grpo-smollm2 | grpo-smollm2-bf16)
        smollm2
        ours=$(sampled 49150 4 ./train_grpo -c "$work/smollm2" --dtype $dtype)
        theirs=$(peer dev/peers/peer_grpo.py --model "$work/smollm2" --prompts 4 --dtype $peers_dtype)
        steps_rate ;;
    llama-cpp)
        gguf_files >"$work/files"
        while read -r file; do
            basename "$file"
            rate llama-cpp "$(decode "$file")" "$(peer dev/peers/peer_llama_cpp.py --model "$file")"
        done <"$work/files" ;;
    turns) turns ;;
    tokenizer) python dev/bench/bench_tokenizer.py ;;
    all) "$0" train train-bf16 generate generate-bf16 grpo grpo-bf16 rm rm-bf16 dpo dpo-bf16 rloo rloo-bf16 train-smollm2 \
        train-smollm2-bf16 lora-smollm2 lora-smollm2-bf16 sft-smollm2 sft-smollm2-bf16 sft-lora-smollm2 sft-lora-smollm2-bf16 \
        generate-smollm2 generate-smollm2-bf16 grpo-smollm2 grpo-smollm2-bf16 \
        llama-cpp turns tokenizer ;;
    *) echo "compare.sh: $topic: unknown topic; run compare.sh without arguments for the list" >&2 && exit 2 ;;
    esac
done
