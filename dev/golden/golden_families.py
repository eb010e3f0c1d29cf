"""Tiny random models of every family as transformers writes them, with transformers' results in float64.

    pip install torch transformers safetensors && python dev/golden/golden_families.py

Writes a folder tests/golden/families/NAME for each model of MODELS: config.json, generation_config.json and
model.safetensors by save_pretrained (weights in bfloat16), and expected.safetensors, all of it float32:
    length         tokens of each of the two sequences; each runs alone
    token          all tokens, sequence by sequence
    logp           log-probability of the token after each token; 0 after the last one of a sequence
    entropy        of the distribution of the next token, for every token
    logits_row     rows (of `token`) whose logits are given;  logits (rows, vocab)
    loss           mean cross-entropy over all targets of both sequences, before each of 10 steps of AdamW and after them
    grad.TENSOR    the gradient of that mean at the folder's weights, under the names and in the shapes of the file
    adamw.TENSOR   the weights after 10 steps: lr 1e-3, betas 0.9 and 0.999, eps 1e-8, decoupled weight decay 0.1 of
                   tensors of two dimensions and 0 of vectors, no clipping
    greedy         a prompt of 5 tokens and the 16 tokens that greedy decoding adds
Frequencies of rotary positions and their product with the position are float32, as in every implementation; all else is
float64. longrope uses one list for the whole run: the long one in phi3-longrope/expected.safetensors, the short one in
phi3-longrope/expected_short.safetensors, whose sequences are not longer than the original context;
phi3-longrope/expected_growing.safetensors holds two sequences that grow past it. gpt2-bare holds the
weights of gpt2 with the names of the published file: no prefix, and the buffers of the causal mask.
"""

import copy
import functools
import os
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

root = os.path.join(os.path.dirname(__file__), "../../tests/golden/families")
VOCAB, CONTEXT, LENGTHS, STEPS, GREEDY = 67, 64, (37, 22), 10, 16
small = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def rope(kind="default", theta=10000.0, **fields):
    return dict(rope_type=kind, rope_theta=theta, **fields)


MODELS = {
    "llama-a": ("llama", dict(head_dim=12, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                              eos_token_id=[2, 5], rms_norm_eps=1e-5,
                              rope_parameters=rope("llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                   original_max_position_embeddings=16))),
    "llama-b": ("llama", dict(num_key_value_heads=4, tie_word_embeddings=True, rope_parameters=rope("linear", factor=2.5))),
    "mistral": ("mistral", dict(head_dim=12, sliding_window=9, tie_word_embeddings=False)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True, rope_parameters=rope(theta=1e6))),
    "qwen2-yarn": ("qwen2", dict(tie_word_embeddings=False, num_hidden_layers=1, num_attention_heads=2,
                                 num_key_value_heads=1,
                                 rope_parameters=rope("yarn", 100.0, factor=4.0, original_max_position_embeddings=32))),
    "qwen3": ("qwen3", dict(head_dim=12, tie_word_embeddings=True, rope_parameters=rope(theta=1e6))),
    "qwen3-odd": ("qwen3", dict(hidden_size=36, num_attention_heads=6, num_key_value_heads=3, head_dim=10,
                                tie_word_embeddings=False)),
    "smollm3": ("smollm3", dict(num_hidden_layers=4, intermediate_size=24, no_rope_layers=[1, 1, 1, 0],
                                rope_parameters=rope(theta=5e6))),
    "olmo2": ("olmo2", dict(tie_word_embeddings=False, rope_parameters=rope(theta=5e5))),
    "phi3": ("phi3", dict(sliding_window=9, tie_word_embeddings=False,
                          rope_parameters=rope(partial_rotary_factor=0.75))),
    "phi3-longrope": ("phi3", dict(tie_word_embeddings=False, original_max_position_embeddings=24,
                                   rope_parameters=rope("longrope", short_factor=[1.0, 1.05, 1.2, 1.5],
                                                        long_factor=[1.1, 1.6, 2.3, 2.6],
                                                        original_max_position_embeddings=24))),
    "gemma2": ("gemma2", dict(head_dim=12, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
                              query_pre_attn_scalar=20, sliding_window=9)),
    "gemma3": ("gemma3_text", dict(hidden_size=16, intermediate_size=24, num_hidden_layers=7, num_attention_heads=2,
                                   num_key_value_heads=1, head_dim=12, query_pre_attn_scalar=20, sliding_window=9,
                                   rope_parameters=dict(full_attention=rope("linear", 1e6, factor=8.0),
                                                        sliding_attention=rope(theta=1e4)))),
    "gpt2": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, resid_pdrop=0.0, embd_pdrop=0.0,
                          attn_pdrop=0.0)),
}


def configuration(name):
    kind, fields = MODELS[name]
    common = {k: v for k, v in small.items() if kind != "gpt2" or "_size" not in k or k == "vocab_size"}
    if kind == "gpt2":
        common = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2)
    return AutoConfig.for_model(kind, **{**common, **fields})


def write_folder(name):
    """A model whose weights are far from the initial ones, whose zeros and ones would hide errors."""
    model = AutoModelForCausalLM.from_config(configuration(name))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


# ---- transformers in float64: its modules round to float32 in three places -----------------------------------------


def norm_forward(self, x):
    weight = 1 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
    eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotary_forward(self, x, position_ids, layer_type=None):
    prefix = f"{layer_type}_" if layer_type else ""
    angle = position_ids[..., None].float() * getattr(self, prefix + "inv_freq").float()
    angle = torch.cat([angle, angle], -1).double()
    m = getattr(self, prefix + "attention_scaling")
    return angle.cos() * m, angle.sin() * m


softmax = torch.nn.functional.softmax
torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim=dim, dtype=x.dtype)


def in_double(model):
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(norm_forward, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = functools.partial(rotary_forward, module)
    return model


def use_list(model, length):
    """Sets longrope's list to that of a run of this length."""
    module = model.model.rotary_emb
    inv_freq, m = ROPE_INIT_FUNCTIONS["longrope"](model.config, "cpu", seq_len=length)
    assert m == module.attention_scaling
    module.inv_freq = inv_freq


# ---- results -------------------------------------------------------------------------------------------------------


def rows(model, sequences):
    """Logits of all rows, and log-probability and entropy of each, sequence by sequence."""
    logits, logp, entropy = [], [], []
    for tokens in sequences:
        z = model(tokens[None], use_cache=False).logits[0]
        log_p = z.log_softmax(-1)
        logits.append(z)
        logp.append(log_p[:-1].gather(1, tokens[1:, None])[:, 0])
        entropy.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(logits), logp, torch.cat(entropy)


def greedy(model):
    """A prompt and its continuation whose choices are clear by at least 0.01, so that rounding changes none."""
    while True:
        tokens = torch.randint(VOCAB, (5,))
        with torch.no_grad():
            for _ in range(GREEDY):
                best = model(tokens[None], use_cache=False).logits[0, -1].topk(2)
                if best.values[0] - best.values[1] < 0.01:
                    break
                tokens = torch.cat([tokens, best.indices[:1]])
        if len(tokens) == 5 + GREEDY and len(set(tokens.tolist())) > 8:
            return tokens


def growing(model):
    """Greedy decoding past longrope's original context of 24 tokens by generate(), which chooses the list, and computes its
    cache again, by itself: sequences of 45 tokens from prompts of 12 and of 30, each choice clear by at least 0.01."""
    out = []
    for prompt in (12, 30):
        while True:
            tokens = torch.randint(VOCAB, (1, prompt))
            found = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=45 - prompt,
                                   do_sample=False, eos_token_id=None, pad_token_id=0, output_scores=True,
                                   return_dict_in_generate=True)
            best = torch.cat(found.scores).topk(2).values
            new = found.sequences[0, prompt:].tolist()
            if (best[:, 0] - best[:, 1]).min() > 0.01 and len(set(new)) > 6:
                break
        out.append(found.sequences[0])
    return {"prompt": torch.tensor([12.0, 30.0]), "length": torch.tensor([45.0, 45.0]), "token": torch.cat(out).float()}


def expected(model, plain, sequences, names, steps):
    """The values to write; plain: the same model in float32 without changes, which must agree to rounding."""
    out = {"length": [len(t) for t in sequences], "token": torch.cat(sequences), "greedy": greedy(model)}
    logits, logp, entropy = rows(model, sequences)
    with torch.no_grad():
        reference = plain(sequences[0][None], use_cache=False).logits[0]
    difference = (logits[: len(reference)] - reference).abs().max().item()
    assert difference < 1e-4, difference
    chosen = [0, 8, 9, len(sequences[0]) - 1, len(logits) - 1]
    out |= {"logits_row": chosen, "logits": logits[chosen], "entropy": entropy,
            "logp": torch.cat([torch.cat([x, x.new_zeros(1)]) for x in logp])}
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(names), set(parameters) ^ set(names)
    losses = []
    optimizer = torch.optim.AdamW([dict(params=[p for p in parameters.values() if p.dim() == 2], weight_decay=0.1),
                                   dict(params=[p for p in parameters.values() if p.dim() == 1], weight_decay=0)],
                                  lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    for step in range(steps + 1):
        loss = -torch.cat(rows(model, sequences)[1]).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            out |= {f"grad.{n}": p.grad.clone() for n, p in parameters.items()}
        if step < steps:
            optimizer.step()
    if steps:
        out |= {f"adamw.{n}": p for n, p in parameters.items()}
    out["loss"] = losses
    return {k: torch.as_tensor(v).detach().float().contiguous() for k, v in out.items()}, difference


def main():
    for number, name in enumerate(MODELS):
        torch.manual_seed(100 + number)
        folder = write_folder(name)
        attention = "eager" if name == "gemma2" else "sdpa"  # only eager has the cap on scores
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).train()
        model = in_double(plain)
        file = load_file(os.path.join(folder, "model.safetensors"))
        assert all(torch.equal(model.state_dict()[n].float(), x.float()) for n, x in file.items())
        sequences = [torch.randint(VOCAB, (n,)) for n in LENGTHS]
        if name == "phi3-longrope":
            save_file(growing(plain), os.path.join(folder, "expected_growing.safetensors"))
            torch.manual_seed(100 + number)
            use_list(model, 24)
            short, _ = expected(model, plain, [sequences[0][:24], sequences[1]], file, 0)
            save_file(short, os.path.join(folder, "expected_short.safetensors"))
            use_list(model, CONTEXT)
        values, difference = expected(model, plain, sequences, file, STEPS)
        save_file(values, os.path.join(folder, "expected.safetensors"))
        print(f"{name}: {sum(p.numel() for p in plain.parameters())} parameters, loss {values['loss'][0]:.4f} to "
              f"{values['loss'][-1]:.4f}, float32 differs by {difference:.1e}")

    bare = os.path.join(root, "gpt2-bare")
    shutil.rmtree(bare, ignore_errors=True)
    shutil.copytree(os.path.join(root, "gpt2"), bare, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = {n.removeprefix("transformer."): x for n, x in load_file(os.path.join(root, "gpt2/model.safetensors")).items()}
    for layer in range(2):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bfloat16).tril()
    save_file(weights, os.path.join(bare, "model.safetensors"), metadata={"format": "pt"})
    print("transformers", transformers.__version__, "torch", torch.__version__)


if __name__ == "__main__":
    main()
