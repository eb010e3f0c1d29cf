#!/bin/sh
# flan.sh [SEED] - instruction tuning: the same rows in one, ten and a hundred wordings, asked in wordings that were not trained on
# (Wei et al. 2022, FLAN, arXiv 2109.01652; Sanh et al. 2022, T0, arXiv 2110.08207).
#
# FLAN: 62 data sets in 12 clusters, ten wordings each; a cluster is held out as a whole. Here: of three different digits, say the
# largest, the smallest or the first; "last" is the held-out cluster. A wording is a beginning, a way to list the digits, a way
# to name the task, an order and an end. Environment: STEPS (of training), HELDOUT (rows that are asked).
# shellcheck disable=SC1091
cd "$(dirname "$0")/.." && : "${STEPS:=400}" "${HELDOUT:=400}" && LOOP_BASE=own && . scripts/loop.sh
rows() {
    awk -v seed="$1" -v count="$2" 'BEGIN {
        srand(seed)
        split("largest smallest first last", word, " ")
        for (i = 0; i < count; i++) {
            do { a = int(10 * rand()); b = int(10 * rand()); c = int(10 * rand()) } while (a == b || b == c || a == c)
            w = word[1 + int(4 * rand())]
            most = a > b ? (a > c ? a : c) : (b > c ? b : c)
            least = a < b ? (a < c ? a : c) : (b < c ? b : c)
            right = w == "largest" ? most : w == "smallest" ? least : w == "first" ? a : c
            printf "{\"cluster\":\"%s\",\"a\":%d,\"b\":%d,\"c\":%d,\"answer\":\"%d\"}\n", w, a, b, c, right
        }
    }' >"$3"
}
wordings() { # of which the first ones are trained on, the last ones asked
    awk -v seed="$seed" 'BEGIN {
        srand(seed)
        split("|Given |Take |Of ", begin, "|"); split("{a} {b} {c}|{a}, {b}, {c}|{a}/{b}/{c}|({a};{b};{c})", list, "|")
        split("{w}|the {w}|which is {w}|I want {w}", task, "|"); split(":|?| =| is", end, "|")
        for (i = 0; i < 512; i++) {
            l = begin[i % 4 + 1] list[int(i / 4) % 4 + 1]; t = task[int(i / 16) % 4 + 1]; e = end[int(i / 64) % 4 + 1]
            print rand() "\t" (i < 256 ? l " " t e : t ": " l e)
        }
    }' | sort -n | cut -f2 | sed 's/{w}/{cluster}/' >"$1"
}
# some FIRST LAST FILE COMPLETION: wordings as make_shard reads them.
some() { sed -n "$1,$2p" "$out/all.wordings" | sed "s|.*|{\"prompt\":\"&\"$4}|" >"$3"; }
# ask MODEL NAME: accuracy in percent on the rows in the wordings of NAME.
answer() { ./evaluate -c "$1" -i "$2" --num-samples 0 --max-new-tokens 3 --slots 128 >"$3"; }
ask() { stage "$1.$2.json" answer "$1.bin" "$out/$2.shard" "$1.$2.json" && percent accuracy "$1.$2.json"; }
# asked NAME ROWS WORDINGS: makes the shard NAME.
asked() {
    stage "$out/$1.shard" ./data/make_shard -i "$out/$2.jsonl" --wordings "$out/$3" --task numeric -o "$out/$1.shard"
}
stage "$out/train.jsonl" rows $((seed * 100 + 1)) 5000 "$out/train.jsonl"
stage "$out/all.jsonl" rows $((seed * 100 + 2)) "$HELDOUT" "$out/all.jsonl"
stage "$out/all.wordings" wordings "$out/all.wordings"
pick "$out/task" -i "$out/all.jsonl" --where 'cluster == "last"'
pick "$out/tasks" -i "$out/all.jsonl" --where 'cluster != "last"'
some 1 1 "$out/first" ''
some 401 512 "$out/new" ''
asked trained tasks first
asked unseen tasks new
asked held task new
say "instruction tuning with one, ten and a hundred wordings (seed $seed); a digit of the prompt at random is right in 33 %"
printf '%-12s %18s %18s %18s\n' wordings "trained wording" "unseen wording" "unseen task"
for k in 1 10 100; do
    some 1 "$k" "$out/$k.wordings" ',"completion":" {answer}"'
    stage "$out/$k.shard" ./data/make_shard -i "$out/train.jsonl" --wordings "$out/$k.wordings" --hold-out cluster=last \
        --val-output "$out/$k.held.shard" -o "$out/$k.shard"
    stage "$out/$k.bin" ./train_sft --layers 2 --width 96 --heads 4 --context 64 -i "$out/$k.shard" -o "$out/$k.bin" \
        --max-steps "$STEPS" --batch-tokens 4096 --learning-rate 2e-3 --warmup-steps 20 --logging-steps 50 --seed "$seed" \
        --metrics "$out/$k.metrics.jsonl"
    known=$(ask "$out/$k" trained)
    other=$(ask "$out/$k" unseen)
    absent=$(ask "$out/$k" held)
    printf '%-12s %16s %% %16s %% %16s %%\n' "$k" "$known" "$other" "$absent"
done
page
