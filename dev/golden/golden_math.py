#!/usr/bin/env python3
"""Verdicts of math-verify and of verl's graders on rewritten MATH-style answers, for tests/golden/math.jsonl.

    pip install math-verify==0.9.0 pylatexenc && pip install --no-deps verl==0.9.1
    python3 dev/golden/golden_math.py >tests/golden/math.jsonl
    python3 dev/golden/golden_math.py --table SCORER [ANSWERS]

Each line has the kind of rewriting, the answer, the completion, and whether math-verify (verify), verl's math_reward (MATH's
own normaliser) and verl's math_dapo (Minerva's) accept it. The kind `wrong` has near misses. --table prints the share that each
accepts by kind, with that of a program SCORER, which reads lines {task, answer, completion, fields} and writes a line that
begins with a score for each; ANSWERS replaces the answers by the field `answer` of JSON lines. The table also has verl's
prime_math (PRIME's, by sympy), whose time limit, a process for each comparison, is left out.
"""
import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import types

from math_verify import parse, verify

ANSWERS = [
    r"\frac{14}{3}", r"\frac{3}{56}", r"-\frac{7}{4}", r"\frac{1}{2}", r"-\frac{5}{12}", r"\frac{125}{8}", "9", "42", "-50",
    "2220", "10000", "1234567", "0.35", "-2.5", "28", "90", "11", "3.75", r"\sqrt{51}", r"3\sqrt{13}", r"\frac{\sqrt{3}}{2}",
    r"\frac{2\sqrt{5}}{5}", r"1+2\sqrt{3}", r"2-\sqrt{7}", r"\pi", r"\frac{\pi}{4}", r"16\pi", r"6-5i", r"p-q", r"x^2+3x-4",
    r"3x+7", r"(3,-1)", r"\left(3,\frac{\pi}{2}\right)", r"(-2,1,5)", r"(0,\infty)", r"[-2,7]", r"(-\infty,3)", r"[0,5)",
    r"(-\infty,2)\cup(2,\infty)", "1,2", "-3,5,8", r"\{1,2,3\}", r"x=5", r"y=2x+3", r"\text{Evelyn}", r"\text{even}", r"2^{10}",
    r"x^{2}y", r"\frac{x+1}{x-2}", r"\frac{1}{1+\sqrt{2}}"]


def grader(name):
    spec = importlib.util.find_spec("verl")
    path = spec.submodule_search_locations[0] + f"/utils/reward_score/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prime():
    """verl's prime_math, which imports verl.utils.py_functional for its time limit alone."""
    folder = importlib.util.find_spec("verl").submodule_search_locations[0]
    limits = types.ModuleType("verl.utils.py_functional")
    limits.timeout_limit = lambda *_, **__: lambda function: function
    sys.modules["verl.utils.py_functional"] = limits
    for name in ("verl", "verl.utils", "verl.utils.reward_score"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [folder + name.removeprefix("verl").replace(".", "/")]
    return importlib.import_module("verl.utils.reward_score.prime_math")


REWARD, DAPO = grader("math_reward"), grader("math_dapo")


def whole(a):
    return re.fullmatch(r"-?\d+", a)


def rewritings(a):
    """(kind, completion) pairs that state the answer a."""
    box = lambda text: "The result is $\\boxed{%s}$." % text
    yield "same", box(a)
    if "\\frac" in a:
        yield "dfrac", box(a.replace("\\frac", "\\dfrac"))
        yield "tfrac", box(a.replace("\\frac", "\\tfrac"))
    if re.search(r"\\frac\{\d\}\{\d\}", a):
        yield "frac12", box(re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", a))
    if re.fullmatch(r"-?\\frac\{\d+\}\{\d+\}", a):
        sign, top, bottom = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", a).groups()
        yield "slash", box(f"{sign}{top}/{bottom}")
        top, bottom = int(top), int(bottom)
        if top > bottom:
            yield "mixed number", box("%s%d\\frac{%d}{%d}" % (sign, top // bottom, top % bottom, bottom))
        if 10**6 * top % bottom == 0:
            yield "decimal", box("%s%s" % (sign, top / bottom))
    if any(c in a for c in "+-,=") and not a.startswith("\\text"):
        yield "spacing", box(re.sub(r"(?<=.)([-+,=])", r" \1 ", a))
    if "," in a:
        yield "thin space", box(re.sub(r",(?!\d{3})", ",\\\\,", a) if not whole(a) else a)
    if a[0] in "([" and "\\cup" not in a:
        yield "left right", box("\\left%s %s \\right%s" % (a[0], a[1:-1], a[-1]) if "\\left" not in a else a)
    if whole(a):
        yield "text", box("\\text{%s}" % a)
        yield "units", box(a + " \\text{ cm}")
        yield "degrees", box(a + "^\\circ")
        yield "percent", box(a + "\\%")
        yield "leading zero", box(a + ".0")
        yield "dollar", box("\\$" + a)
        if len(a) > 4:
            yield "commas", box(f"{int(a):,}")
            yield "latex commas", box(f"{int(a):,}".replace(",", "{,}"))
    if re.fullmatch(r"-?0\.\d+", a):
        yield "leading zero", box(a.replace("0.", ".", 1))
    if re.fullmatch(r"-?\d+\.\d+", a):
        yield "leading zero", box(a + "0")
    if "\\sqrt" in a:
        yield "sqrt3", box(re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", a))
        yield "cdot", box(re.sub(r"(\d)\\sqrt", r"\1 \\cdot \\sqrt", a))
    if re.fullmatch(r"-?\d+(,-?\d+)+", a):
        yield "order", box(", ".join(reversed(a.split(","))))
    if a.startswith("\\{"):
        yield "order", box("\\{%s\\}" % ", ".join(reversed(a[2:-2].split(","))))
    if re.fullmatch(r"[a-z0-9^{}\\+]+\+[0-9\\a-z{}]+", a) and "frac" not in a:
        yield "order", box("+".join(reversed(a.split("+"))))
    if a.startswith("x="):
        yield "equation", box(a[2:])
    elif re.fullmatch(r"-?[\d.]+|-?\\frac\{\d+\}\{\d+\}", a):
        yield "equation", box("x = " + a)


def misses(a):
    """Completions that do not state a."""
    box = lambda text: "The result is $\\boxed{%s}$." % text
    digits = list(re.finditer(r"\d", a))
    for m in digits:
        yield box(a[:m.start()] + str((int(m.group()) + 1) % 10 or 1) + a[m.end():])
    yield box(a[1:] if a[0] == "-" else "-" + a)
    yield box(a + "+1")
    yield box(a + "0" if a[-1].isdigit() and "." not in a else "0" + a + "+2")
    if a[0] in "([":
        yield box(("[" if a[0] == "(" else "(") + a[1:]) if "\\infty" not in a else box(a.replace("\\infty", "7"))
    if "\\frac{" in a:
        yield box(re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\\frac{\2}{\1}", a)) if not re.search(r"\{(\w+)\}\{\1\}", a) else box("7")
    if "\\sqrt" in a:
        yield box(a.replace("\\sqrt", ""))
    if re.fullmatch(r"\d{2,}", a):
        yield box(a[0] + "," + a[1:]) if len(a) != 4 else box(a[0] + "." + a[1:])
    yield box("\\text{none}")


def verdicts(answer, completion):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            gold = parse("$" + answer + "$", parsing_timeout=None)
            by_verify = bool(verify(gold, parse(completion, parsing_timeout=None), timeout_seconds=None))
        except Exception:  # the package's own failures count as rejections, as in its use as a reward
            by_verify = False
        box = REWARD.last_boxed_only_string(completion)
        by_dapo = DAPO.is_correct_minerva("Answer: " + REWARD.remove_boxed(box), answer)[0]
        return {"math_verify": int(by_verify), "math_reward": int(REWARD.compute_score(completion, answer)),
                "math_dapo": int(by_dapo)}


def rows(answers):
    for a in answers:
        for kind, completion in rewritings(a):
            yield {"kind": kind, "answer": a, "completion": completion, **verdicts(a, completion)}
        for completion in dict.fromkeys(m for m in misses(a) if "\\boxed{%s}" % a not in m):
            yield {"kind": "wrong", "answer": a, "completion": completion, **verdicts(a, completion)}


def by_prime(grader_of_prime, row):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return int(bool(grader_of_prime.compute_score(row["completion"], row["answer"])[0]))
        except Exception:  # as for math-verify
            return 0


def table(scorer, answers):
    all_rows = list(rows(answers))
    grader_of_prime = prime()
    for r in all_rows:
        r["prime_math"] = by_prime(grader_of_prime, r)
    lines = "".join(json.dumps({"task": "math", "answer": r["answer"], "completion": r["completion"], "fields": ""}) + "\n"
                    for r in all_rows)
    said = subprocess.run([scorer], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    for r, line in zip(all_rows, said, strict=True):
        r["ours"] = int(line.split()[0] == "1")
    names = ["ours", "math_verify", "math_reward", "math_dapo", "prime_math"]
    print("| rewriting | answers | this project | math-verify | verl math_reward | verl math_dapo | verl prime_math |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for kind in dict.fromkeys(r["kind"] for r in all_rows):
        of = [r for r in all_rows if r["kind"] == kind]
        print(f"| {kind} | {len(of)} | " + " | ".join(str(sum(r[n] for r in of)) for n in names) + " |")
    for r in all_rows:
        if (r["kind"] != "wrong") != bool(r["ours"]):
            print(json.dumps(r), file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        given = [json.loads(line)["answer"] for line in open(sys.argv[3])] if len(sys.argv) > 3 else ANSWERS
        table(sys.argv[2], given)
    else:
        for row in rows(ANSWERS):
            print(json.dumps(row))
