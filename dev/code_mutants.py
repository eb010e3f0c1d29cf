#!/usr/bin/env python3
"""code_mutants.py - small Python functions with asserts, and copies of them with one token changed, with the verdict of a plain
run: JSON lines for `build/check_code verdicts`. The plain run is a fresh interpreter that runs the program and then its asserts,
without a sandbox; a program that does not end within 3 seconds fails.

    dev/code_mutants.py >mutants.jsonl
    build/check_code verdicts bwrap mutants.jsonl
"""
import concurrent.futures
import io
import json
import subprocess
import sys
import tokenize

FUNCTIONS = [
    ("def f(n):\n    return n * n + 1\n", "3 -2 0"),
    ("def f(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n", "(12,18) (7,5) (0,4)"),
    ("def f(n):\n    if n < 2:\n        return False\n    for d in range(2, int(n ** 0.5) + 1):\n        if n % d == 0:\n"
     "            return False\n    return True\n", "2 9 97 1 91"),
    ("def f(s):\n    return s[::-1].upper()\n", "'abc' '' 'xY'"),
    ("def f(xs):\n    return sorted(set(xs))\n", "[3,1,3,2] [] [5,-1]"),
    ("def f(xs):\n    best = xs[0]\n    for x in xs[1:]:\n        if x > best:\n            best = x\n    return best\n",
     "[1,5,2] [-3,-1] [4]"),
    ("def f(n):\n    a, b = 0, 1\n    for i in range(n):\n        a, b = b, a + b\n    return a\n", "0 1 10 90"),
    ("def f(s):\n    counts = {}\n    for c in s:\n        counts[c] = counts.get(c, 0) + 1\n    return counts\n",
     "'aab' '' 'abcabc'"),
    ("def f(xs, k):\n    return [xs[i:i + k] for i in range(0, len(xs), k)]\n", "([1,2,3,4,5],2) ([],3) ([1],1)"),
    ("def f(s):\n    t = [c for c in s.lower() if c.isalnum()]\n    return t == t[::-1]\n", "'A man, a plan' 'Level' 'ab'"),
    ("def f(n):\n    total = 0\n    while n > 0:\n        total += n % 10\n        n //= 10\n    return total\n", "123 0 99999"),
    ("def f(xs):\n    return sum(xs) / len(xs)\n", "[1,2,3,4] [0.5,0.25] [7]"),
    ("def f(a, b):\n    return tuple(x + y for x, y in zip(a, b))\n", "((1,2),(3,4)) ((),()) ((1,),(0,))"),
    ("def f(m):\n    return [list(r) for r in zip(*m)]\n", "[[1,2],[3,4]] [[1,2,3]] []"),
    ("def f(n):\n    return bin(n).count('1')\n", "5 0 255"),
    ("def f(s):\n    out = []\n    for w in s.split():\n        out.append(w[0].upper() + w[1:])\n    return ' '.join(out)\n",
     "'hello big world' '' 'a b'"),
    ("def f(xs, t):\n    seen = set()\n    for x in xs:\n        if t - x in seen:\n            return True\n        seen.add(x)\n"
     "    return False\n", "([1,2,3],5) ([1],2) ([2,2],4)"),
    ("def f(n):\n    return {i: i ** 2 for i in range(1, n + 1) if i % 2}\n", "5 0 2"),
    ("def f(a):\n    return a is None or not a\n", "None [] [1]"),
    ("def f(x):\n    return round(x * 9 / 5 + 32, 2)\n", "100 -40 36.6"),
    ("def f(b):\n    return bytes(x ^ 255 for x in b)\n", "b'\\x00\\xff' b'' b'abc'"),
    ("def f(n):\n    return 2 ** n - 1\n", "3 64 100"),
]
CHANGES = {"+": "-", "-": "+", "*": "+", "<": "<=", ">": ">=", "==": "!=", "%": "//", "//": "%", "0": "1", "1": "2", "2": "3",
           "10": "9", "True": "False", "False": "True", "not": "", "or": "and", "in": "not in", "**": "*", "upper": "lower",
           "append": "extend", "sorted": "list", "set": "list", "return": "yield", "+=": "-=", "/": "//", "max": "min",
           "is": "is not", "255": "254", "zip": "map", "sum": "len"}


def mutants(source):
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string in CHANGES:
            lines = source.splitlines(keepends=True)
            (row, a), (_, b) = token.start, token.end
            lines[row - 1] = lines[row - 1][:a] + CHANGES[token.string] + lines[row - 1][b:]
            yield "".join(lines)


def plain(program, tests):
    text = program + "\n" + "\n".join(tests) + "\n"
    try:
        return subprocess.run([sys.executable, "-c", text], stdin=subprocess.DEVNULL, capture_output=True, timeout=3).returncode == 0
    except subprocess.TimeoutExpired:
        return False


rows = []
for source, inputs in FUNCTIONS:
    space, tests = {}, []
    exec(source, space)
    for text in inputs.split(" ") if not inputs.startswith("'") else eval("[" + inputs.replace("' '", "','") + "]"):
        argument = text if not inputs.startswith("'") else repr(text)
        value = eval(argument)
        call = "f" + argument if isinstance(value, tuple) else "f(" + argument + ")"
        tests.append("assert %s == %r" % (call, eval(call, space)))
    rows += [(program, tests) for program in [source, *mutants(source)]]
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for (program, tests), right in zip(rows, pool.map(lambda r: plain(*r), rows)):
        print(json.dumps({"completion": program, "fields": json.dumps({"tests": tests}), "right": right}))
