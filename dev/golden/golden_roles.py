"""Golden values for tests/test_advantage.c: advantages of completions with roles, computed by prime-rl's code: writes
tests/golden/roles.txt.

    git clone https://github.com/PrimeIntellect-ai/prime-rl                                   # 559b447
    pip install torch && python dev/golden/golden_roles.py prime-rl

The classes RAEAlgorithm and HierarchicalGRPOAlgorithm and the function iter_trainable_traces() run unchanged; the rest of what
their files import is replaced. A trace with an error takes no part; its reward is written as nan.

Format: `case roles METHOD NAME`, then lines `key count v1 v2 ...`, then `end`. The values are those of G completions of each group;
for rae, baseline is that of each role after each group.
"""

import asyncio
from collections import defaultdict
from pathlib import Path
import sys
from types import SimpleNamespace

import golden
from golden import emit, float32, functions
import torch

ALGO = Path(sys.argv[1]) / "src/prime_rl/orchestrator/algo"
GROUPS, G = 3, 8


class Algorithm:
    def __init__(self, config, policy_pool):
        pass


def assign_advantages(trace, advantage):
    trace.advantage = advantage


def trace(role, reward, error):
    return SimpleNamespace(agent=SimpleNamespace(name=role, trainable=True), reward=reward, has_error=error,
                           nodes=[SimpleNamespace(mask=[True])], advantage=0.0)


def emit_case(method, name, algorithm, roles, episodes, rewards, errors, **more):
    names = ["proposer", "solver"]
    advantages, baselines = [], []
    for g in range(GROUPS):
        groups, traces = defaultdict(list), []
        for i in range(g * G, (g + 1) * G):
            traces.append(trace(names[roles[i]], float(rewards[i]), bool(errors[i])))
            groups[episodes[i]].append(traces[-1])
        asyncio.run(algorithm.score_group([SimpleNamespace(id=str(e), traces=t) for e, t in groups.items()]))
        advantages += [t.advantage for t in traces]
        baselines += [algorithm.baselines[name] for name in names] if method == "rae" else []
    print("case roles", method, name, file=out)
    for key, value in more.items():
        emit(key, [value])
    emit("roles", roles)
    emit("episodes", episodes)
    emit("reward", torch.where(torch.tensor(errors, dtype=torch.bool), torch.nan, rewards))
    emit("advantage", advantages, 17)
    if baselines:
        emit("baseline", baselines, 17)
    print("end", file=out)


space = dict(vars(functions(ALGO / "base.py", ["iter_trainable_traces"])), Algorithm=Algorithm,
             assign_advantages=assign_advantages, defaultdict=defaultdict)
RAE = functions(ALGO / "rae.py", ["RAEAlgorithm"], **space).RAEAlgorithm
Hierarchical = functions(ALGO / "hierarchical_grpo.py", ["HierarchicalGRPOAlgorithm"], **space).HierarchicalGRPOAlgorithm
out = golden.start("roles.txt", seed=7)
print("# made by dev/golden/golden_roles.py with prime-rl 559b447", file=out)
n = GROUPS * G
in_order = [i // 2 for i in range(n)]
for name, decay, lost in (("default", 0.95, 0), ("none", 0.0, 0), ("lost", 0.8, 5)):
    errors = [lost and i % lost == 0 for i in range(n)]
    emit_case("rae", name, RAE(SimpleNamespace(decay=decay), None), [i % 2 for i in range(n)], in_order,
              float32(torch.randn(n)), errors, decay=decay)
for name, agents, lost in (("solver", ["solver"], 0), ("both", ["proposer", "solver"], 0), ("lost", ["solver"], 3)):
    roles = [0 if i % 4 == 0 else 1 for i in range(n)]
    errors = [lost and i % lost == 1 for i in range(n)]
    emit_case("hierarchical", name, Hierarchical(SimpleNamespace(episode_agents=agents), None), roles,
              [i // 4 for i in range(n)], float32(torch.randn(n)), errors, both=len(agents) == 2)
out.close()
