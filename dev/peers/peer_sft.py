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
from peer import EOS, PAD

parser = peer.options(__doc__, steps=4)
parser.add_argument("--data", required=True, help="JSON lines with prompt and chosen")
parser.add_argument("--model", required=True, help="folder of the model")
parser.add_argument("--lora-rank", type=int, default=0, help="train PEFT's adapters of this rank; 0 trains all weights")
parser.add_argument("--batch", type=int, default=4, help="rows per step")
o = peer.start(parser)

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

rows = peer.pairs(o)
data = Dataset.from_dict({"prompt": [r["prompt"] for r in rows], "completion": [r["chosen"] for r in rows]})
words = {chr(i): i for i in range(256)}
words.update({"<eos>": EOS, "<pad>": PAD})
backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
model = AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32)
adapters = None
if o.lora_rank:
    from peft import LoraConfig
    adapters = LoraConfig(r=o.lora_rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
counts = []


class Trainer(SFTTrainer):
    def training_step(self, model, inputs, *rest):
        mask = inputs["attention_mask"]
        counts.append(int(mask.sum()))
        return super().training_step(model, inputs, *rest)


with tempfile.TemporaryDirectory() as folder:
    config = SFTConfig(**peer.settings(o, folder), per_device_train_batch_size=o.batch, max_length=None)
    trainer = Trainer(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapters)
    peer.measure(trainer, o, tokens=counts, batch=o.batch, lora_rank=o.lora_rank)
