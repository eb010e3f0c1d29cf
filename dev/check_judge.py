"""check_judge.py MODEL TEMPLATE LABELLED - labels that `evaluate --judge` gave to pairs, beside transformers in float32.

MODEL is a folder as transformers reads it, TEMPLATE the question of --judge-template, without sections and
without its last newline, LABELLED the file of
--completions. The probability of a label is that of its tokens with the token that ends the turn, each in one plain forward pass.
Prints the largest difference of a probability and how many verdicts agree, in one order and in both; fails if a
probability differs by 1e-3 or more, or a verdict at all.
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, template, labelled = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
with open(template, encoding="utf-8") as file:
    question = file.read().rstrip("\n")
end = tokenizer.convert_tokens_to_ids("<|im_end|>")


def probability(row, a, b):
    """That the first of two completions is better, given that the answer is one of the labels 1 and 2."""
    text = question.replace("{prompt}", row["prompt"]).replace("{completion_a}", a).replace("{completion_b}", b)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    logs = []
    for label in ("1", "2"):
        answer = tokenizer(label, add_special_tokens=False)["input_ids"] + [end]
        with torch.no_grad():
            logits = model(torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
        logs.append(sum(logits[len(ids) + i - 1, t].item() for i, t in enumerate(answer)))
    return torch.tensor(logs).softmax(0)[0].item()


with open(labelled, encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
worst, single, both = 0.0, 0, 0
for row in rows:
    first = probability(row, row["chosen"], row["rejected"])
    second = 1 - probability(row, row["rejected"], row["chosen"])  # of the same completion
    worst = max(worst, abs(first - row["p_first"]), abs(second - row["p_second"]))
    single += (first > 0.5) == (row["p_first"] > 0.5)
    both += (first + second > 1) == (row["p"] > 0.5)
n = len(rows)
print(f"{n} pairs: largest difference of a probability {worst:.1e}; same verdict in one order {single} of {n}, in both {both} of {n}")
sys.exit(worst >= 1e-3 or single < n or both < n)
