"""Shared parts of the generators of golden values: exact inputs, the output's format, functions out of a peer's file, a process
of one.

    import golden                                      # before TRL: it keeps the library offline
    from golden import Accelerator, emit, float32
    out = golden.start("losses.txt", seed=1)           # after the other imports
    print("case loss grpo", file=out)
    emit("logp", values)                               # key count v1 v2 ...
    out.close()
"""

import __future__
import ast
import os
from pathlib import Path
import textwrap
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
import torch

out, precision = None, None


def start(name, seed, digits=9):
    """Computes in float64 from here on, seeds the draws and returns tests/golden/NAME, opened for writing."""
    global out, precision
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    out = open(os.path.join(os.path.dirname(__file__), "../../tests/golden", name), "w")
    precision = digits
    return out


def emit(key, values, digits=None):
    """Writes a line of values, by default with the number of digits given to start()."""
    values = [float(v) for v in torch.as_tensor(values, dtype=torch.float64).flatten()]
    print(key, len(values), *[f"{v:.{digits or precision}g}" for v in values], file=out)


def float32(x):
    """x rounded to float32, so that the C code gets the same numbers."""
    return x.float().double()


def functions(path, names, **space):
    """Defines these functions, methods and classes of a file without running the rest of it, and returns them by their names.
    space: what they use of the rest. Annotations are not evaluated."""
    source = Path(path).read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            text = textwrap.dedent(ast.get_source_segment(source, node, padded=True))
            exec(compile(text, str(path), "exec", __future__.annotations.compiler_flag), space)
    return SimpleNamespace(**{name: space[name] for name in names})


class Accelerator:
    """One process: every collective is the identity."""

    num_processes, process_index, sync_gradients, device = 1, 0, True, torch.device("cpu")
    gather = gather_for_metrics = staticmethod(lambda x: x)

    def reduce(self, x, reduction):
        return x

    def pad_across_processes(self, x, dim, pad_index):
        return x

    def unwrap_model(self, model):
        return model
