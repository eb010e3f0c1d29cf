"""Benchmark of transformers' generate, the peer of bench_decode: GPT-2 124M, 32 sequences, 32 + 64 tokens, sampled.

    pip install -r dev/requirements.txt
    python dev/peers/peer_generate.py [--dtype float32|bfloat16] [--threads 2] [--model FOLDER]

Random weights, or the model of a folder (peer_folder.py makes one), and random prompts, with KV cache and without an end
token, so every sequence has the full length.
Prints one JSON line: new tokens/s of the median run, peak resident memory in MiB.
"""

import argparse
import json
import os
import resource
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="type of the weights")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--sequences", type=int, default=32)
parser.add_argument("--prompt", type=int, default=32, help="tokens per prompt")
parser.add_argument("--new", type=int, default=64, help="tokens sampled per sequence")
parser.add_argument("--layers", type=int, default=12)
parser.add_argument("--heads", type=int, default=12)
parser.add_argument("--width", type=int, default=768)
parser.add_argument("--vocab", type=int, default=50257)
parser.add_argument("--model", help="folder of the model, in place of GPT-2 with --layers, --heads, --width and --vocab")
parser.add_argument("--greedy", action="store_true")
parser.add_argument("--runs", type=int, default=2, help="timed runs, after a short untimed run")
o = parser.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(o.threads), TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
torch.set_num_threads(o.threads)
torch.manual_seed(1)
if o.model:
    model = AutoModelForCausalLM.from_pretrained(o.model)
else:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=o.vocab, n_embd=o.width, n_layer=o.layers, n_head=o.heads,
                                       bos_token_id=None, eos_token_id=None))
model = model.to(getattr(torch, o.dtype)).eval()
prompts = torch.randint(model.config.vocab_size, (o.sequences, o.prompt))


def run(new):
    config = GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=not o.greedy, top_k=0, use_cache=True,
                              pad_token_id=0)
    start = time.perf_counter()
    with torch.inference_mode():
        tokens = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
    assert tokens.shape == (o.sequences, o.prompt + new)
    return time.perf_counter() - start


run(2)
seconds = statistics.median(run(o.new) for _ in range(o.runs))
print(json.dumps({"peer": f"transformers {transformers.__version__}, torch {torch.__version__}", "dtype": o.dtype,
                  "threads": o.threads, "sequences": o.sequences, "prompt": o.prompt, "new": o.new,
                  "parameters": sum(p.numel() for p in model.parameters()), "seconds": round(seconds, 3),
                  "tokens_per_second": round(o.sequences * o.new / seconds, 1),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
