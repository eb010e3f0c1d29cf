"""Golden values for tests/test_rewards.c, computed by TRL's own reward functions: writes tests/golden/rewards.txt.

    pip install trl==1.16 && python dev/golden/golden_rewards.py

The functions of trl.rewards run unchanged; only the correctness, which get_cosine_scaled_reward takes from math_verify, is
given. The format is that of tests/golden.h. Texts are written as their bytes.
"""

import itertools
import os
import random

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
import trl
from trl.rewards import (accuracy_rewards, get_cosine_scaled_reward, get_repetition_penalty_reward,
                         get_soft_overlong_punishment, think_format_reward)

random.seed(1)
out = [f"# trl {trl.__version__}, by dev/golden/golden_rewards.py"]


def case(family, **fields):
    out.append(f"case reward {family} {family}{len(out)}")
    for key, values in fields.items():
        out.append(" ".join([key, str(len(values))] + [repr(float(v)) for v in values]))
    out.append("end")


lengths = [0, 1, 2, 5, 10, 49, 50, 51, 79, 80, 81, 90, 99, 100, 101, 150, 1000]
ids = [[1] * n for n in lengths]

for cache, longest in [(20, 100), (0, 100), (100, 100), (1, 50), (4096, 20480), (7, 81)]:
    case("overlong", argument=[cache, longest], tokens=lengths,
         value=get_soft_overlong_punishment(longest, cache)(ids))

for longest, bounds in itertools.product([100, 37, 1], [(-1, -0.5, 0.5, 1), (-10, 0, 1, 2), (0, 0, 1, 1)]):
    for right in (0, 1):
        accuracy_rewards.accuracy_reward = lambda completions, solution: [float(right)] * len(completions)
        value = get_cosine_scaled_reward(longest, *bounds)([None] * len(ids), [None] * len(ids), ids)
        case("cosine", argument=[longest, *bounds], right=[right], tokens=lengths, value=value)

for n, penalty in itertools.product([1, 2, 3, 5, 40], [-1.0, -0.5, 0.0]):
    for count, kinds in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 4), (5, 1), (30, 2), (30, 5), (40, 1), (64, 3), (64, 60000)]:
        x = [random.randrange(kinds) for _ in range(count)]
        case("repetition", argument=[n, penalty], ids=x, value=get_repetition_penalty_reward(n, penalty)([x]))

pieces = ["<think>", "</think>", "\n", "a", " ", "$", "", "<answer>", "\r\n", "é"]
texts = ["<think>\nThis is my reasoning.\n</think>\nThis is my answer.", "<think>\nThis is my reasoning.\nThis is my answer.",
         "<think></think>", "\n<think>a</think>", "x<think>a</think>", "<think>a<think>b</think>c", "<think>a</think>b</think>c",
         "<think>a</think><think>", "", "<think>", "</think><think>"]
texts += ["".join(random.choice(pieces) for _ in range(random.randrange(1, 7))) for _ in range(60)]
texts += ["<think>" + "".join(random.choice(pieces) for _ in range(random.randrange(1, 7))) for _ in range(60)]
for text in texts:
    case("think", text=text.encode(), value=think_format_reward([[{"content": text}]]))

path = os.path.join(os.path.dirname(__file__), "../../tests/golden/rewards.txt")
open(path, "w").write("\n".join(out) + "\n")
print(f"{path}: {sum(line.startswith('case') for line in out)} cases")
