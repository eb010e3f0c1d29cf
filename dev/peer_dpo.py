"""TRL's DPOTrainer beside our train_dpo, on the CPU: 6 layers, width 384, 8 pairs a step, a live reference.

    pip install -r dev/requirements.txt
    data/make_prefs -n 200 --prompt-length 256 --min-length 16 --max-length 96 -o prefs.jsonl
    python dev/peer_dpo.py --data prefs.jsonl [--threads 2] [--steps 4] [--dtype bfloat16]

Both train on the same pairs, a token a byte and one for the end; TRL pads the answers of a step to the longest and runs the
prompt twice. TRL's defaults but for what the comparison fixes: float32 unless --dtype bfloat16, TRL's own default, and no
gradient checkpointing (it would only slow TRL down). Nothing is downloaded and nothing is reported. Prints one JSON line:
optimizer steps/s of the median step, peak resident memory in MiB.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, help="JSON lines with prompt, chosen, rejected")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--layers", type=int, default=6)
parser.add_argument("--heads", type=int, default=6)
parser.add_argument("--width", type=int, default=384)
parser.add_argument("--vocab", type=int, default=260)
parser.add_argument("--batch", type=int, default=8, help="pairs a step")
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
parser.add_argument("--steps", type=int, default=4, help="steps that are timed, after one that is not")
o = parser.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", WANDB_MODE="disabled",
                  OMP_NUM_THREADS=str(o.threads), TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

transformers.logging.set_verbosity_error()
torch.set_num_threads(o.threads)
torch.manual_seed(1)
EOS, PAD = 256, 259
rows = [json.loads(line) for line in open(o.data)]
data = Dataset.from_dict({key: [r[key] for r in rows] for key in ("prompt", "chosen", "rejected")})
words = {chr(i): i for i in range(256)}
words.update({"<eos>": EOS, "<pad>": PAD})
backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
assert tokenizer("ab:<eos>")["input_ids"] == [97, 98, 58, EOS]
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=o.vocab, n_embd=o.width, n_layer=o.layers, n_head=o.heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    n_positions=1024, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS))


class Clock(TrainerCallback):
    times = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.times.append(time.perf_counter() - self.start)


with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder + "/model")  # TRL loads its reference model from where the model came from
    model = GPT2LMHeadModel.from_pretrained(folder + "/model")
    config = DPOConfig(output_dir=folder, use_cpu=True, bf16=o.dtype == "bfloat16", gradient_checkpointing=False,
                       report_to="none", per_device_train_batch_size=o.batch, max_steps=o.steps + 1,
                       save_strategy="no", logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False)
    trainer = DPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
seconds = statistics.median(Clock.times[1:])
print(json.dumps({"peer": f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
                  "dtype": o.dtype, "threads": o.threads, "batch": o.batch,
                  "parameters": sum(p.numel() for p in model.parameters()),
                  "seconds_per_step": round(seconds, 3), "steps_per_second": round(1 / seconds, 4),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
