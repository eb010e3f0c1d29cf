"""Adapters that the library peft writes, with transformers' log-probabilities in float64.

    pip install torch transformers peft safetensors && python dev/golden/golden_peft.py

For a model of tests/golden/families each (NAME up to "-dora"), writes a folder tests/golden/peft/NAME:
adapter_config.json and adapter_model.safetensors by save_pretrained, and for the tokens of the model's own
expected.safetensors, computed in float64:
    logp.safetensors    the log-probability of the token after each token, 0 after the last one of a sequence
    train.safetensors   of DoRA: grad.NAME, the gradients of the mean cross-entropy over all targets; adamw.NAME, the
                        adapters after 5 steps of AdamW: lr 1e-2, betas 0.9 and 0.999, eps 1e-8, decay 0.1 of matrices
"""

import os
import shutil
import sys

import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, os.path.dirname(__file__))
import golden_families  # noqa: E402  (its patches make transformers compute in float64)

families = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../tests/golden/families"))
root = os.path.join(os.path.dirname(__file__), "../../tests/golden/peft")
ADAPTERS = {
    "llama-a": dict(r=3, lora_alpha=6, target_modules="all-linear"),
    "qwen3": dict(r=2, lora_alpha=5, target_modules=["q_proj", "v_proj", "up_proj"], use_rslora=True),
    "phi3": dict(r=4, lora_alpha=32, target_modules=["qkv_proj", "gate_up_proj"]),
    "gpt2": dict(r=2, lora_alpha=16, target_modules=["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"], fan_in_fan_out=True),
}
ADAPTERS["llama-a-dora"] = dict(r=3, lora_alpha=6, target_modules="all-linear", use_dora=True)
ADAPTERS["qwen3-dora"] = dict(ADAPTERS["qwen3"], use_dora=True)
ADAPTERS["gpt2-dora"] = dict(ADAPTERS["gpt2"], use_dora=True)


def loss_of(model, given):
    at, total, count = 0, 0, 0
    for n in given["length"].int().tolist():
        tokens = given["token"][at:at + n].long()
        log_softmax = model(tokens[None]).logits[0].log_softmax(-1)
        total -= log_softmax[:-1].gather(1, tokens[1:, None]).sum()
        count += n - 1
        at += n
    return total / count


def saved_name(name):
    return name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")


def train(model, given):
    parameters = {saved_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    loss_of(model, given).backward()
    out = {f"grad.{n}": p.grad.clone() for n, p in parameters.items()}
    optimizer = torch.optim.AdamW([dict(params=[p for p in parameters.values() if p.dim() == 2], weight_decay=0.1),
                                   dict(params=[p for p in parameters.values() if p.dim() != 2], weight_decay=0.0)],
                                  lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model, given).backward()
        optimizer.step()
    out |= {f"adamw.{n}": p for n, p in parameters.items()}
    return {n: p.detach().float().contiguous() for n, p in out.items()}


def main():
    for name, settings in ADAPTERS.items():
        torch.manual_seed(17)
        base = name.removesuffix("-dora")
        model = AutoModelForCausalLM.from_pretrained(f"{families}/{base}", dtype=torch.float32)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_magnitude" in key:
                    value.mul_(1 + 0.2 * torch.randn(value.shape))
                elif "lora_" in key:
                    value.normal_(0, 0.2)
        shutil.rmtree(f"{root}/{name}", ignore_errors=True)
        model.save_pretrained(f"{root}/{name}")
        os.remove(f"{root}/{name}/README.md")
        config = f"{root}/{name}/adapter_config.json"
        text = open(config).read()
        open(config, "w").write(text.replace(os.path.abspath(f"{families}/{base}"), "base"))
        double = golden_families.in_double(model)
        given = load_file(f"{families}/{base}/expected.safetensors")
        logp, at = [], 0
        with torch.no_grad():
            for n in given["length"].int().tolist():
                tokens = given["token"][at:at + n].long()
                log_softmax = double(tokens[None]).logits[0].double().log_softmax(-1)
                logp += log_softmax[:-1].gather(1, tokens[1:, None])[:, 0].tolist() + [0.0]
                at += n
        save_file({"logp": torch.tensor(logp, dtype=torch.float32)}, f"{root}/{name}/logp.safetensors")
        if settings.get("use_dora"):
            save_file(train(double, given), f"{root}/{name}/train.safetensors")
        print(name, sum(logp) / len(logp))


if __name__ == "__main__":
    main()
