"""Checks that transformers loads the folders that this project writes, with the logits of the original.

    pip install torch transformers safetensors && make build/copy_model && python dev/check_huggingface.py [FOLDER...]

For each folder (those of tests/golden/families unless some are given), build/copy_model writes it again in six ways:
unchanged, as float32, in several files, with everything written anew (config.json with the keys of transformers 4),
with a head for rewards, and as float16. transformers must find every tensor and no other, and give equal logits: the
arithmetic is float32 on the same values; float16 has other values and only has to load. A classifier must give
score.weight times the hidden state of the last token. Prints one line per folder and fails on the first difference.
"""

import glob
import os
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def copy(folder, to, *options):
    subprocess.run([os.path.join(root, "build/copy_model"), *options, folder, to + "/"], check=True)
    return to


def load(kind, folder):
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    unused = {n for n in info["unexpected_keys"] if not n.endswith(("attn.bias", "attn.masked_bias", "lm_head.weight"))}
    assert not info["missing_keys"] and not unused and not info["mismatched_keys"], info
    return model.eval()


def logits(folder, ids):
    model = load(AutoModelForCausalLM, folder)
    with torch.no_grad():
        return model(ids).logits


folders = sys.argv[1:] or sorted(f for f in glob.glob(os.path.join(root, "tests/golden/families/*")) if os.path.isdir(f))
for folder in folders:
    with tempfile.TemporaryDirectory() as t:
        ids = torch.arange(3, 3 + 20)[None]
        want = logits(folder, ids)
        ways = {"same": [], "float32": ["--dtype", "float32"], "files": ["--file-bytes", "9000"], "new": ["--new"]}
        for name, options in ways.items():
            got = logits(copy(folder, os.path.join(t, name), *options), ids)
            assert torch.equal(got, want), (folder, name, (got - want).abs().max())
        assert len(glob.glob(os.path.join(t, "files/*.safetensors"))) > 1
        half = logits(copy(folder, os.path.join(t, "f16"), "--dtype", "f16"), ids)
        assert (half - want).abs().max() < 0.1 * want.abs().max()
        head = copy(folder, os.path.join(t, "head"), "--value-head")
        classifier = load(AutoModelForSequenceClassification, head)
        classifier.config.pad_token_id = 0
        tensors = {}
        for file in glob.glob(os.path.join(head, "*.safetensors")):
            tensors |= load_file(file)
        with torch.no_grad():
            score = classifier(ids).logits[0, 0]
            hidden = classifier.base_model(ids).last_hidden_state[0, -1]
        assert torch.allclose(score, hidden @ tensors["score.weight"].float()[0], atol=1e-5) and score != 0, folder
        print(f"{os.path.basename(folder)}: equal")
