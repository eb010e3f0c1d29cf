"""Benchmark of a training step in eager PyTorch, the peer of bench_train: GPT-2 124M, forward, backward, clipping, AdamW.

    pip install -r dev/requirements.txt
    python dev/peers/peer_train.py [--dtype float32|bfloat16] [--threads 2] [--model FOLDER] [--lora-rank 16] [--pure]

It runs transformers' GPT2LMHeadModel with random weights, or the model of a folder (peer_folder.py makes one), on random
tokens, without dropout, with scaled_dot_product_attention and fused AdamW (PyTorch's fastest). bfloat16 is torch.autocast
with float32 weights, PyTorch's recipe for mixed precision; with --pure the weights are bfloat16, too. --lora-rank trains
PEFT's adapters of all linear layers.
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
parser.add_argument("--model", help="folder of the model, in place of GPT-2 with --layers, --heads, --width and --vocab")
parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank; 0 trains all weights")
parser.add_argument("--pure", action="store_true", help="bfloat16 weights, without autocast")
parser.add_argument("--steps", type=int, default=3, help="timed steps, after one untimed step")
o = parser.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(o.threads), TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
torch.set_num_threads(o.threads)
torch.manual_seed(1)
if o.model:
    model = AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32, use_cache=False)
else:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=o.vocab, n_embd=o.width, n_layer=o.layers, n_head=o.heads, resid_pdrop=0,
                                       embd_pdrop=0, attn_pdrop=0, use_cache=False, bos_token_id=None, eos_token_id=None))
if o.lora_rank:
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(r=o.lora_rank, lora_alpha=32, target_modules="all-linear",
                                             task_type="CAUSAL_LM"))
if o.pure:
    model = model.to(torch.bfloat16)
model.train()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
tokens = torch.randint(model.config.vocab_size, (o.batch, o.length))
times = []
for step in range(o.steps + 1):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=o.dtype == "bfloat16" and not o.pure):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.append(time.perf_counter() - start)
seconds = statistics.median(times[1:])
print(json.dumps({"peer": f"torch {torch.__version__}, transformers {transformers.__version__}", "dtype": o.dtype,
                  "pure": o.pure, "lora_rank": o.lora_rank, "threads": o.threads, "batch": o.batch, "length": o.length,
                  "parameters": sum(p.numel() for p in model.parameters()), "seconds_per_step": round(seconds, 4),
                  "tokens_per_second": round(o.batch * o.length / seconds, 1),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
