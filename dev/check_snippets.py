#!/usr/bin/env python3
"""check_snippets.py - runs the Python of doc/metrics.md and doc/serve.md as it is written there.

    dev/check_snippets.py

The trackers get a run of 5 steps of GRPO, offline: Weights & Biases, trackio and MLflow write to a temporary folder, from
which the figures of the last step are read back and compared with those of the metrics file. OpenAI's client asks a server of
`generate`, whose port takes the place of 8000 in the snippet; its answer is compared with that of a plain request.

What is not installed is skipped with a line that says so; `pip install wandb trackio mlflow openai` installs all of it.
Needs train_sft, train_grpo, generate and data/make_tasks. Exits 1 if a snippet fails.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What reads a tracker's last step back: programs that print it as JSON, run where the snippet was.
READ = {
    "wandb": """
import glob, json
from wandb.proto import wandb_internal_pb2
BLOCK = 32768
# the blocks of a log of LevelDB, after a header of 7 bytes
data, at, record, last = open(glob.glob("wandb/offline-run-*/run-*.wandb")[0], "rb").read(), 7, b"", {}
while at + 7 <= len(data):
    if BLOCK - at % BLOCK < 7:
        at += BLOCK - at % BLOCK
        continue
    length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
    record += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):
        r = wandb_internal_pb2.Record.FromString(record)
        record = b""
        if r.WhichOneof("record_type") == "history":
            last = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
print(json.dumps(last))
""",
    "trackio": """
import json
from trackio.sqlite_storage import SQLiteStorage
run = SQLiteStorage.get_runs("llmc")[0]
print(json.dumps(SQLiteStorage.get_logs("llmc", run)[-1]))
""",
    "mlflow": """
import json, mlflow
run = mlflow.MlflowClient().search_runs(["0"])[0]
print(json.dumps(run.data.metrics))
""",
}


def snippets(path):
    """The Python blocks of a page."""
    with open(os.path.join(ROOT, path)) as f:
        return re.findall(r"^```python\n(.*?)^```", f.read(), re.M | re.S)


def package(snippet):
    """The package that a snippet is about: what it imports first."""
    return re.search(r"^(?:import|from) (\w+)", snippet, re.M)[1]


def installed(name):
    if importlib.util.find_spec(name):
        return True
    print(f"{name}: SKIPPED, it is not installed")
    return False


def program(code, folder):
    """Runs Python code in a folder; returns what it printed, or None after its error."""
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": f"{folder}/trackio", "HF_HUB_OFFLINE": "1",
               "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | offline, capture_output=True, text=True)
    if not done.returncode:
        return done.stdout
    print(done.stderr.strip()[-1500:])
    return None


def train(folder):
    """A small model, fine-tuned, and the metrics of a few steps of GRPO with it."""
    shape = "--layers 1 --width 32 --heads 2 --context 32"
    held = "-j tasks.shard --max-eval-samples 8 --eval-samples 4"
    for name, options in (
        ("data/make_tasks", "--task sort --items 4 --count 300 --format chat -o chat.shard"),
        ("data/make_tasks", "--task sort --items 4 --count 300 -o tasks.shard"),
        ("train_sft", f"-q {shape} -i chat.shard -x 20 -o sft.bin"),
        ("train_grpo", f"-q -c sft.bin -i tasks.shard {held} -p 4 -G 4 -g 10 -x 5 -o grpo.bin --metrics run.jsonl"),
    ):
        done = subprocess.run([f"{ROOT}/{name}"] + options.split(), cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"check_snippets.py: {name}: {done.stderr.strip()}")


def tracker(name, code, folder):
    """Runs the snippet of a tracker, and compares what it has of the last step; returns whether it is right."""
    if not installed(name):
        return True
    if program(code, folder) is None:
        print(f"{name}: FAILED")
        return False
    told = program(READ[name], folder)
    found = json.loads(told.splitlines()[-1]) if told else {}
    rows = [json.loads(line) for line in open(f"{folder}/run.jsonl")]
    last = [row for row in rows if "step" in row][-1]
    wanted = {k.replace("@", "_at_"): v for k, v in last.items() if k not in ("step", "time") and v is not None}
    found = {k.replace("@", "_at_"): v for k, v in found.items()}
    wrong = [k for k, v in wanted.items() if k not in found or abs(found[k] - v) > 1e-9 * abs(v)]
    what = f"{len(wanted) - len(wrong)} of {len(wanted)} values of the last step"
    print(f"{name}: {what}{'; FAILED: ' + ', '.join(wrong) if wrong else ''}")
    return bool(wanted) and not wrong


def client(code, folder):
    """Runs the snippet of OpenAI's client on a server; returns whether its answer is right."""
    if not installed("openai"):
        return True
    command = [f"{ROOT}/generate", "-c", "sft.bin", "--serve", "127.0.0.1:0"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if " is served at " in line)
        address = re.search(r"127\.0\.0\.1:\d+", line)[0]
        answer = program(code.replace("127.0.0.1:8000", address), folder)
        body = {"model": "sft.bin", "messages": [{"role": "user", "content": "sort 3 1 4 1:"}], "temperature": 0}
        url, head = f"http://{address}/v1/chat/completions", {"Content-Type": "application/json"}
        ask = urllib.request.Request(url, json.dumps(body).encode(), head)
        wanted = json.load(urllib.request.urlopen(ask))["choices"][0]["message"]["content"]
    finally:
        server.terminate()
        server.wait()
    right = answer is not None and answer.strip() == wanted.strip()
    print(f"openai: {'the answer of a plain request' if right else f'FAILED: {answer!r}, expected {wanted!r}'}")
    return right


def main():
    reading, *trackers = snippets("doc/metrics.md")
    ok = True
    with tempfile.TemporaryDirectory() as folder:
        train(folder)
        for snippet in trackers:
            ok &= tracker(package(snippet), reading + snippet, folder)
        for snippet in snippets("doc/serve.md"):
            ok &= client(snippet, folder)
    sys.exit(0 if ok else 1)


main()
