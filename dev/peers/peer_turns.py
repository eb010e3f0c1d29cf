"""Benchmark of the tool loop of TRL's GRPOTrainer on the CPU, the peer of the first part of bench_turns: 128 completions of 4
turns, 8 tokens drawn and 8 observed in a turn, with tools that answer after times drawn from an exponential distribution.

    pip install -r dev/requirements.txt && python dev/peers/peer_turns.py [--threads 2] [--latency 0.1]

The trainer's loop generates turn by turn: all completions draw a turn, all their tools are waited for, and all draw the next
one. What a completion writes is not read: every turn but the last is a call. This, and that a turn has a fixed length, is
all that is replaced of TRL; its generation, its tools, which are coroutines, and its loop are as they are. The model and the
tokenizer, with one token per character, are made here; nothing is downloaded and nothing is reported. Prints one JSON line:
seconds of sampling, the share of them in which the model computes, peak resident memory in MiB.
"""

import asyncio
import json
import random
import resource
import statistics
import tempfile
import time

import peer

parser = peer.options(__doc__, steps=1)
parser.set_defaults(vocab=256)
parser.add_argument("--samples", type=int, default=128, help="completions")
parser.add_argument("--turns", type=int, default=4, help="turns of a completion")
parser.add_argument("--drawn", type=int, default=8, help="tokens that are drawn in a turn")
parser.add_argument("--observed", type=int, default=8, help="tokens of an answer")
parser.add_argument("--latency", type=float, default=0.1, help="mean time until an answer comes, in seconds")
o = peer.start(parser)

import torch
import trl
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback
from trl.trainer import grpo_trainer

PROMPT = 32
ANSWER = chr(0x100)  # the character of which answers consist; no prompt has it, and the model cannot draw it
tokenizer = peer.character_tokenizer(o.vocab)
tokenizer.chat_template = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}"
    "{% endfor %}{% endfor %}")
tokenizer.response_template = {}  # TRL asks parse_response(), which is replaced below
waits = random.Random(3)


async def wait() -> str:
    """Waits, and answers."""
    await asyncio.sleep(waits.expovariate(1 / o.latency) if o.latency else 0)
    return ANSWER * o.observed


def parse_response(_, ids, prefix, **__):
    """Every turn but the last is a call."""
    assert len(ids) == o.drawn
    turn = {"role": "assistant", "content": ""}
    if list(prefix).count(0) < o.observed * (o.turns - 1):  # 0: the token of ANSWER
        turn["tool_calls"] = [{"type": "function", "function": {"name": "wait", "arguments": {}}}]
    return turn


grpo_trainer.parse_response = parse_response
clock = {"_generate": [], "_generate_single_turn": []}


def timed(trainer, name):
    """Adds the seconds of each call of a trainer's method to the clock."""
    method = getattr(trainer, name)

    def run(*arguments, **options):
        start = time.perf_counter()
        result = method(*arguments, **options)
        clock[name].append(time.perf_counter() - start)
        return result

    setattr(trainer, name, run)


def reward(completion_ids, **_):
    assert all(len(ids) == (o.drawn + o.observed) * o.turns - o.observed for ids in completion_ids)
    return [float(len(set(ids))) for ids in completion_ids]


draw = torch.randint(1, o.vocab - 2, (o.samples, PROMPT)).tolist()
data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "".join(chr(0x100 + i) for i in ids)}] for ids in draw]})
model = GPT2LMHeadModel(GPT2Config(**peer.shape(o), bos_token_id=o.vocab - 1, eos_token_id=o.vocab - 1))
with tempfile.TemporaryDirectory() as folder:
    config = trl.GRPOConfig(**peer.settings(o, folder), per_device_train_batch_size=o.samples, num_generations=2,
                            max_completion_length=(o.drawn + o.observed) * o.turns,
                            generation_kwargs={"min_new_tokens": o.drawn, "max_new_tokens": o.drawn, "suppress_tokens": [0]})
    trainer = trl.GRPOTrainer(model, reward, config, train_dataset=data, processing_class=tokenizer, tools=[wait])
    trainer.remove_callback(PrinterCallback)
    for name in clock:
        timed(trainer, name)
    trainer.train()
assert len(clock["_generate_single_turn"]) == o.turns * len(clock["_generate"])
rounds = range(1, len(clock["_generate"]))  # the first one is not counted
computing = [sum(clock["_generate_single_turn"][o.turns * i:o.turns * (i + 1)]) for i in rounds]
seconds = statistics.median(clock["_generate"][i] for i in rounds)
print(json.dumps({"peer": f"trl {trl.__version__}, torch {torch.__version__}", "threads": o.threads, "samples": o.samples,
                  "turns": o.turns, "latency": o.latency, "seconds": round(seconds, 2),
                  "computing": round(sum(computing) / sum(clock["_generate"][i] for i in rounds), 4),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
