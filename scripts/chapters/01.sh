# shellcheck shell=dash disable=SC2154,SC3044
# Chapter 1: a base model and an assistant. The base reads sheets of sorting exercises, most of them without solutions: asked for one,
# it writes the next exercise. A few demonstrations make an assistant of it.
title "a base model becomes an assistant"
# sheets ROWS OUTPUT: documents of two problems, some of them after an empty line. Each is written four times, once with the solutions,
# so that nothing in a problem tells whether they follow.
sheets() {
    awk -F'"' '{ problem[NR] = $4; solution[NR] = $8 }
        END {
            for (copy = 0; copy < 4; copy++)
                for (i = 1; i < NR; i += 2) {
                    solved = (int(i / 2) + copy) % 4 == 0
                    text = int(i / 2) % 3 ? "" : "\\n"
                    for (k = i; k < i + 2; k++) text = text problem[k] (solved ? solution[k] : "") "\\n"
                    print "{\"text\":\"" text "\"}"
                }
        }' "$1" >"$2"
}
assistant() { # MODEL OPTION...
    local to=$1
    shift
    stage "$to.bin" ./train_sft "$@" -i "$out/few.shard" -o "$to.bin" -x 40 --batch-tokens 1024 -l 1e-3 --warmup-steps 5 --seed "$seed" \
        --metrics "$to.metrics.jsonl"
}
# asked TEMPLATE MODEL: how many of the held-out problems are solved, in percent.
asked() {
    complete "$2.$(basename "$1")" "$2" "$held" --temperature 0 --reward verify --prompt-template "$1.txt" --stop '
'
    awk '{ n += /"right":true/ } END { printf "%.1f", 100 * n / NR }' "$2.$(basename "$1").jsonl"
}
tasks "$out/many.jsonl" $((seed * 100 + 1)) 9000 --format chat
tasks "$out/hundred.jsonl" $((seed * 100 + 2)) 100 --format chat
pick "$out/few" -i "$out/hundred.jsonl" --set 'prompt=\n{prompt}'
stage "$out/sheets.jsonl" sheets "$out/many.jsonl" "$out/sheets.jsonl"
stage "$out/sheets.shard" ./data/make_shard -i "$out/sheets.jsonl" -o "$out/sheets.shard"
stage "$out/few.shard" ./data/make_shard -i "$out/few.jsonl" -o "$out/few.shard"
new="--layers 2 --width 96 --heads 4 --context 48"
# shellcheck disable=SC2086
stage "$out/base.bin" ./train_sft $new -i "$out/sheets.shard" -o "$out/base.bin" -x 600 --batch-tokens 2048 -l 4e-3 \
    --warmup-steps 20 --logging-steps 50 --seed "$seed" --metrics "$out/base.metrics.jsonl"
assistant "$out/assistant" -c "$out/base.bin"
# shellcheck disable=SC2086
assistant "$out/control" $new
printf '\n{prompt}' >"$out/plain.txt"
printf '\nsort 2 0 7 5:0 2 5 7\n{prompt}' >"$out/shots.txt"
for model in base assistant; do
    complete "$out/$model.said" "$out/$model" "$held" --temperature 0 --prompt-template "$out/plain.txt"
    say "$model: $(sed -n '1s/.*"prompt":"\([^"]*\)".*"completion":"\([^"]*\)".*/\1 -> "\2"/p' "$out/$model.said.jsonl")"
done
plain=$(asked "$out/plain" "$out/base") shots=$(asked "$out/shots" "$out/base")
after=$(asked "$out/plain" "$out/assistant") control=$(asked "$out/plain" "$out/control")
claim "a base model continues its text, it does not answer" "held-out problems solved: $plain %" "$plain < 5"
claim "it can do more than it shows: a prompt that looks like a worked sheet brings it out" "$shots %" "$shots > 20"
claim "a hundred demonstrations make an assistant of it" "$after %" "$after > 50 && $after > $shots - 20"
claim "they do not teach the skill, they bring it out" "the same demonstrations without the base: $control %" "$control < 5"
