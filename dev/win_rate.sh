# shellcheck shell=dash disable=SC2154
# win_rate.sh - what check_dpo.sh and check_tpo.sh share: completions of six letters, of which those with more of the letter a are
# better, and the win rate of a model by that rule. The scripts set work, a folder.

# Completions have one length, so that no loss can win by length alone.
prefs() { data/make_prefs --rule char=a --letters 4 --split all --prompt-length 2 --min-length 6 --max-length 6 "$@" 2>/dev/null; }
quiet() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }; }
shard() { data/make_shard --quiet -i - -o "$work/$1.shard"; } # NAME

# sft_model SEED: makes $work/sft.bin and the scores of its completions.
sft_model() {
    prefs --count 600 --seed "$1" --format chat | shard chat
    quiet ./train_sft --layers 2 --width 64 --heads 2 --context 16 --seed "$1" -i "$work/chat.shard" \
        -o "$work/sft.bin" -x 80 -l 3e-3 --batch-tokens 1024
    scores "$work/sft.bin" >"$work/sft.scores"
}

# scores MODEL: prints the score of each of 256 completions.
scores() {
    printf '{"prompt":"%s:"}\n' a b c d >"$work/ask.jsonl"
    quiet ./generate -c "$1" -i "$work/ask.jsonl" --num-samples 64 -g 6 --temperature 1 -o "$work/said.jsonl"
    data/make_prefs --score --rule char=a <"$work/said.jsonl" 2>/dev/null
}

# win_rate MODEL: prints its win rate against the SFT model in percent; ties count half.
win_rate() {
    scores "$1" >"$work/mine"
    paste "$work/mine" "$work/sft.scores" | awk '{ w += $1 > $2 ? 1 : $1 == $2 ? 0.5 : 0 } END { print 100 * w / NR }'
}
