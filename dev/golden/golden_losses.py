"""Golden values for tests/test_losses.c, computed by TRL's own code: writes tests/golden/losses.txt.

    pip install trl==1.16 && python dev/golden/golden_losses.py

Policy losses: _compute_loss of GRPOTrainer, GMPOTrainer and RLOOTrainer runs unchanged on a trainer that is not
constructed: only the attributes that it reads are set, and the model's log-probabilities and entropies are leaf tensors, so
that autograd gives the gradient with respect to them. Advantages: _generate_and_score_completions runs unchanged, with
given numbers in place of the generation and the reward functions. DFT: the line of SFTTrainer's loss. All values are
computed in float64 on inputs rounded to float32.

Format: `case KIND NAME`, then lines `key count v1 v2 ...`, then `end`. nan is the reward of a completion that has none.
"""

import inspect
import itertools
import math
import re
from collections import defaultdict, deque
from types import SimpleNamespace

import golden
from golden import Accelerator, emit, float32
import torch
import trl
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl.trainer import sft_trainer

out = golden.start("losses.txt", seed=1)


def trainer(cls, **settings):
    """Returns a trainer with the attributes that its loss reads; the settings are those of GRPOConfig."""
    t = object.__new__(cls)
    args = SimpleNamespace(**{k: f.default for k, f in GRPOConfig.__dataclass_fields__.items()})
    args.__dict__.update(settings, steps_per_generation=1)
    t.args, t.accelerator, t.model = args, Accelerator(), SimpleNamespace(training=True)
    t._metrics = {"train": defaultdict(list)}
    t.current_gradient_accumulation_steps = 1
    t.aux_loss_enabled = t.use_vllm = t.vllm_importance_sampling_correction = False
    for name in ["beta", "loss_type", "importance_sampling_level", "top_entropy_quantile", "entropy_coef",
                 "use_adaptive_entropy", "off_policy_mask_threshold", "max_completion_length"]:
        setattr(t, name, getattr(args, name))
    t._entropy_bonus_enabled = t.entropy_coef != 0 or t.use_adaptive_entropy
    t.epsilon_low = args.epsilon
    t.epsilon_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    return t


def policy_case(name, cls, settings, truncated=False, on_policy=False, drift=0.4, sampler=False):
    B, T = 6, 6
    length = torch.tensor([6, 1, 3, 5, 2, 4])
    mask = (torch.arange(T) < length[:, None]).long()
    if truncated:
        mask[3] = 0
    active = torch.arange(T) < length[:, None]
    logp = float32(-3 * torch.rand(B, T) - 0.01).requires_grad_()
    old = float32(logp.detach() + drift * torch.randn(B, T))
    ref = float32(logp.detach() + 0.5 * torch.randn(B, T))
    mu = float32(old + 0.3 * torch.randn(B, T))
    entropy = float32(2 * torch.rand(B, T)).requires_grad_()
    advantage = float32(torch.tensor([1.2, -0.7, 0.0, 0.6, -1.1, 0.3]) + 0.05 * torch.randn(B))
    advantage[2] = 0
    t = trainer(cls, **settings)
    t._get_per_token_logps_and_entropies = lambda *a, **k: (logp, entropy, None)
    inputs = dict(prompt_ids=torch.zeros(B, 1, dtype=torch.long), prompt_mask=torch.ones(B, 1, dtype=torch.long),
                  completion_ids=torch.zeros(B, T, dtype=torch.long), completion_mask=mask, advantages=advantage,
                  num_items_in_batch=mask.sum(), ref_per_token_logps=ref)
    if not on_policy:
        inputs["old_per_token_logps"] = old
    if sampler:
        inputs["sampling_per_token_logps"] = mu
    if cls is RLOOTrainer:
        inputs["old_logps"] = (old * mask).sum(1)
    loss = t._compute_loss(None, inputs)
    gradients = torch.autograd.grad(loss, [logp, entropy], allow_unused=True, materialize_grads=True)

    kind = {GMPOTrainer: "gmpo", RLOOTrainer: "rloo"}.get(cls, settings.get("loss_type"))
    print("case", "policy", kind, name, file=out)
    emit("importance", t.importance_sampling_level == "sequence")
    emit("config", [t.epsilon_low, t.epsilon_high, t.args.delta or 0, t.beta, t.args.use_bias_correction_kl,
                    t.entropy_coef, t.off_policy_mask_threshold or 0, t.max_completion_length,
                    t.top_entropy_quantile])
    emit("length", length)
    emit("mask", mask[:, 0])
    emit("advantage", advantage)
    emit("logp", logp.detach()[active])
    if not on_policy:
        emit("old", old[active])
    if t.beta:
        emit("ref", ref[active])
    if sampler:
        emit("sampler", mu[active])
    emit("entropy", entropy.detach()[active])
    emit("loss", loss.detach(), 12)
    emit("dlogp", gradients[0][active])
    if t.entropy_coef:
        emit("dentropy", gradients[1][active])
    for key, values in t._metrics["train"].items():
        emit("metric:" + key, values[-1])
    print("end", file=out)


def policy_cases():
    token, sequence = dict(importance_sampling_level="token"), dict(importance_sampling_level="sequence")
    for loss in ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]:
        high = dict(epsilon_high=1.3) if loss == "cispo" else {}
        base = dict(loss_type=loss, **high)
        for name, level in [("token", token), ("sequence", sequence)]:
            s = {**base, **level}
            policy_case(name, GRPOTrainer, s)
            policy_case(name + "-truncated", GRPOTrainer, s, truncated=True)
            policy_case(name + "-on-policy", GRPOTrainer, s, on_policy=True)
            policy_case(name + "-kl", GRPOTrainer, {**s, "beta": 0.3, "use_bias_correction_kl": False})
            policy_case(name + "-kl-corrected", GRPOTrainer, {**s, "beta": 0.3}, truncated=True)
            policy_case(name + "-kl-on-policy", GRPOTrainer, {**s, "beta": 0.3}, on_policy=True)
            policy_case(name + "-entropy", GRPOTrainer, {**s, "entropy_coef": 0.07}, truncated=True)
            policy_case(name + "-quantile", GRPOTrainer,
                        {**s, "top_entropy_quantile": 0.3, "entropy_coef": 0.02, "beta": 0.1}, truncated=True)
            policy_case(name + "-off-policy", GRPOTrainer, {**s, "off_policy_mask_threshold": 0.05}, drift=0.9)
            if level is token:
                policy_case(name + "-off-policy-sampler", GRPOTrainer, {**s, "off_policy_mask_threshold": 0.05},
                            drift=0.9, sampler=True)
        if loss in ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"]:
            for name, level in [("token", token), ("sequence", sequence)]:
                s = {**base, **level, "epsilon": 0.1, "epsilon_high": 0.28}
                policy_case(name + "-delta", GRPOTrainer, {**s, "delta": 1.5}, drift=1.0)
                policy_case(name + "-delta-inside", GRPOTrainer, {**s, "delta": 1.1, "beta": 0.1}, drift=1.0)
    gspo = dict(loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, **sequence)
    policy_case("gspo-preset", GRPOTrainer, gspo, drift=1e-3)
    policy_case("gspo-preset-truncated", GRPOTrainer, gspo, truncated=True)
    gmpo = dict(loss_type="grpo", epsilon=0.4, **token)
    policy_case("plain", GMPOTrainer, gmpo, drift=0.6)
    policy_case("on-policy", GMPOTrainer, gmpo, on_policy=True)
    policy_case("quantile", GMPOTrainer, {**gmpo, "top_entropy_quantile": 0.8}, drift=0.6)
    policy_case("kl", GMPOTrainer, {**gmpo, "beta": 0.2, "epsilon_high": 0.5}, drift=0.6)
    policy_case("plain", RLOOTrainer, dict(loss_type="rloo", **token), drift=0.2)


def entropy_control_case():
    """Writes the adaptive coefficient over 8 optimizer steps with given mean entropies."""
    t = trainer(GRPOTrainer, loss_type="dapo", use_adaptive_entropy=True, entropy_coef=0.012)
    t._last_world_entropy, t._entropy_window_stats = float("inf"), None
    means = torch.tensor([0.5, 0.15, 0.1, 0.2, 0.21, 0.3, 0.4, 0.05])
    coefs, applied = [], []
    for mean in means:
        entropy = torch.full((1, 2), mean.item(), requires_grad=True)
        logp = torch.zeros(1, 2, requires_grad=True)
        t._get_per_token_logps_and_entropies = lambda *a, **k: (logp, entropy, None)
        ones = torch.ones(1, 2, dtype=torch.long)
        loss = t._compute_loss(None, dict(prompt_ids=ones, prompt_mask=ones, completion_ids=ones, completion_mask=ones,
                                          advantages=torch.zeros(1), num_items_in_batch=ones.sum()))
        applied.append(-torch.autograd.grad(loss, entropy)[0].sum())
        coefs.append(t.entropy_coef)
    print("case entropy_control - -", file=out)
    emit("coef", 0.012)
    emit("means", means)
    emit("applied", torch.stack(applied))
    emit("after", coefs)
    print("end", file=out)


def advantage_case(name, rewards, G, weights=(1.0,), cls=GRPOTrainer, kl=None, **settings):
    rewards = float32(torch.as_tensor(rewards, dtype=torch.float64)).reshape(-1, len(weights))
    n = len(rewards)
    t = object.__new__(cls)
    t.args = SimpleNamespace(per_device_train_batch_size=n, steps_per_generation=1, gradient_accumulation_steps=1,
                             gradient_checkpointing_kwargs=None)
    t.accelerator, t.num_iterations, t.num_generations = Accelerator(), 1, G
    t.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    t.beta, t.use_vllm, t.vllm_importance_sampling_correction = 0.0, False, False
    t.environment_factories, t.environments, t.tools, t._is_vlm = None, None, None, False
    t.processing_class = t._tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=1)
    t.eos_token_ids, t.pad_to_multiple_of, t.mask_truncated_completions = [1], None, False
    t.scale_rewards, t.multi_objective_aggregation = "group", "sum_then_normalize"
    t.normalize_advantages, t.reward_clip_range = False, None
    t.__dict__.update(settings)
    t.reward_weights, t.reward_funcs = torch.tensor(weights), [None] * len(weights)
    t.reward_func_names = [str(k) for k in range(len(weights))]
    t._metrics, t._logs = {"train": defaultdict(list)}, defaultdict(lambda: deque(maxlen=0))
    t._logs["rewards"] = defaultdict(list)
    t._pending_extra_logs, t._pending_metrics = {}, {}
    ids = [[2, 3, 1]] * n
    text = [""] * n
    generated = (ids, ids, text) if cls is RLOOTrainer else (ids, ids, None, text, None, {}, None, None)
    t._generate = lambda prompts: generated
    t._calculate_rewards = lambda *a: rewards
    zeros = torch.zeros(n, 3)
    if kl is not None:  # old - ref = kl / 3 on each of the three tokens
        kl = float32(torch.as_tensor(kl))
        t.beta, t.ref_model = settings["beta"], "ref"
        t._get_per_token_logps_and_entropies = lambda model, *a, **k: (
            (-(kl / 3)[:, None].expand(n, 3) if model == "ref" else zeros), None, None)
    else:
        t._get_per_token_logps_and_entropies = lambda *a, **k: (zeros, None, None)
    score = cls._generate_and_score_completions
    result = getattr(score, "__wrapped__", score)(t, [{"prompt": ""} for _ in range(n)])
    print("case", "advantage", "rloo" if cls is RLOOTrainer else t.multi_objective_aggregation, name, file=out)
    emit("group", G)
    emit("scale", ["group", "batch", "none"].index(t.scale_rewards))
    emit("normalise", t.normalize_advantages)
    emit("weight", weights)
    emit("reward", rewards)
    if kl is not None:
        emit("kl", kl)
        emit("beta", t.beta)
    emit("advantage", result["advantages"])
    for key in ["reward", "reward_std", "frac_reward_zero_std"]:
        emit("metric:" + key, t._metrics["train"][key][-1])
    print("end", file=out)


def advantage_cases():
    nan = math.nan
    sets = {
        "random": torch.randn(24),
        "binary": [1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        "equal": [0.1] * 8,
        "unscorable": [1, nan, 0, 0.5, nan, nan, nan, nan, nan, 0.3, nan, nan, 1, 1, nan, 1],
        "one-scorable": [nan, 0.7, nan, nan],
        "large": 1e6 + torch.arange(8.0),
    }
    for (name, r), scale in itertools.product(sets.items(), ["group", "batch", "none"]):
        advantage_case(name, r, 4, scale_rewards=scale)
    advantage_case("singleton", [0.5, 1.5, nan], 1, scale_rewards="group")
    advantage_case("singleton", [0.5, 1.5, nan], 1, scale_rewards="batch")
    parts = torch.rand(16, 3) * torch.tensor([1.0, 10.0, 0.1])
    parts[3, 0] = parts[5, 1] = parts[6, 2] = nan
    parts[7] = nan
    parts[8:12, 1] = 4.0
    for name, p, G, w in [("mixed", parts, 4, (1.0, 0.5, 2.0)), ("one-part", parts[:, :1], 8, (1.0,)),
                          ("equal", torch.ones(8, 2), 4, (1.0, 1.0)), ("singleton", parts[:4], 1, (1.0, 1.0, 1.0))]:
        advantage_case(name, p, G, w, multi_objective_aggregation="normalize_then_sum")
    for (name, r), normalise in itertools.product(sets.items(), [False, True]):
        advantage_case(name, r, 4, cls=RLOOTrainer, normalize_advantages=normalise)
    advantage_case("pairs", torch.randn(8), 2, cls=RLOOTrainer)
    advantage_case("kl", torch.randn(8), 4, cls=RLOOTrainer, kl=torch.randn(8), beta=0.05)


def lm_cases():
    logp, valid = float32(-4 * torch.rand(40)), torch.rand(40) < 0.6
    source = inspect.getsource(sft_trainer.SFTTrainer)
    dft = re.search(r"per_token_loss = (per_token_loss \* outputs\.log_probs\.exp\(\)\.detach\(\))", source).group(1)
    for kind in ["nll", "dft"]:
        x = logp.clone().requires_grad_()
        outputs = SimpleNamespace(log_probs=torch.where(valid, x, 0.0))  # TRL: zero on ignored positions
        per_token_loss = -outputs.log_probs
        if kind == "dft":
            per_token_loss = eval(dft)
        loss = per_token_loss.sum() / torch.as_tensor(70).clamp(min=1)
        print("case", "lm", kind, "-", file=out)
        emit("logp", logp)
        emit("weight", valid)
        emit("normaliser", 70)
        emit("loss", loss.detach(), 12)
        emit("dlogp", torch.autograd.grad(loss, x)[0])
        print("end", file=out)


print(f"# made by dev/golden/golden_losses.py with trl {trl.__version__}, torch {torch.__version__}", file=out)
policy_cases()
entropy_control_case()
advantage_cases()
lm_cases()
out.close()
