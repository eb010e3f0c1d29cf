"""Benchmark of TRL's RewardTrainer on the CPU, the peer of train_rm: 6 layers, width 384, 8 pairs per step.

    pip install -r dev/requirements.txt
    data/make_prefs --count 200 --prompt-length 256 --min-length 16 --max-length 96 -o prefs.jsonl
    python dev/peers/peer_rm.py --data prefs.jsonl [--threads 2] [--steps 4] [--dtype bfloat16]

peer.PAIRS describes the comparison; --help prints it too.
"""

import tempfile

import peer
from peer import EOS, PAD

o = peer.start(peer.pair_options(__doc__))

from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

rows = peer.pairs(o)
tokens = [[list((r["prompt"] + r[side]).encode()) + [EOS] for side in ("chosen", "rejected")] for r in rows]
data = Dataset.from_dict({"chosen_ids": [t[0] for t in tokens], "rejected_ids": [t[1] for t in tokens]})
words = {chr(0x100 + i): i for i in range(o.vocab)}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token=chr(0x100))),
                                    pad_token=chr(0x100 + PAD), eos_token=chr(0x100 + EOS))
model = GPT2ForSequenceClassification(GPT2Config(
    **peer.shape(o), num_labels=1, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS))
with tempfile.TemporaryDirectory() as folder:
    config = RewardConfig(**peer.settings(o, folder), per_device_train_batch_size=o.batch)
    trainer = RewardTrainer(model, config, train_dataset=data, processing_class=tokenizer)
    peer.measure(trainer, o, batch=o.batch)
