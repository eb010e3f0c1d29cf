# shellcheck shell=dash disable=SC2086,SC2154
# Chapter 26: agents and tools: products of two numbers of four digits, with a calculator (doc/agents.md). Half of the demonstrations
# call it with a wrong number.
title "a model that calls a tool"
format='call=<c>{arguments}</c>;result=<r>{content}</r>'
bigmul() { stage "$1" ./data/make_tasks --task bigmul --seed "$2" --count "$3" -o "$1" $4; }
bigmul "$out/problems.shard" $((seed * 100 + 1)) 3000 ''
bigmul "$out/held.shard" $((seed * 100 + 2)) 100 '--split heldout'
stage "$out/shown.shard" ./data/make_tasks --task bigmul --seed $((seed * 100 + 3)) --count 3000 --format chat --noise 0.5 --tool-format \
    "$format" -o "$out/shown.shard"
stage "$out/sft.bin" ./train_sft --layers 2 --width 96 --heads 4 --context 64 -i "$out/shown.shard" -o "$out/sft.bin" -x 150 \
    --batch-tokens 2048 -l 3e-3 --warmup-steps 10 --seed "$seed" --metrics "$out/sft.metrics.jsonl"
for reward in verify random; do
    stage "$out/$reward.bin" ./train_grpo -c "$out/sft.bin" -i "$out/problems.shard" -o "$out/$reward.bin" -p 32 -G 8 -g 44 -x 40 -l 7e-4 \
        --warmup-steps 5 --adam-beta2 0.99 --slots 256 --tools calculator --tool-format "$format" --reward $reward --sample-count 0 \
        --seed "$seed" --metrics "$out/$reward.metrics.jsonl"
done
asked() { ./evaluate -c "$1" -i "$out/held.shard" --num-samples 4 -g 44 --tools calculator --tool-format "$format" >"$2"; }
alone() { ./evaluate -c "$1" -i "$out/held.shard" --num-samples 4 -g 44 >"$2"; }
for model in sft verify random; do stage "$out/$model.json" asked "$out/$model.bin" "$out/$model.json"; done
stage "$out/alone.json" alone "$out/verify.bin" "$out/alone.json"
right() { percent pass@1 "$out/$1.json"; }
before=$(right sft) after=$(right verify) control=$(right random) alone=$(right alone)
claim "rewards of the answers teach a model to use its tool: the tokens of results are not trained on" \
    "samples that are right: $before % -> $after %" "$after > $before + 10"
claim "it is the tool that knows" "without the calculator $alone %" "$alone < 2"
claim "random rewards do not teach it" "$control %" "$control < $before + 3"
