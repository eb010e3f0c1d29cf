"""Benchmark of TRL's DPOTrainer on the CPU, the peer of train_dpo: 6 layers, width 384, 8 pairs per step, live reference.

    pip install -r dev/requirements.txt
    data/make_prefs --count 200 --prompt-length 256 --min-length 16 --max-length 96 -o prefs.jsonl
    python dev/peers/peer_dpo.py --data prefs.jsonl [--threads 2] [--steps 4] [--dtype bfloat16]

peer.PAIRS describes the comparison; --help prints it too.
"""

import tempfile

import peer
from peer import EOS, PAD

o = peer.start(peer.pair_options(__doc__))

from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel
from trl import DPOConfig, DPOTrainer

rows = peer.pairs(o)
data = Dataset.from_dict({key: [r[key] for r in rows] for key in ("prompt", "chosen", "rejected")})
tokenizer = peer.byte_tokenizer()
model = GPT2LMHeadModel(GPT2Config(
    **peer.shape(o), pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS))
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder + "/model")  # TRL loads its reference model from the model's path
    model = GPT2LMHeadModel.from_pretrained(folder + "/model")
    config = DPOConfig(**peer.settings(o, folder), per_device_train_batch_size=o.batch)
    trainer = DPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    peer.measure(trainer, o, batch=o.batch)
