"""Makes the folder of a model with SmolLM2-135M's shape and random weights, for the benchmarks of both sides.

    pip install -r dev/requirements.txt && python dev/peers/peer_folder.py FOLDER

The numbers are those of SmolLM2-135M's config.json (llmc's are in dev/shapes.h). The weights are float32. The folder has no
tokenizer and no end token, so that every sample has its full length. Nothing is downloaded.
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", metavar="FOLDER", help="where to write config.json and the weights")
arguments = parser.parse_args()

torch.manual_seed(1)
LlamaForCausalLM(LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
    bos_token_id=None, eos_token_id=None, pad_token_id=None)).save_pretrained(arguments.folder)
