"""Benchmark of TRL's GRPOTrainer on the CPU, the peer of train_grpo; with --algo rloo of its RLOOTrainer, the peer of
train_ppo --algo rloo: 6 layers, width 384, 8 prompts x 8 samples, 32 + 64 tokens.

    pip install -r dev/requirements.txt && python dev/peers/peer_grpo.py [--algo rloo] [--threads 2] [--steps 3] [--dtype bfloat16]
    python dev/peers/peer_grpo.py --model FOLDER            (peer_folder.py makes one)

TRL's defaults apply except for what the comparison fixes: float32 unless --dtype bfloat16 (which is TRL's default), no
gradient checkpointing (it would only slow TRL down), one optimizer step per batch, and min_new_tokens, so that every sample
has the full length. The tokenizer is built here, with one token per character; nothing is downloaded and nothing is
reported. Prints one JSON line: optimizer steps/s of the median step (sampling, scoring, update), peak resident memory in
MiB.
"""

import tempfile

import peer

parser = peer.options(__doc__, steps=3)
parser.add_argument("--algo", choices=["grpo", "rloo"], default="grpo")
parser.add_argument("--prompts", type=int, default=8)
parser.add_argument("--samples", type=int, default=8, help="samples per prompt")
parser.add_argument("--prompt", type=int, default=32, help="tokens per prompt")
parser.add_argument("--new", type=int, default=64, help="tokens per sample")
parser.add_argument("--beta", type=float, help="strength of the KL penalty; 0 uses no reference model (default as in TRL: 0; rloo: 0.05)")
parser.add_argument("--model", help="folder of the model, in place of GPT-2 with --layers, --heads, --width and --vocab")
peer.lora_option(parser)
o = peer.start(parser)
if o.beta is None:
    o.beta = 0.0 if o.algo == "grpo" else 0.05

import torch
import trl
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

Config, Trainer = (trl.GRPOConfig, trl.GRPOTrainer) if o.algo == "grpo" else (trl.RLOOConfig, trl.RLOOTrainer)

if o.model:
    o.vocab = AutoConfig.from_pretrained(o.model).vocab_size
tokenizer = peer.character_tokenizer(o.vocab)
if o.model:
    model = AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32, bos_token_id=o.vocab - 1,
                                                 eos_token_id=o.vocab - 1)
else:
    model = GPT2LMHeadModel(GPT2Config(**peer.shape(o), bos_token_id=o.vocab - 1, eos_token_id=o.vocab - 1))
draw = torch.randint(o.vocab - 2, (o.prompts * (o.steps + 1), o.prompt)).tolist()
data = Dataset.from_dict({"prompt": ["".join(chr(0x100 + i) for i in ids) for ids in draw]})
assert len(tokenizer(data[0]["prompt"])["input_ids"]) == o.prompt


def reward(completions, completion_ids, **_):
    assert all(len(ids) == o.new for ids in completion_ids)
    return [float(len(set(ids))) for ids in completion_ids]


with tempfile.TemporaryDirectory() as folder:
    config = Config(**peer.settings(o, folder), per_device_train_batch_size=o.prompts * o.samples,
                    num_generations=o.samples, max_completion_length=o.new, generation_kwargs={"min_new_tokens": o.new},
                    beta=o.beta)
    model.save_pretrained(folder + "/model")  # TRL loads its reference model from the model's path
    model = type(model).from_pretrained(folder + "/model")
    trainer = Trainer(model, reward, config, train_dataset=data, processing_class=tokenizer, peft_config=peer.adapters(o))
    peer.measure(trainer, o, tokens=o.prompts * o.samples * o.new, algo=o.algo, prompts=o.prompts, samples=o.samples,
                 prompt=o.prompt, new=o.new, beta=o.beta)
