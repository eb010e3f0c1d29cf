"""TRL's RLOOTrainer beside our train_ppo --algo rloo, on the CPU: 6 layers, width 384, 8 prompts x 8 samples, 32 + 64 tokens.

    pip install -r dev/requirements.txt && python dev/peer_rloo.py [--threads 2] [--steps 3] [--dtype bfloat16]

TRL's defaults but for what the comparison fixes: float32 unless --dtype bfloat16, TRL's own default, no gradient checkpointing (it would only slow TRL down), one
optimizer step a batch, and min_new_tokens, so that every sample has the full length. The tokenizer is made here, one
token a character; nothing is downloaded and nothing is reported. Prints one JSON line: optimizer steps/s of the median
step (sampling, scoring, update), peak resident memory in MiB.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--layers", type=int, default=6)
parser.add_argument("--heads", type=int, default=6)
parser.add_argument("--width", type=int, default=384)
parser.add_argument("--vocab", type=int, default=260)
parser.add_argument("--prompts", type=int, default=8)
parser.add_argument("--samples", type=int, default=8, help="a prompt")
parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
parser.add_argument("--new", type=int, default=64, help="tokens of a sample")
parser.add_argument("--beta", type=float, default=0.05, help="weight of the KL penalty; 0: no reference model")
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after one that is not")
o = parser.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", WANDB_MODE="disabled",
                  OMP_NUM_THREADS=str(o.threads), TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

transformers.logging.set_verbosity_error()
torch.set_num_threads(o.threads)
torch.manual_seed(1)
characters = {chr(0x100 + i): i for i in range(o.vocab - 2)}
characters.update({"<pad>": o.vocab - 2, "<eos>": o.vocab - 1})
backend = Tokenizer(models.WordLevel(characters, unk_token="<pad>"))
backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
backend.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")
model = GPT2LMHeadModel(GPT2Config(vocab_size=o.vocab, n_embd=o.width, n_layer=o.layers, n_head=o.heads, resid_pdrop=0,
                                   embd_pdrop=0, attn_pdrop=0, n_positions=1024, bos_token_id=o.vocab - 1,
                                   eos_token_id=o.vocab - 1))
draw = torch.randint(o.vocab - 2, (o.prompts * (o.steps + 1), o.prompt)).tolist()
data = Dataset.from_dict({"prompt": ["".join(chr(0x100 + i) for i in ids) for ids in draw]})
assert len(tokenizer(data[0]["prompt"])["input_ids"]) == o.prompt


def reward(completions, completion_ids, **_):
    assert all(len(ids) == o.new for ids in completion_ids)
    return [float(len(set(ids))) for ids in completion_ids]


class Clock(TrainerCallback):
    times = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.times.append(time.perf_counter() - self.start)


with tempfile.TemporaryDirectory() as folder:
    config = RLOOConfig(output_dir=folder, use_cpu=True, bf16=o.dtype == "bfloat16", gradient_checkpointing=False, report_to="none",
                        per_device_train_batch_size=o.prompts * o.samples, num_generations=o.samples,
                        max_completion_length=o.new, generation_kwargs={"min_new_tokens": o.new}, beta=o.beta,
                        max_steps=o.steps + 1, save_strategy="no", logging_steps=1, disable_tqdm=True,
                        dataloader_pin_memory=False)
    model.save_pretrained(folder + "/model")  # TRL loads its reference model from where the model came from
    model = GPT2LMHeadModel.from_pretrained(folder + "/model")
    trainer = RLOOTrainer(model, reward, config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
seconds = statistics.median(Clock.times[1:])
print(json.dumps({"peer": f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
                  "dtype": o.dtype, "threads": o.threads, "prompts": o.prompts, "samples": o.samples, "prompt": o.prompt, "new": o.new,
                  "beta": o.beta, "parameters": sum(p.numel() for p in model.parameters()),
                  "seconds_per_step": round(seconds, 3), "steps_per_second": round(1 / seconds, 4),
                  "tokens_per_second": round(o.prompts * o.samples * o.new / seconds, 1),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
