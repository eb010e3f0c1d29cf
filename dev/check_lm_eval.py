"""check_lm_eval.py - lm-evaluation-harness on one model, by transformers and by `generate --serve`; see check_lm_eval.sh.

    check_lm_eval.py FOLDER     # makes the model, tokenizer and tasks in FOLDER, runs both, compares every response
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval
import torch
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

CONTEXT = 256
FACTOR = 2  # by how much the server's largest error may exceed that of transformers, whose arithmetic is as precise


def rows(count):
    """Sums, sorted lists, opposites and short texts: prompts with the right answer and wrong ones."""
    draw = random.Random(1)
    words = "the cat sat on a warm mat and looked at old ships that left for distant islands in spring".split()
    for _ in range(count):
        a, b = draw.randrange(100), draw.randrange(100)
        numbers = [draw.randrange(10) for _ in range(5)]
        text = " ".join(draw.choice(words) for _ in range(draw.randrange(8, 60)))
        wrong = sorted(numbers, reverse=True)
        yield {
            "sum": {"query": f"{a} + {b} =", "choices": [f"{a + b + d}" for d in (0, 1, 10, -1)], "gold": 0},
            "sort": {"query": f"sort {numbers}:", "choices": [f"{sorted(numbers)}", f"{wrong}"], "gold": 0},
            "last": {"query": " ".join(text.split()[:-1]), "word": text.split()[-1]},
            "rolling": {"text": text + " " + text},
            "until": {"query": f"Q: {text}\nA:", "word": text.split()[0]},
        }


TASKS = {
    "sum": "output_type: multiple_choice\ndoc_to_text: '{{query}}'\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "sort": "output_type: multiple_choice\ndoc_to_text: '{{query}}'\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    "metric_list:\n  - metric: acc\n",
    "last": "output_type: loglikelihood\ndoc_to_text: '{{query}}'\ndoc_to_target: ' {{word}}'\n"
    "metric_list:\n  - metric: perplexity\n  - metric: acc\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n",
    "until": "output_type: generate_until\ndoc_to_text: '{{query}}'\ndoc_to_target: '{{word}}'\n"
    "generation_kwargs:\n  until: ['\\n', ' the']\n  do_sample: false\n  max_gen_toks: 24\n"
    "metric_list:\n  - metric: exact_match\n",
}


def make(folder):
    """A GPT-2 of random weights, large enough for sharp distributions, a byte-level tokenizer, and the tasks."""
    data = list(rows(40))
    texts = [row["rolling"]["text"] + json.dumps(row["sort"]) for row in data]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=CONTEXT
    ).save_pretrained(folder / "model")
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=bpe.get_vocab_size(), n_positions=CONTEXT, n_embd=192, n_layer=4, n_head=6)
    config.bos_token_id = config.eos_token_id = bpe.token_to_id("<|endoftext|>")
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 6
    model.save_pretrained(folder / "model")
    for name, body in TASKS.items():
        with open(folder / f"{name}.jsonl", "w") as f:
            f.writelines(json.dumps(row[name]) + "\n" for row in data)
        (folder / f"{name}.yaml").write_text(
            f"task: llmc_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {folder / name}.jsonl\n"
            f"test_split: train\n{body}"
        )


def evaluate(folder, model, arguments):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    tasks = [f"llmc_{name}" for name in TASKS]
    result = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=tasks, task_manager=manager, batch_size=8, bootstrap_iters=0
    )
    return {task: [sample["resps"] for sample in result["samples"][task]] for task in tasks}


def flat(value):
    """The numbers, texts and flags in a response, in order."""
    return [x for part in value for x in flat(part)] if isinstance(value, (list, tuple)) else [value]


def largest_error(values, exact):
    return max((abs(float(x) - float(y)) for x, y in zip(values, exact) if not isinstance(y, (bool, str))), default=0.0)


def compare(ours, theirs, exact):
    """The errors of both programs against float64. Both compute in float32, so both have rounding errors of one size."""
    failed = False
    for task in ours:
        a, b, truth = flat(ours[task]), flat(theirs[task]), flat(exact[task])
        numbers = sum(not isinstance(y, (bool, str)) for y in truth)
        equal = sum(x == y for x, y in zip(a, truth) if isinstance(y, (bool, str)))
        error, limit = largest_error(a, truth), FACTOR * largest_error(b, truth)
        good = len(a) == len(truth) and error <= limit and equal == len(truth) - numbers
        failed |= not good
        print(
            f"{task:13} {numbers:4} loglikelihoods, largest error {error:.1e}, that of transformers {limit / FACTOR:.1e}; "
            f"{equal} of {len(truth) - numbers} greedy flags and texts equal{'' if good else ' FAILED'}"
        )
    return failed


def main():
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make(folder)
    theirs, exact = (
        evaluate(folder, "hf", f"pretrained={folder}/model,dtype={dtype},device=cpu,max_length={CONTEXT - 1}")
        for dtype in ("float32", "float64")
    )
    server = subprocess.Popen(
        ["./generate", "-c", f"{folder}/model", "--serve", "127.0.0.1:0", "--served-model-name", "tiny"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in server.stderr:
            if " is served at " in line:
                break
        url = line.split(" is served at ")[1].split("/v1")[0]
        ours = evaluate(
            folder,
            "local-completions",
            f"model=tiny,base_url={url}/v1/completions,tokenizer={folder}/model,max_length={CONTEXT},num_concurrent=8",
        )
    finally:
        server.terminate()
        server.wait()
    sys.exit(compare(ours, theirs, exact))


main()
