"""Benchmark of TRL's SFTTrainer on the CPU, the peer of train_sft: rows of a prompt and a completion, 4 per step.

    pip install -r dev/requirements.txt
    data/make_prefs --count 200 --prompt-length 128 --min-length 16 --max-length 256 -o prefs.jsonl
    python dev/peers/peer_sft.py --data prefs.jsonl --model FOLDER [--lora-rank 16] [--threads 2] [--dtype bfloat16]

peer_folder.py makes the folder. Both programs train on the prompts and chosen completions of the same rows, with one token
per byte and an end token, and with a loss of the completions only. TRL pads the rows of a step to the longest. TRL's
defaults apply except for what the comparison fixes: float32 unless --dtype bfloat16 (which is TRL's default), and no
gradient checkpointing (it would only slow TRL down). Nothing is downloaded and nothing is reported. Prints one JSON line:
tokens/s without padding over all timed steps, peak resident memory in MiB.
"""

import tempfile

import peer

parser = peer.options(__doc__, steps=4, shape=False)
parser.add_argument("--data", required=True, help="JSON lines with prompt and chosen")
parser.add_argument("--model", required=True, help="folder of the model")
peer.lora_option(parser)
parser.add_argument("--batch", type=int, default=4, help="rows per step")
o = peer.start(parser)

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

rows = peer.pairs(o)
data = Dataset.from_dict({"prompt": [r["prompt"] for r in rows], "completion": [r["chosen"] for r in rows]})
tokenizer = peer.byte_tokenizer()
model = AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32)
counts = []


class Trainer(SFTTrainer):
    def training_step(self, model, inputs, *rest):
        counts.append(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *rest)


with tempfile.TemporaryDirectory() as folder:
    config = SFTConfig(**peer.settings(o, folder), per_device_train_batch_size=o.batch, max_length=None)
    trainer = Trainer(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=peer.adapters(o))
    peer.measure(trainer, o, tokens=counts, batch=o.batch, lora_rank=o.lora_rank)
