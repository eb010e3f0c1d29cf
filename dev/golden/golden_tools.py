"""Golden values of completions with calls of a tool, computed by TRL's own code, for tests/test_tool_mask.c: writes
tests/golden/tool_mask.jsonl.zst.

    pip install trl==1.16 transformers==5.24 zstandard && python dev/golden/golden_tools.py

_generate_and_score_completions() of GRPOTrainer runs unchanged on a trainer that is not constructed: it encodes the prompts,
runs its loop of tool calls, builds tool_mask, and computes the advantages. Only the model is replaced, by one that writes
given texts, one for each turn, and the reward function by given numbers. _compute_loss() runs unchanged on what this returns,
with random log-probabilities and entropies as leaf tensors, in float64 on inputs that are rounded to float32. The tokenizer is
tests/golden/nanochat.json with the special tokens <|endoftext|>, <|im_start|> and <|im_end|>. The templates are those with
which TRL trains Qwen2.5 and Qwen3.

The file has one JSON object per line:

    {"template", "prompt"}     the tokens of a prompt, which the next lines have in common
    {"turns", "ids", "mask", "reward", "advantage", "logp", "old", "ref", "entropy"}
                               a completion: the tokens that the model writes, turn by turn; all its tokens, and tool_mask;
                               the log-probabilities and entropies, of the first template alone, are of all tokens
    {"loss", "masked", "importance", "beta", "entropy_coef", "epsilon_high", "value", "dlogp", "metrics"}
                               a loss over the completions before it, with tool_mask or over all tokens, and its gradient,
                               of all tokens of each completion
"""

import io
import json
import pathlib
from collections import defaultdict, deque
from types import SimpleNamespace

from golden import Accelerator, float32  # before TRL: it keeps the library offline
import torch
import transformers
import trl
import zstandard
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen2_5_chat_template, qwen3_template, qwen3_training_chat_template

LIMIT, GROUP = 290, 4


def calculator(expression: str) -> str:
    """Computes an expression.

    Args:
        expression: The expression.
    """
    return str(eval(expression))


def call(*expressions, before=""):
    calls = [f'<tool_call>\n{{"name": "calculator", "arguments": {{"expression": "{e}"}}}}\n</tool_call>' for e in expressions]
    return before + "\n".join(calls) + "<|im_end|>"


SCRIPTS = [
    [call("12*34"), "408<|im_end|>"],
    ["I know that: 408<|im_end|>"],
    [call("12*34", before="Let me see.\n"), call("408+1"), "It is 409, not 408.<|im_end|>"],
    [call("1+2", "3*4"), "3 and 12<|im_end|>"],  # two calls of a turn
    [call("7-9"), call("2**10"), "1024<|im_end|>"],
    ["a" + " long" * 90 + "<|im_end|>"],  # is cut
    [call("5*5"), "twenty" + " five" * 90 + "<|im_end|>"],  # is cut in its second turn
    [call("10**30 + 10**29", before="wait " * 57)],  # the result does not fit
]
REWARDS = [1.0, 1.0, 0.0, 0.25, 0.5, 0.0, 0.0, 0.125]
LOSSES = [(kind, "token", True) for kind in ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]]
LOSSES += [("grpo", "sequence", True), ("luspo", "sequence", True), ("grpo", "token", False), ("dapo", "token", False)]
QUESTIONS = ["What is 12*34?", "How much is it?"]


def trainer(tokenizer, template, scripts):
    """A trainer with the attributes that its methods read."""
    t = object.__new__(GRPOTrainer)
    args = SimpleNamespace(**{k: f.default for k, f in GRPOConfig.__dataclass_fields__.items()})
    args.__dict__.update(per_device_train_batch_size=len(scripts), steps_per_generation=1, gradient_accumulation_steps=1)
    t.args, t.accelerator, t.num_iterations, t.num_generations = args, Accelerator(), 1, GROUP
    limits = SimpleNamespace(max_position_embeddings=10**6)
    t.model = SimpleNamespace(training=True, is_gradient_checkpointing=False, config=limits)
    t.beta, t.use_vllm, t.vllm_importance_sampling_correction, t.aux_loss_enabled = 0.0, False, False, False
    t.environment_factories, t.environments, t.rollout_func, t._is_vlm = None, None, None, False
    t.tools, t._standalone_tools, t.max_tool_calling_iterations = [calculator], [calculator], 10**6
    t.processing_class = t._tokenizer = tokenizer
    t.chat_template, t.chat_template_kwargs = template, {}
    t.eos_token_ids, t.pad_to_multiple_of, t.mask_truncated_completions = [tokenizer.eos_token_id], None, False
    t.scale_rewards, t.multi_objective_aggregation, t.max_completion_length = "group", "sum_then_normalize", LIMIT
    t.reward_weights, t.reward_funcs, t.reward_func_names = torch.tensor([1.0]), [None], ["given"]
    t.state = SimpleNamespace(num_input_tokens_seen=0)
    t._metrics, t._logs = {"train": defaultdict(list)}, defaultdict(lambda: deque(maxlen=0))
    t._logs["rewards"] = defaultdict(list)
    t._pending_extra_logs, t._pending_metrics = {}, {}
    t.current_gradient_accumulation_steps, t.use_adaptive_entropy = 1, False
    t._calculate_rewards = lambda *a: torch.tensor(REWARDS)[:, None]
    t._get_per_token_logps_and_entropies = lambda *a, **k: (torch.zeros(1), None, None)
    written = []  # what each completion and its prompt have so far; no two begin alike
    turn = [0] * len(scripts)

    def write(prompt_ids, *_, **__):
        which = [
            next((i for i, ids in enumerate(written) if asked[: len(ids)] == ids), n) for n, asked in enumerate(prompt_ids)
        ]
        texts = [scripts[i][turn[i]][:LIMIT] for i in which]
        written[:] = written or list(prompt_ids)
        for i, asked, text in zip(which, prompt_ids, texts):
            written[i], turn[i] = asked + text, turn[i] + 1
        return texts, None

    t._generate_single_turn = write
    return t


def loss(t, result, kind, level, masked, logp, old, ref, entropy):
    """The line of a loss over the completions of a result of _generate_and_score_completions(), with tool_mask or without."""
    if not masked:
        result = {k: v for k, v in result.items() if k != "tool_mask"}
        result["num_items_in_batch"] = result["completion_mask"].sum()
    t.loss_type, t.importance_sampling_level, t.beta, t.entropy_coef = kind, level, 0.1, 0.02
    t.top_entropy_quantile, t.off_policy_mask_threshold = 1.0, None
    t._entropy_bonus_enabled = True
    t.epsilon_low, t.epsilon_high = 0.2, 1.3 if kind == "cispo" else 0.2
    t._metrics = {"train": defaultdict(list)}
    leaf = logp.clone().requires_grad_()
    t._get_per_token_logps_and_entropies = lambda *a, **k: (leaf, entropy, None)
    value = t._compute_loss(None, {**result, "old_per_token_logps": old, "ref_per_token_logps": ref})
    gradient = torch.autograd.grad(value, leaf)[0]
    return {
        "loss": kind,
        "masked": masked,
        "importance": int(level == "sequence"),
        "beta": t.beta,
        "entropy_coef": t.entropy_coef,
        "epsilon_high": t.epsilon_high,
        "value": value.item(),
        "dlogp": rows(gradient, result),
        "metrics": {k: v[-1] for k, v in t._metrics["train"].items()},
    }


def rows(x, result):
    """The values of each completion's tokens, with 9 digits."""
    return [[float(f"{v:.9g}") for v in row[: int(n)]] for row, n in zip(x, result["completion_mask"].sum(1))]


torch.set_default_dtype(torch.float64)
torch.manual_seed(5)
folder = pathlib.Path(__file__).resolve().parent / "../../tests/golden"
out = io.StringIO()
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "nanochat.json"))
tokenizer.add_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
tokenizer.pad_token = "<|endoftext|>"
tokenizer.eos_token = "<|im_end|>"
tokenizer.response_template = qwen3_template
scripts = [[tokenizer.encode(text) for text in texts] for texts in SCRIPTS]
versions = {"trl": trl.__version__, "transformers": transformers.__version__}
print(json.dumps({"made by": "dev/golden/golden_tools.py", **versions}), file=out)
for name, template in [("qwen2_5", qwen2_5_chat_template), ("qwen3_training", qwen3_training_chat_template)]:
    t = trainer(tokenizer, template, scripts)
    inputs = [{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS for _ in range(GROUP)]
    method = GRPOTrainer._generate_and_score_completions
    result = getattr(method, "__wrapped__", method)(t, inputs)
    result["advantages"] = float32(result["advantages"])
    shape = result["completion_ids"].shape
    logp = float32(-3 * torch.rand(shape) - 0.01)
    old, ref = float32(logp + 0.4 * torch.randn(shape)), float32(logp + 0.5 * torch.randn(shape))
    entropy = float32(2 * torch.rand(shape))
    values = {k: rows(v, result) for k, v in dict(logp=logp, old=old, ref=ref, entropy=entropy).items()}
    for i in range(len(inputs)):
        prompt, n = result["prompt_ids"][i], int(result["completion_mask"][i].sum())
        if i % GROUP == 0:
            print(json.dumps({"template": name, "prompt": prompt[result["prompt_mask"][i] == 1].tolist()}), file=out)
        line = {
            "turns": scripts[i],
            "ids": result["completion_ids"][i, :n].tolist(),
            "mask": result["tool_mask"][i, :n].tolist(),
            "reward": REWARDS[i],
            "advantage": result["advantages"][i].item(),
        }
        if name == "qwen2_5":
            line.update((k, v[i]) for k, v in values.items())
        print(json.dumps(line), file=out)
    if name == "qwen2_5":
        for kind, level, masked in LOSSES:
            print(json.dumps(loss(t, result, kind, level, masked, logp, old, ref, entropy)), file=out)
(folder / "tool_mask.jsonl.zst").write_bytes(zstandard.ZstdCompressor(19).compress(out.getvalue().encode()))
