#!/bin/sh
# check_tools.sh [lookup] [faults] [turns] - the long check of completions of several turns, in a quarter of an hour.
#
#   lookup  a model of 0.3 M parameters, fine-tuned on demonstrations of which half repeat the key instead of what it leads to,
#           learns by GRPO to report what the tool `search` finds about keys that no training file asks for; and does not if the
#           values of the corpus are permuted, or if the results are noise
#   faults  a program of --tool-cmd is killed at random, 200 times: every completion is what it is without that and has the same
#           reward, or has none; without episodes no completion is lost
#   turns   the share of the time in which the engine computes while tools take 0.1 s, and the time of a turn in long
#           trajectories (build/bench_turns)
#
# Without arguments all of them; faults needs the model of lookup. WORK names a folder that is kept. The controls have fewer
# steps, since no completion has a reward and so no step changes anything.
# Exits 1 if something does not hold.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- lookup faults turns
if [ -n "${WORK-}" ]; then work=$WORK; mkdir -p "$work"; else work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; fi
make -s train_sft train_grpo generate evaluate data/make_tasks data/make_corpus >&2
status=0
format='call=<s>{arguments}</s>;result=<r>{content}</r>'
problems="--task lookup --largest 9999"

accuracy() { # MODEL TOOL...: mean accuracy of samples for held-out keys, in percent
    model=$1
    shift
    ./evaluate -c "$work/$model.bin" -i "$work/heldout.shard" --num-samples 4 -g 180 --tool-format "$format" "$@" \
        2>/dev/null | sed 's/.*"pass@1":\([0-9.]*\).*/\1/' | awk '{ printf "%.1f\n", 100 * $1 }'
}

learn() { # MODEL STEPS TOOL...
    model=$1
    steps=$2
    shift 2
    ./train_grpo -c "$work/sft.bin" -i "$work/tasks.shard" -o "$work/$model.bin" -p 16 -G 16 -g 180 -x "$steps" \
        -l 1e-3 --warmup-steps 3 --adam-beta2 0.99 --slots 256 --tool-format "$format" --quiet "$@" 2>"$work/$model.log" ||
        { tail -n 1 "$work/$model.log" >&2; exit 1; }
    after=$(accuracy "$model" "$@")
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

data() {
    data/make_tasks $problems --count 6000 --format chat --noise 0.5 --tool-format "$format" \
        --corpus-output "$work/facts.jsonl" -o "$work/sft.shard"
    data/make_tasks $problems --count 4000 -o "$work/tasks.shard"
    data/make_tasks $problems --count 200 --split heldout -o "$work/heldout.shard"
    data/make_corpus -i "$work/facts.jsonl" -o "$work/facts.db"
    # each key leads to what the next one led to
    awk '{ title[NR] = $0; sub(/ leads to .*/, "", title[NR]); value[NR] = $0; sub(/.* leads to /, "", value[NR]) }
        END { for (i = 1; i <= NR; i++) print title[i] " leads to " value[i % NR + 1] }' "$work/facts.jsonl" >"$work/permuted.jsonl"
    data/make_corpus -i "$work/permuted.jsonl" -o "$work/permuted.db"
    ./train_sft --layers 2 --width 96 --heads 4 --context 224 -i "$work/sft.shard" -o "$work/sft.bin" -x 500 --quiet \
        --batch-tokens 2048 -l 4e-3 --warmup-steps 10
} 2>/dev/null

lookup() {
    echo "== lookup: accuracy for held-out keys, in percent"
    data
    before=$(accuracy sft --tools "search=$work/facts.db")
    echo "fine-tuned                           $before"
    learn grpo 60 --tools "search=$work/facts.db"
    echo "60 steps of GRPO                     $after"
    awk "BEGIN { exit !($before < 10 && $after > 60) }" || { echo "FAILED: from below 10 to above 60 was expected"; status=1; }
    learn permuted 10 --tools "search=$work/permuted.db"
    echo "10 steps, values permuted            $after"
    awk "BEGIN { exit !($after < 2) }" || { echo "FAILED: below 2 was expected"; status=1; }
    learn noise 10 --tool-cmd "python3 $work/facts.py noise /dev/null no"
    echo "10 steps, results are noise          $after"
    awk "BEGIN { exit !($after < 2) }" || { echo "FAILED: below 2 was expected"; status=1; }
}

# Kills COUNT workers, each a while after it has started.
killer() { # COUNT
    seen=0
    while [ "$seen" -lt "$1" ]; do
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
    ./generate -c "$work/grpo.bin" -i "$work/heldout.shard" --num-samples 8 -g 180 --slots 32 --tool-format "$format" \
        --tool-cmd "exec python3 $work/facts.py $work/facts.jsonl $work/pids $episodes" --tool-workers 2 --reward verify \
        --max-tool-failures 1 -o "$work/$name.jsonl" "$@" 2>"$work/$name.log" || { tail -n 1 "$work/$name.log"; exit 1; }
}

faults() {
    echo "== faults: 2 workers, 1600 completions"
    rows calm no
    for episodes in no episodes; do
        : >"$work/pids"
        killer 100 &
        rows "$episodes" "$episodes" --tool-retries 100
        wait $!
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

for part; do
    case $part in
    lookup | faults | turns) $part ;;
    *) echo "check_tools.sh: $part: expected lookup, faults or turns" >&2 && exit 2 ;;
    esac
done
exit $status
