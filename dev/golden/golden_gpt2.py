"""Golden values of the GPT-2 model, computed by transformers' GPT2LMHeadModel in float64 on float32 weights.

    pip install torch transformers && python dev/golden/golden_gpt2.py

Writes to tests/golden:
    gpt2_tiny.bin       the weights, llm.c's checkpoint format version 3 (Conv1D weights transposed to (out, in), the
                        padding rows of wte 0)
    gpt2_tiny_grad.bin  the gradient of `loss` for every tensor, float32, same order and shapes, no header
    gpt2_tiny.txt       in the format of tests/golden.h, with one case of each kind:
        forward   length   tokens of each sequence; each runs alone, neither packed nor padded
                  token    all tokens, sequence by sequence
                  target   the token after each token; 0 after the last one
                  logits   (tokens, vocab) of the first sequence
                  logp     log-probability of each target;  entropy  of the distribution of that token
                  w, u     weights; loss = sum_r w_r logp_r + u_r entropy_r  (the last row of a sequence has w = u = 0)
                  norm     L2 norm of the gradient over all tensors
                  temperature, logp_t, entropy_t    the same with logits / temperature
        adamw     mean next-token loss of the same tokens before each of 10 steps and after them, the gradient's norm
                  before clipping at `clip` (torch.nn.utils.clip_grad_norm_), and the L2 norm of the weights after each
                  step; decoupled weight decay on matrices only (wte, wpe and the four linear weights)
"""

import os
import struct

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS, HEADS, WIDTH, VOCAB, CONTEXT = 3, 4, 32, 67, 24
PADDED = (VOCAB + 127) // 128 * 128
folder = os.path.join(os.path.dirname(__file__), "../../tests/golden")
torch.manual_seed(3)
model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
                                   resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="eager",
                                   bos_token_id=None, eos_token_id=None))
with torch.no_grad():  # larger than GPT-2's initial values, so that no activation is nearly linear and no distribution nearly uniform
    for name, p in model.named_parameters():
        p.add_(0.15 * torch.randn_like(p))
model = model.double().train()
parameters = {n.removeprefix("transformer."): p for n, p in model.named_parameters()}

#          name in the file's order     per layer
TENSORS = [("wte.weight", False), ("wpe.weight", False), ("ln_1.weight", True), ("ln_1.bias", True),
           ("attn.c_attn.weight", True), ("attn.c_attn.bias", True), ("attn.c_proj.weight", True),
           ("attn.c_proj.bias", True), ("ln_2.weight", True), ("ln_2.bias", True), ("mlp.c_fc.weight", True),
           ("mlp.c_fc.bias", True), ("mlp.c_proj.weight", True), ("mlp.c_proj.bias", True), ("ln_f.weight", False),
           ("ln_f.bias", False)]


def file_order(value):
    """Tensors in the order and layout of the file: stacked over layers, (out, in), wte padded."""
    for name, per_layer in TENSORS:
        for i in range(LAYERS if per_layer else 1):
            x = value(parameters[f"h.{i}.{name}" if per_layer else name]).detach()
            if ".c_" in name and name.endswith("weight"):
                x = x.T
            if name == "wte.weight":
                x = torch.cat([x, x.new_zeros(PADDED - VOCAB, WIDTH)])
            yield x.float().contiguous()


with open(os.path.join(folder, "gpt2_tiny.bin"), "wb") as f:
    header = [20240326, 3, CONTEXT, VOCAB, LAYERS, HEADS, WIDTH, PADDED]
    f.write(struct.pack("<256i", *header, *[0] * (256 - len(header))))
    for x in file_order(lambda p: p):
        f.write(x.numpy().tobytes())

out = open(os.path.join(folder, "gpt2_tiny.txt"), "w")
print(f"# made by dev/golden/golden_gpt2.py with transformers {transformers.__version__}, torch {torch.__version__}", file=out)


def emit(key, values):
    values = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    print(key, len(values), *[f"{v:.9g}" for v in values], file=out)


lengths = [17, 1, 24, 6]
sequences = [torch.randint(VOCAB, (n,)) for n in lengths]


def forward(temperature=1.0):
    """Returns logits, logp, entropy and target of every row, sequence by sequence."""
    rows = []
    for tokens in sequences:
        logits = model(tokens[None]).logits[0]
        log_p = (logits / temperature).log_softmax(-1)
        target = torch.cat([tokens[1:], torch.zeros(1, dtype=torch.long)])
        rows.append((logits, log_p.gather(1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1), target))
    return [torch.cat(x) for x in zip(*rows)]


logits, logp, entropy, target = forward()
w, u = torch.randn(len(logp)).double(), (0.3 * torch.randn(len(logp))).double()
ends = torch.tensor(lengths).cumsum(0) - 1
w[ends] = u[ends] = 0
loss = (w * logp + u * entropy).sum()
loss.backward()
print("case gpt2 forward -", file=out)
emit("length", lengths)
emit("token", torch.cat(sequences))
emit("target", target)
emit("logits", logits[: lengths[0]].detach())
emit("logp", logp.detach())
emit("entropy", entropy.detach())
emit("w", w)
emit("u", u)
emit("loss", loss.detach())
emit("norm", sum(p.grad.square().sum() for p in parameters.values()).sqrt())
with torch.no_grad():
    _, logp_t, entropy_t, _ = forward(0.7)
emit("temperature", 0.7)
emit("logp_t", logp_t)
emit("entropy_t", entropy_t)
print("end", file=out)
with open(os.path.join(folder, "gpt2_tiny_grad.bin"), "wb") as f:
    for x in file_order(lambda p: p.grad):
        f.write(x.numpy().tobytes())

adamw = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0)
matrices = [p for p in parameters.values() if p.dim() == 2]
optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=adamw["weight_decay"]),
                               dict(params=[p for p in parameters.values() if p.dim() == 1], weight_decay=0)],
                              lr=adamw["lr"], betas=(adamw["beta1"], adamw["beta2"]), eps=adamw["eps"])
has_target = torch.ones(len(logp), dtype=torch.bool)
has_target[ends] = False
losses, norms, sizes = [], [], []
for step in range(11):
    _, logp, _, _ = forward()
    loss = -logp[has_target].mean()
    losses.append(loss.item())
    if step == 10:
        break
    optimizer.zero_grad()
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), adamw["clip"]).item())
    optimizer.step()
    sizes.append(sum(p.detach().square().sum() for p in parameters.values()).sqrt().item())
print("case gpt2 adamw -", file=out)
for key, value in adamw.items():
    emit(key, value)
emit("loss", losses)
emit("grad_norm", norms)
emit("weight_norm", sizes)
print("end", file=out)
