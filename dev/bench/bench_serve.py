#!/usr/bin/env python3
"""bench_serve.py - tokens per second of `generate --serve` with 64 clients at once, beside `generate` on the same prompts.

    dev/bench/bench_serve.py MODEL [--clients 64] [--prompts 256] [--tokens 128] [--rounds 3] [--stream]

Every client sends a prompt, waits for the whole answer and sends the next one; the prompts are drawn from --prompts texts of
about 30 tokens. `generate` gets all of them in a file, with as many --slots. Both are run in turn, --rounds times; the time
to load the model is not counted. On a busy machine compare the tokens per second of processor time, which count only the
program itself. Standard library only.
"""

import argparse
import http.client
import json
import os
import resource
import subprocess
import tempfile
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--clients", type=int, default=64)
parser.add_argument("--prompts", type=int, default=256)
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--stream", action="store_true")
o = parser.parse_args()

prompts = [" ".join(str((i * 7919 + k * 104729) % 97) for k in range(15)) for i in range(o.prompts)]


def file_rate():
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        f.writelines(json.dumps({"prompt": p}) + "\n" for p in prompts)
        f.flush()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            ["./generate", "-c", o.model, "--raw", "-i", f.name, "-g", str(o.tokens), "--temperature", "1", "-o",
             "/dev/null", "--slots", str(o.clients)],
            stderr=subprocess.PIPE, text=True, check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tokens = int(run.stderr.split(" tokens in")[0].split()[-1])
    return float(run.stderr.split(" tok/s")[0].split()[-1]), tokens / cpu


def processor_time(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port, lines, drawn):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while True:
        try:
            prompt = lines.pop()
        except IndexError:
            return
        body = {"prompt": prompt, "max_tokens": o.tokens, "temperature": 1, "stream": o.stream}
        if o.stream:
            body["stream_options"] = {"include_usage": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse().read()
        if o.stream:
            answer = [line for line in answer.split(b"\n\n") if b'"usage"' in line][0][6:]
        drawn.append(json.loads(answer)["usage"]["completion_tokens"])


def serve_rate(port, pid):
    before = processor_time(pid)
    lines, drawn = list(prompts), []
    clients = [threading.Thread(target=ask, args=(port, lines, drawn)) for _ in range(o.clients)]
    start = time.monotonic()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(drawn) == o.prompts
    return sum(drawn) / (time.monotonic() - start), sum(drawn) / (processor_time(pid) - before)


server = subprocess.Popen(
    ["./generate", "-c", o.model, "--serve", "127.0.0.1:0", "--slots", str(o.clients), "--max-model-len", "512"],
    stderr=subprocess.PIPE, text=True,
)
try:
    for line in server.stderr:
        if " is served at " in line:
            break
    port = int(line.split("/v1")[0].rsplit(":", 1)[1])
    for _ in range(o.rounds):
        (a, ca), (b, cb) = file_rate(), serve_rate(port, server.pid)
        print(
            f"generate {a:.0f} tok/s, --serve with {o.clients} clients {b:.0f} tok/s, ratio {b / a:.3f}; "
            f"per second of processor time {ca:.0f} and {cb:.0f}, ratio {cb / ca:.3f}",
            flush=True,
        )
finally:
    server.terminate()
    server.wait()
