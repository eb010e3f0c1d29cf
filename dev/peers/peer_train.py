"""Benchmark of a training step in eager PyTorch, the peer of bench_train: GPT-2 124M, forward, backward, clipping, AdamW.

    pip install -r dev/requirements.txt && python dev/peers/peer_train.py [--dtype float32|bfloat16] [--threads 2]

It runs transformers' GPT2LMHeadModel with random weights and random tokens, no dropout, scaled_dot_product_attention and
fused AdamW (PyTorch's fastest). bfloat16 is torch.autocast with float32 weights, PyTorch's recipe for mixed precision.
Prints one JSON line: tokens/s of the median step, peak resident memory in MiB.
"""

import argparse
import json
import os
import resource
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--batch", type=int, default=4, help="sequences per step")
parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
parser.add_argument("--layers", type=int, default=12)
parser.add_argument("--heads", type=int, default=12)
parser.add_argument("--width", type=int, default=768)
parser.add_argument("--vocab", type=int, default=50257)
parser.add_argument("--steps", type=int, default=3, help="timed steps, after one untimed step")
o = parser.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(o.threads), TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
torch.set_num_threads(o.threads)
torch.manual_seed(1)
model = GPT2LMHeadModel(GPT2Config(vocab_size=o.vocab, n_embd=o.width, n_layer=o.layers, n_head=o.heads, resid_pdrop=0,
                                   embd_pdrop=0, attn_pdrop=0, use_cache=False, bos_token_id=None, eos_token_id=None))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
tokens = torch.randint(o.vocab, (o.batch, o.length))
times = []
for step in range(o.steps + 1):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=o.dtype == "bfloat16"):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.append(time.perf_counter() - start)
seconds = statistics.median(times[1:])
print(json.dumps({"peer": f"torch {torch.__version__}, transformers {transformers.__version__}", "dtype": o.dtype,
                  "threads": o.threads, "batch": o.batch, "length": o.length,
                  "parameters": sum(p.numel() for p in model.parameters()), "seconds_per_step": round(seconds, 4),
                  "tokens_per_second": round(o.batch * o.length / seconds, 1),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
