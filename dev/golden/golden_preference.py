"""Golden values for tests/test_preference.c, computed by TRL's own code: writes tests/golden/preference.txt.

    pip install trl==1.16 && python dev/golden/golden_preference.py

DPOTrainer._compute_loss, KTOTrainer._compute_loss, TPOTrainer._compute_loss, ORPOTrainer's and CPOTrainer's get_batch_loss_metrics run unchanged on
trainers that are not constructed: only the attributes that they read are set. For DPO and KTO the model's outputs are given
and its log-probabilities are leaf tensors, so that autograd gives the gradient with respect to them. ORPO, CPO and TPO need
logits: they are built over a small vocabulary from leaf log-probabilities of the labels, whose gradient is written.
OnlineDPOTrainer's lines for the loss are evaluated unchanged. All values are computed in float64 on inputs rounded to
float32, except for alpha_divergence, which TRL supports in float32 only (`single`).

Format: `case KIND NAME`, then lines `key count v1 v2 ...`, then `end`. Per-token values are stored pair by pair: the prompt
(orpo only), the chosen and the rejected completion, the gold answer (tpo only).
"""

import inspect
import itertools
import os
import re
from collections import defaultdict
from types import SimpleNamespace

import golden
from golden import Accelerator, emit, float32
import torch
import torch.nn.functional as F
import trl
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.online_dpo import online_dpo_trainer
from trl.experimental.tpo import TPOTrainer

out = golden.start("preference.txt", seed=2)
DIVERGENCES = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class Model:
    """Returns prepared outputs, whatever its inputs are."""

    _modules = {}  # accelerate looks for compiled parts of the model if PEFT is installed

    def __init__(self, *answers, training=True):
        self.answers, self.training, self.is_gradient_checkpointing = list(answers), training, False

    def __call__(self, *a, **k):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def outputs(logp, square=None):
    return SimpleNamespace(log_probs=logp, log_sum_sq_probs=square, entropy=torch.zeros_like(logp),
                           mean_logits=torch.zeros_like(logp), is_top1=torch.zeros_like(logp, dtype=torch.bool))


def by_pair(chosen_lengths, rejected_lengths, x):
    """Takes the completions' tokens from (2B, T), pair by pair."""
    B = len(chosen_lengths)
    return torch.cat([torch.cat([x[i, :c], x[B + i, :r]]) for i, (c, r) in enumerate(zip(chosen_lengths, rejected_lengths))])


def config(loss_types, weights, o):
    print("losses", len(loss_types), *[o["index"][x] for x in loss_types], file=out)
    emit("weights", weights)
    emit("config", [o.get("beta", 0.1), o.get("label_smoothing", 0), DIVERGENCES.index(o.get("f", "reverse_kl")),
                    o.get("f_alpha", 0.5), 1 if o.get("ld_alpha") is None else o["ld_alpha"], o.get("wpo", False),
                    o.get("tau", 0.05), o.get("simpo_gamma", 0.5), o.get("cpo_alpha", 1.0), o.get("alpha", 0.0)])


def names():
    header = open(os.path.join(os.path.dirname(__file__), "../../llmc/loss/preference.h")).read()
    text = re.search(r"PREFERENCE_LOSS_CHOICES\s*\\\s*((?:\"[^\"]*\"\s*\\?\s*)+)", header).group(1)
    return {name: i for i, name in enumerate("".join(re.findall(r'"([^"]*)"', text)).split("|"))}


INDEX = names()
CHOSEN, REJECTED, GOLD = [5, 1, 3, 4, 2], [2, 4, 3, 1, 6], [3, 6, 1, 2, 4]


def made_up(scale, spread):
    """Completion masks over one prompt token and T completion tokens, log-probabilities of policy and reference."""
    B, T = len(CHOSEN), 6
    lengths = torch.tensor(CHOSEN + REJECTED)
    active = torch.arange(T) < lengths[:, None]
    mask = torch.cat([torch.zeros(2 * B, 1, dtype=torch.long), active.long()], 1)
    logp = float32(-scale * torch.rand(2 * B, T) - 0.01) * active
    ref = float32(logp + spread * torch.randn(2 * B, T)).clamp(max=-1e-3) * active
    square = float32(-1.5 * torch.rand(2 * B, T)) * active
    return mask, active, logp.requires_grad_(), float32(ref), square


def dpo_case(name, loss_types, weights=None, **o):
    mask, active, logp, ref, square = made_up(o.get("scale", 3), o.get("spread", 0.5))
    single = o.get("f") == "alpha_divergence"  # TRL's clamp does not support float64
    if single:
        logp, ref, square = logp.detach().float().requires_grad_(), ref.float(), square.float()
    weights = weights or [1.0] * len(loss_types)
    t = object.__new__(DPOTrainer)
    t.__dict__.update(accelerator=Accelerator(), _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
                      aux_loss_enabled=False, precompute_ref_logps=False, ref_model=Model(outputs(ref)),
                      loss_types=loss_types, loss_weights=weights, beta=o.get("beta", 0.1), ld_alpha=o.get("ld_alpha"),
                      f_divergence_type=o.get("f", "reverse_kl"), f_alpha_divergence_coef=o.get("f_alpha", 0.5),
                      label_smoothing=o.get("label_smoothing", 0.0), use_weighting=o.get("wpo", False),
                      args=SimpleNamespace(discopop_tau=o.get("tau", 0.05), gradient_checkpointing_kwargs=None))
    t.model = model = Model(outputs(logp, square))
    inputs = dict(input_ids=torch.zeros_like(mask), attention_mask=torch.ones_like(mask), completion_mask=mask)
    loss = t._compute_loss(model, inputs, False)
    (gradient,) = torch.autograd.grad(loss, logp)
    print("case", "pair", loss_types[0], name, file=out)
    config(loss_types, weights, {**o, "index": INDEX})
    emit("single", single)
    emit("prompt", [0] * len(CHOSEN))
    emit("chosen", CHOSEN)
    emit("rejected", REJECTED)
    emit("logp", by_pair(CHOSEN, REJECTED, logp.detach()))
    emit("ref", by_pair(CHOSEN, REJECTED, ref))
    if o.get("wpo"):
        emit("square", by_pair(CHOSEN, REJECTED, square))
    emit("loss", loss.detach(), 12)
    emit("dlogp", by_pair(CHOSEN, REJECTED, gradient))
    for key in ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
                "logps/rejected"]:
        emit("metric:" + key, t._metrics["train"][key][-1])
    print("end", file=out)


def dpo_cases():
    for loss in ["sigmoid", "sigmoid_norm", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
                 "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "exo_pair"]:
        e = dict(label_smoothing=1e-3) if loss == "exo_pair" else {}
        dpo_case("plain", [loss], **e)
        dpo_case("beta", [loss], beta=1.7, **e)
        dpo_case("far", [loss], beta=5.0, spread=4.0, **e)
        dpo_case("ld", [loss], beta=0.7, ld_alpha=0.4, **e)
        if loss in ["exo_pair", "robust", "aot", "aot_unpaired"]:
            dpo_case("smoothed", [loss], beta=0.8, label_smoothing=0.15)
        if not loss.startswith("aot") and loss not in ["hinge", "sft"]:  # TRL's WPO fails with these: it works in place
            dpo_case("wpo", [loss], beta=0.6, wpo=True, **e)
            dpo_case("wpo-ld", [loss], beta=0.6, wpo=True, ld_alpha=0.7, **e)
        if loss in ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"]:
            for f in DIVERGENCES[1:]:
                dpo_case(f, [loss], beta=0.5, f=f, **e)
                dpo_case(f + "-ld", [loss], beta=0.5, f=f, f_alpha=0.3, ld_alpha=0.5, **e)
    dpo_case("alpha-above-1", ["sigmoid"], beta=0.3, f="alpha_divergence", f_alpha=1.8)
    dpo_case("alpha-one", ["sigmoid"], beta=0.3, f="alpha_divergence", f_alpha=1.0)
    dpo_case("rpo", ["sigmoid", "sft"], [1.0, 0.005])
    dpo_case("mpo", ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])
    dpo_case("many", ["ipo", "aot", "hinge", "sppo_hard"], [0.3, 1.0, 2.0, 0.01], beta=0.4, ld_alpha=0.6)
    dpo_case("wpo-two", ["sigmoid", "ipo"], [1.0, 0.7], wpo=True, beta=0.4)


def cpo_case(name, cls, loss_type, ours, weights=(1.0,), prompts=None, **o):
    """prompts: number of tokens after the first of each prompt; orpo trains on them."""
    B, V, T = len(CHOSEN), 7, 12
    prompts = prompts or [1] * B
    t = object.__new__(cls)
    t.__dict__.update(accelerator=Accelerator(), is_encoder_decoder=False, aux_loss_enabled=False, padding_value=0,
                      pad_token_id=0, beta=o.get("beta", 0.1), label_smoothing=o.get("label_smoothing", 0.0),
                      loss_type=loss_type, cpo_alpha=o.get("cpo_alpha", 1.0), simpo_gamma=o.get("simpo_gamma", 0.5),
                      alpha=o.get("alpha", 0.0))
    batch, leaves = {}, {}
    for side, lengths in [("chosen", CHOSEN), ("rejected", REJECTED)]:
        width = max(p + 1 + n for p, n in zip(prompts, lengths))
        ids = torch.randint(1, V, (B, width))
        attention = torch.arange(width) < torch.tensor([p + 1 + n for p, n in zip(prompts, lengths)])[:, None]
        answer = attention & (torch.arange(width) >= torch.tensor(prompts)[:, None] + 1)
        batch[side + "_input_ids"], batch[side + "_attention_mask"] = ids * attention, attention.long()
        batch[side + "_labels"] = torch.where(answer, ids, -100)
    whole = t.concatenated_inputs(batch, is_encoder_decoder=False, padding_value=0, device=torch.device("cpu"))
    ids = whole["concatenated_input_ids"]
    chosen_logp = float32(-2.5 * torch.rand(2 * B, ids.size(1) - 1) - 0.05).requires_grad_()
    # rows of logits whose label has exactly the given log-probability; the other entries share the rest evenly
    rest = torch.log(-torch.expm1(chosen_logp) / (V - 1))
    onehot = F.one_hot(ids[:, 1:], V).bool()
    logits = torch.where(onehot, chosen_logp[..., None], rest[..., None])
    logits = torch.cat([logits, torch.zeros(2 * B, 1, V)], 1)
    model = Model(SimpleNamespace(logits=logits))
    loss, metrics = t.get_batch_loss_metrics(model, batch)
    (gradient,) = torch.autograd.grad(loss, chosen_logp)

    learned = cls is ORPOTrainer
    def spans(x):
        rows = []
        for i, (p, c, r) in enumerate(zip(prompts, CHOSEN, REJECTED)):
            rows += [x[i, :p] if learned else x[i, :0], x[i, p:p + c], x[B + i, p:p + r]]
        return torch.cat(rows)

    print("case", "pair", ours[0], name, file=out)
    config(ours, weights, {**o, "index": INDEX})
    emit("prompt", prompts if learned else [0] * B)
    emit("chosen", CHOSEN)
    emit("rejected", REJECTED)
    emit("logp", spans(chosen_logp.detach()))
    emit("loss", loss.detach(), 12)
    emit("dlogp", spans(gradient))
    wanted = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
              "logps/rejected"]
    if learned or "sft" in ours or ours[0] == "cpo" and o.get("cpo_alpha", 1):
        wanted += ["nll_loss"]
    for key in wanted + ["log_odds_ratio", "log_odds_chosen"] * learned:
        emit("metric:" + key, metrics[key])
    print("end", file=out)


def cpo_cases():
    prompts = [3, 1, 2, 4, 1]
    for beta in [0.1, 1.3]:
        cpo_case(f"beta-{beta}", ORPOTrainer, None, ["orpo"], beta=beta, prompts=prompts)
        for alpha in [0.0, 0.25, -0.5]:
            s = dict(beta=beta, alpha=alpha)
            cpo_case(f"beta-{beta}-alpha-{alpha}", CPOTrainer, "sigmoid", ["cpo"], **s)
            cpo_case(f"beta-{beta}-alpha-{alpha}", CPOTrainer, "simpo", ["simpo"], cpo_alpha=0.0, **s)
    cpo_case("smoothed", CPOTrainer, "sigmoid", ["cpo"], beta=0.4, label_smoothing=0.2, cpo_alpha=0.3)
    cpo_case("no-nll", CPOTrainer, "sigmoid", ["cpo"], beta=0.4, cpo_alpha=0.0)
    cpo_case("paper", CPOTrainer, "simpo", ["simpo"], beta=2.5, simpo_gamma=1.375, cpo_alpha=0.0)
    cpo_case("smoothed", CPOTrainer, "simpo", ["simpo"], beta=2.0, label_smoothing=0.1, cpo_alpha=0.0)
    cpo_case("cpo-simpo", CPOTrainer, "simpo", ["simpo", "sft"], [1.0, 0.6], beta=2.0, cpo_alpha=0.6)


def tpo_case(name, loss_type, ours, **o):
    B, V, T, prompt = len(CHOSEN), 7, 6, 2
    sides = [CHOSEN, REJECTED] + ([GOLD] if o.get("tpo_alpha", 1.0) != 0 else [])
    lengths = torch.tensor(sum(sides, []))
    active = torch.arange(T) < lengths[:, None]
    ids = torch.randint(1, V, (len(lengths), prompt + T))
    logp = float32(-2.5 * torch.rand(len(lengths), T) - 0.05).requires_grad_()
    # rows of logits whose label has exactly the given log-probability; the other entries share the rest evenly
    rest = torch.log(-torch.expm1(logp) / (V - 1))
    logits = torch.where(F.one_hot(ids[:, prompt:], V).bool(), logp[..., None], rest[..., None])
    logits = torch.cat([torch.zeros(len(lengths), prompt - 1, V), logits, torch.zeros(len(lengths), 1, V)], 1)
    model = Model(SimpleNamespace(logits=logits))
    mask = torch.cat([torch.zeros(len(lengths), prompt, dtype=torch.long), active.long()], 1)
    t = object.__new__(TPOTrainer)
    t.__dict__.update(accelerator=Accelerator(), _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
                      model=model, loss_type=loss_type, beta=o.get("beta", 0.01),
                      label_smoothing=o.get("label_smoothing", 0.0), tpo_alpha=o.get("tpo_alpha", 1.0),
                      tpo_l_gamma=o.get("tpo_l_gamma", 0.5))
    loss = t._compute_loss(model, dict(input_ids=ids, attention_mask=torch.ones_like(mask), completion_mask=mask), False)
    (gradient,) = torch.autograd.grad(loss, logp)
    spans = lambda x: torch.cat([x[k * B + i, :side[i]] for i in range(B) for k, side in enumerate(sides)])
    print("case", "pair", ours, name, file=out)
    config([ours], [1.0], {**o, "beta": t.beta, "index": INDEX})
    emit("tpo", [t.tpo_alpha, t.tpo_l_gamma])
    emit("prompt", [0] * B)
    emit("chosen", CHOSEN)
    emit("rejected", REJECTED)
    emit("gold", GOLD if len(sides) == 3 else [0] * B)
    emit("logp", spans(logp.detach()))
    emit("loss", loss.detach(), 12)
    emit("dlogp", spans(gradient))
    for key in ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
                "logps/rejected"]:
        emit("metric:" + key, t._metrics["train"][key][-1])
    print("end", file=out)


def tpo_cases():
    for loss_type, ours in [("sigmoid", "tpo"), ("tpo-l", "tpo-l")]:
        tpo_case("plain", loss_type, ours)
        tpo_case("beta", loss_type, ours, beta=1.3)
        tpo_case("alpha", loss_type, ours, beta=0.4, tpo_alpha=0.3, tpo_l_gamma=1.1)
        tpo_case("no-gold", loss_type, ours, beta=0.4, tpo_alpha=0.0)
        tpo_case("smoothed", loss_type, ours, beta=2.0, label_smoothing=0.2)


def online_cases():
    """Evaluates the lines of OnlineDPOTrainer.training_step from `pi_logratios = ` to `loss = `."""
    source = inspect.getsource(online_dpo_trainer.OnlineDPOTrainer.training_step)
    lines = re.search(r"( *pi_logratios = .*?loss = losses\.mean\(\)\n)", source, re.S).group(1)
    indent = re.match(" *", lines).group(0)
    lines = re.sub("^" + indent, "", lines, flags=re.M)
    for loss_type, beta in itertools.product(["sigmoid", "ipo"], [0.1, 0.9]):
        mask, active, logp, ref, _ = made_up(3, 0.5)
        sums, ref_sums = logp.sum(1), ref.sum(1)
        B = len(CHOSEN)
        scope = dict(F=F, self=SimpleNamespace(args=SimpleNamespace(loss_type=loss_type), beta=beta),
                     chosen_logprobs_sum=sums[:B], rejected_logprobs_sum=sums[B:],
                     chosen_ref_logprobs_sum=ref_sums[:B], rejected_ref_logprobs_sum=ref_sums[B:])
        exec(lines, scope)
        (gradient,) = torch.autograd.grad(scope["loss"], logp)
        ours = {"sigmoid": "sigmoid", "ipo": "ipo_sum"}[loss_type]
        print("case", "pair", ours, f"online-{beta}", file=out)
        config([ours], [1.0], dict(beta=beta, index=INDEX))
        emit("prompt", [0] * B)
        emit("chosen", CHOSEN)
        emit("rejected", REJECTED)
        emit("logp", by_pair(CHOSEN, REJECTED, logp.detach()))
        emit("ref", by_pair(CHOSEN, REJECTED, ref))
        emit("loss", scope["loss"].detach(), 12)
        emit("dlogp", by_pair(CHOSEN, REJECTED, gradient))
        print("end", file=out)


def kto_case(name, loss_type, good, drift=0.0, **o):
    B, T = len(good), 6
    lengths, kl_lengths = torch.tensor([5, 1, 3, 4, 2, 6])[:B], torch.tensor([2, 5, 1, 3, 4, 6])[:B]
    arrays = []
    for n in [lengths, kl_lengths]:
        active = torch.arange(T) < n[:, None]
        logp = float32(-3 * torch.rand(B, T) - 0.01) * active
        ref = float32(logp + 0.6 * torch.randn(B, T) - drift) * active
        arrays.append((active, logp, ref))
    (active, logp, ref), (kl_active, kl_logp, kl_ref) = arrays
    logp.requires_grad_()
    t = object.__new__(KTOTrainer)
    t.__dict__.update(accelerator=Accelerator(), _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
                      aux_loss_enabled=False, precompute_ref_logps=False, calculate_KL=loss_type == "kto",
                      loss_type=loss_type, beta=o.get("beta", 0.1), desirable_weight=o.get("desirable", 1.0),
                      undesirable_weight=o.get("undesirable", 1.0),
                      args=SimpleNamespace(gradient_checkpointing_kwargs=None))
    kl = [outputs(kl_logp)] if t.calculate_KL else []
    t.model = model = Model(*kl, outputs(logp))
    t.ref_model = Model(*([outputs(kl_ref)] if t.calculate_KL else []), outputs(ref))
    def pad(active):
        return torch.cat([torch.zeros(B, 1, dtype=torch.long), active.long()], 1)
    inputs = dict(input_ids=torch.zeros(B, T + 1, dtype=torch.long), attention_mask=torch.ones(B, T + 1),
                  completion_mask=pad(active), KL_input_ids=torch.zeros(B, T + 1, dtype=torch.long),
                  KL_attention_mask=torch.ones(B, T + 1), KL_completion_mask=pad(kl_active),
                  label=torch.tensor(good, dtype=torch.bool))
    loss = t._compute_loss(model, inputs, False)
    (gradient,) = torch.autograd.grad(loss, logp)
    print("case", "kto", loss_type, name, file=out)
    emit("config", [t.beta, t.desirable_weight, t.undesirable_weight])
    emit("good", good)
    emit("length", lengths)
    emit("logp", logp.detach()[active])
    emit("ref", ref[active])
    emit("kl_length", kl_lengths)
    emit("kl_logp", kl_logp[kl_active])
    emit("kl_ref", kl_ref[kl_active])
    emit("loss", loss.detach(), 12)
    emit("dlogp", gradient[active])
    for key, values in t._metrics["train"].items():
        if key.split("/")[0] in ["kl", "rewards", "logps"]:
            emit("metric:" + key, values[-1])
    print("end", file=out)


def kto_cases():
    for loss in ["kto", "apo_zero_unpaired"]:
        kto_case("plain", loss, [1, 0, 1, 0, 0, 1])
        kto_case("positive-kl", loss, [1, 0, 1, 0, 0, 1], drift=0.5)
        kto_case("negative-kl", loss, [1, 0, 1, 0, 0, 1], drift=-0.5)
        kto_case("weights", loss, [0, 0, 1, 0, 0, 1], drift=0.3, beta=0.7, desirable=1.8, undesirable=0.6)
        kto_case("good-only", loss, [1, 1, 1, 1], drift=0.2, beta=0.4)
        kto_case("bad-only", loss, [0, 0, 0], drift=0.2, beta=0.4)


print(f"# made by dev/golden/golden_preference.py with trl {trl.__version__}, torch {torch.__version__}", file=out)
dpo_cases()
cpo_cases()
online_cases()
kto_cases()
tpo_cases()
out.close()
