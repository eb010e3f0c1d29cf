#!/usr/bin/env python3
"""livecodebench.py - rows of LiveCodeBench, one JSON object a line, as rows of the task code for make_shard.

    python3 scripts/livecodebench.py <test.jsonl >rows.jsonl

Its private tests are base64 of a zlib stream of a pickle. A pickle can name functions, which are then called: this reader
refuses every name, so that only plain values are read. It can still be large: run it where memory is limited, as by
`ulimit -v 4000000`, or in a sandbox (doc/code.md).
"""
import base64
import io
import json
import pickle
import sys
import zlib


class Plain(pickle.Unpickler):
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"a private test names {module}.{name}")


def tests(text):  # a list of {"input", "output", "testtype"}
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(Plain(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())


for line in sys.stdin:
    row = json.loads(line)
    cases = tests(row["public_test_cases"]) + tests(row.get("private_test_cases") or "[]")
    name = json.loads(row.get("metadata") or "{}").get("func_name")
    prompt = row["question_content"] + ("\n\n" + row["starter_code"] if row.get("starter_code") else "")
    test = {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    print(json.dumps({"prompt": prompt, "task": "code", "tests": dict(test, fn_name=name) if name else test}))
