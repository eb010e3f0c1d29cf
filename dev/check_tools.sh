#!/bin/sh
# check_tools.sh [lookup] [masking] [guess] [faults] [turns] [tokens] - the long check of completions of several turns, in twenty
# minutes.
#
#   lookup  a model of 0.3 M parameters, fine-tuned on demonstrations of which most repeat the key instead of what it leads to,
#           learns by GRPO to report what the tool `search` finds about keys that no training file asks for; and does not without
#           the tool, with a random reward, if the values of the corpus are permuted, or if the results are noise. $SEEDS (42 43)
#           are the seeds of the runs; the controls have the first one
#   masking the same runs with --state-masking false: the loss is over observed tokens, too
#   guess   a model trains with the game of scripts/guess.py after demonstrations of which half guess at random: its mean
#           reward, the share of games that it wins, and the mean turns of those; fails if the mean reward is below bisection's
#           by more than a tenth of a turn costs
#   faults  a program of --tool-cmd is killed at random, 200 times: every completion is what it is without that and has the same
#           reward, or has none; without episodes no completion is lost
#   turns   the share of the time in which the engine computes while tools take 0.1 s, and the time of a turn in long
#           trajectories (build/bench_turns)
#   tokens  10,000 random trajectories: a training batch has the tokens that were drawn and observed, and their log-probabilities
#           are the sampler's (build/test_trajectory)
#
# Without arguments all of them; masking and faults need the models of lookup. WORK names a folder that is kept. Controls in which no
# completion can have a reward have fewer steps, since no step changes anything.
# Exits 1 if something does not hold.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- lookup masking guess faults turns tokens
if [ -n "${WORK-}" ]; then work=$WORK; mkdir -p "$work"; else work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; fi
make -s train_sft train_grpo generate evaluate data/make_tasks data/make_corpus >&2
status=0
format='call=<s>{arguments}</s>;result=<r>{content}</r>'
problems="--task lookup --largest 9999 -t $work/tokenizer.json"

accuracy() { # MODEL TOOL...: mean accuracy of samples for held-out keys, in percent
    model=$1
    shift
    ./evaluate -c "$work/$model.bin" -i "$work/heldout.shard" --num-samples 4 -g 60 "$@" --completions "$work/$model.jsonl" \
        2>/dev/null | sed 's/.*"pass@1":\([0-9.e-]*\).*/\1/' | awk '{ printf "%.1f\n", 100 * $1 }'
}

learn() { # MODEL STEPS OPTION...
    model=$1
    steps=$2
    shift 2
    ./train_grpo -c "$work/sft$seed.bin" -i "$work/tasks.shard" -o "$work/$model.bin" -p 16 -G 16 -g 60 -x "$steps" \
        -l 1e-3 --warmup-steps 3 --adam-beta2 0.99 --slots 256 --seed "$seed" --quiet "$@" 2>"$work/$model.log" ||
        { tail -n 1 "$work/$model.log" >&2; exit 1; }
}

control() { # TEXT MODEL STEPS ACCURACY OPTION...: trains from the first seed, and expects less than this accuracy
    text=$1 model=$2 steps=$3 limit=$4
    shift 4
    learn "$model" "$steps" "$@" $reward
    after=$(accuracy "$model" "$@")
    echo "control, $steps steps, $text $after"
    awk "BEGIN { exit !($after < $limit) }" || { echo "FAILED: below $limit was expected"; status=1; }
}

# A tool that answers with facts of the file, or, if it is none, of its own.
cat >"$work/facts.py" <<'END'
import json, os, random, sys
facts, pids, episodes = sys.argv[1], sys.argv[2], sys.argv[3] == "episodes"
known = {}
if facts != "noise":
    for line in open(facts):
        row = json.loads(line)
        known[row["title"]] = row["text"]
open(pids, "a").write(f"{os.getpid()}\n")
schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
hello = {"tools": [{"type": "function", "function": {"name": "search", "parameters": schema}}], "episodes": episodes}
for line in sys.stdin:
    request = json.loads(line)
    answer = {name: request[name] for name in ("op", "id", "turn", "call") if name in request}
    if request["op"] == "hello":
        answer.update(hello)
    if request["op"] == "call":
        key = request["arguments"]["query"]
        if facts == "noise":
            r = random.Random(key)
            key, text = f"k{r.randrange(9999)}", f"k{r.randrange(9999)} leads to k{r.randrange(9999)}."
        else:
            text = known.get(key, "Nothing is known of it.")
        answer["content"] = f"Doc 1(Title: {key}) {text}\n"
    print(json.dumps(answer), flush=True)
END

# The demonstrations are about other facts than the corpus: no value can be known.
data() {
    python3 scripts/phrases.py 'What does k' ' lead to?' '<s>k' '</s>' '<r>Doc ' '.\n</r>' '.\nDoc ' '(Title: k' ') k' \
        ' leads to k' >"$work/tokenizer.json"
    data/make_tasks $problems --seed 2 --count 8000 --format chat --noise 0.65 --tool-format "$format" -o "$work/sft.shard"
    data/make_tasks $problems --count 4000 --corpus-output "$work/facts.jsonl" -o "$work/tasks.shard"
    data/make_tasks $problems --count 200 --split heldout -o "$work/heldout.shard"
    data/make_corpus -i "$work/facts.jsonl" -o "$work/facts.db"
    # each key leads to what the next one led to
    awk '{ title[NR] = $0; sub(/ leads to .*/, "", title[NR]); value[NR] = $0; sub(/.* leads to /, "", value[NR]) }
        END { for (i = 1; i <= NR; i++) print title[i] " leads to " value[i % NR + 1] }' "$work/facts.jsonl" >"$work/permuted.jsonl"
    data/make_corpus -i "$work/permuted.jsonl" -o "$work/permuted.db"
} 2>/dev/null

lookup() {
    echo "== lookup: accuracy for held-out keys, in percent"
    data
    search="--tools search=$work/facts.db"
    for seed in ${SEEDS-42 43}; do
        ./train_sft --layers 2 --width 96 --heads 4 --context 72 -i "$work/sft.shard" -o "$work/sft$seed.bin" -x 400 --quiet \
            --batch-tokens 2048 -l 4e-3 --warmup-steps 20 --seed "$seed" 2>/dev/null
        before=$(accuracy "sft$seed" $search --tool-format "$format")
        learn "grpo$seed" 150 $search --tool-format "$format"
        after=$(accuracy "grpo$seed" $search --tool-format "$format")
        echo "seed $seed: fine-tuned $before, 150 steps of GRPO $after"
        awk "BEGIN { exit !($before < 10 && $after > 90) }" || { echo "FAILED: from below 10 to above 90 was expected"; status=1; }
    done
    seed=${SEEDS-42}
    seed=${seed%% *}
    reward=
    control "no tool:          " none 20 2
    control "values permuted:  " permuted 20 2 --tools "search=$work/permuted.db" --tool-format "$format"
    control "results are noise:" noise 20 2 --tool-cmd "python3 $work/facts.py noise /dev/null no" --tool-format "$format"
    reward="--reward random"
    control "random reward:    " random 150 10 $search --tool-format "$format"
    cp "$work/grpo$seed.bin" "$work/grpo.bin"
}

masking() {
    echo "== masking: accuracy for held-out keys, in percent"
    search="--tools search=$work/facts.db"
    for seed in ${SEEDS-42 43}; do
        learn "unmasked$seed" 150 $search --tool-format "$format" --state-masking false
        masked=$(accuracy "grpo$seed" $search --tool-format "$format")
        unmasked=$(accuracy "unmasked$seed" $search --tool-format "$format")
        echo "seed $seed: 150 steps with observed tokens masked $masked, with them in the loss $unmasked"
    done
}

games() { # TEXT MODEL [1]: 500 games; 1: bisection plays them too, and a model that is more than a tenth of a turn worse fails
    ./generate -c "$work/$2.bin" -i "$work/guess.shard" -g 140 --temperature 1 --tool-cmd 'python3 scripts/guess.py' \
        -o "$work/$2.jsonl" 2>/dev/null
    python3 - "$1" "$work/$2.jsonl" "${3:-0}" <<'END'
import json, sys

def bisection(number):
    low, high, turns = 1, 31, 1
    while (low + high) // 2 != number:
        low, high = (low, (low + high) // 2 - 1) if number < (low + high) // 2 else ((low + high) // 2 + 1, high)
        turns += 1
    return turns

def line(name, rewards):  # the reward of the last turn is 1 - turns/8 if the game was won, else 0 or null
    won = [8 * (1 - reward) for reward in rewards if reward]
    print(f"{name:18} {sum(rewards) / len(rewards):.3f}   {len(won) / len(rewards):.3f}   {sum(won) / max(len(won), 1):.2f}")

rows = [json.loads(row) for row in open(sys.argv[2])]
rewards = [row["turn_rewards"][-1] or 0 for row in rows]
line(sys.argv[1], rewards)
if sys.argv[3] == "1":
    best = [1 - bisection(int(row["answer"])) / 8 for row in rows]
    line("bisection:", best)
    if sum(rewards) / len(rewards) < sum(best) / len(best) - 0.1 / 8: sys.exit("FAILED: more than a tenth of a turn worse than bisection")
END
}

guess() {
    echo "== guess: mean reward, games won, turns of those, of 500 samples"
    data/make_tasks --task guess --count 4000 --format chat --noise 0.5 --template chatml -o "$work/guess_sft.shard" 2>/dev/null
    data/make_tasks --task guess --count 500 --seed 2 --template chatml -o "$work/guess.shard" 2>/dev/null
    ./train_sft --layers 2 --width 64 --heads 4 --context 256 -i "$work/guess_sft.shard" -o "$work/guess_sft.bin" -x 800 --quiet \
        --batch-tokens 4096 -l 4e-3 --warmup-steps 10 2>/dev/null
    games "fine-tuned:" guess_sft
    for seed in ${SEEDS:-42 43}; do
        ./train_grpo -c "$work/guess_sft.bin" -i "$work/guess.shard" -o "$work/guess.bin" -p 16 -G 8 -g 140 -l 1e-3 --slots 128 \
            -x 150 --seed "$seed" --warmup-steps 3 --adam-beta2 0.99 --tool-cmd 'python3 scripts/guess.py' --reward none --quiet \
            2>"$work/guess.log" || { tail -n 1 "$work/guess.log" >&2; exit 1; }
        games "GRPO, seed $seed:" guess 1 || status=1
    done
}

# Kills COUNT workers of the run with this process id, each a while after it has started. Fails if the run ends before that.
killer() { # COUNT PID
    seen=0
    while [ "$seen" -lt "$1" ]; do
        kill -0 "$2" 2>/dev/null || return 1
        pid=$(sed -n "$((seen + 1))p" "$work/pids" 2>/dev/null) || true
        if [ -z "$pid" ]; then sleep 0.01; continue; fi
        sleep "0.0$(((pid * 7919 + seen * 104729) % 90 + 10))"
        kill -9 "$pid" 2>/dev/null || true
        seen=$((seen + 1))
    done
}

rows() { # NAME EPISODES OPTION...: completions with a program
    name=$1
    episodes=$2
    shift 2
    ./generate -c "$work/grpo.bin" -i "$work/heldout.shard" --num-samples 12 -g 60 --slots 32 --tool-format "$format" \
        --tool-cmd "exec python3 $work/facts.py $work/facts.jsonl $work/pids $episodes" --tool-workers 2 --reward verify \
        --max-tool-failures 1 -o "$work/$name.jsonl" "$@" 2>"$work/$name.log" || { tail -n 1 "$work/$name.log"; exit 1; }
}

faults() {
    echo "== faults: 2 workers, 2400 completions"
    rows calm no
    for episodes in no episodes; do
        : >"$work/pids"
        rows "$episodes" "$episodes" --tool-retries 100 &
        killer 100 $! || { echo "FAILED: the run ended before 100 of its workers were killed"; status=1; }
        wait $! || status=1
        python3 - "$work/calm.jsonl" "$work/$episodes.jsonl" $episodes <<'END' || status=1
import json, sys
calm, killed = ([json.loads(line) for line in open(path)] for path in sys.argv[1:3])
lost = same = other = scored = 0
for a, b in zip(calm, killed):
    if b["stop"] == "tool_failed":
        lost += 1
        scored += b["reward"] is not None
    elif a["tokens"] == b["tokens"] and a["reward"] == b["reward"]:
        same += 1
    else:
        other += 1
text = "with episodes" if sys.argv[3] == "episodes" else "without episodes"
print(f"{text}: 100 kills, {same} of {len(calm)} completions as without, {lost} lost, {scored} of them with a reward, "
      f"{other} other")
sys.exit(len(calm) != len(killed) or other or scored or (lost and sys.argv[3] != "episodes"))
END
    done
}

turns() {
    echo "== turns"
    make -s build/bench_turns >&2
    build/bench_turns
}

tokens() {
    echo "== tokens"
    make -s build/test_trajectory >&2
    TRAJECTORIES=10000 build/test_trajectory >"$work/tokens.log" 2>&1 || { cat "$work/tokens.log"; status=1; }
    grep ' trajectories of ' "$work/tokens.log" || status=1
}

for part; do
    case $part in
    lookup | masking | guess | faults | turns | tokens) $part ;;
    *) echo "check_tools.sh: $part: expected lookup, masking, guess, faults, turns or tokens" >&2 && exit 2 ;;
    esac
done
exit $status
