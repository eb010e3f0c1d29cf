#!/usr/bin/env python3
"""calculator_agent.py - an agent for --agent-cmd: it lets the model write a text, and computes the products that it asks for.

    data/make_tasks --task bigmul --count 3000 -o tasks.shard
    train_grpo -c sft.bin -i tasks.shard -o grpo.bin -g 60 --agent-cmd 'python3 scripts/calculator_agent.py' ...

doc/agents.md explains what the program gets, and how its model is made.
"""

import json
import os
import re
import sys
import urllib.request

text = json.loads(sys.stdin.readline())["prompt"]
for turn in range(2):
    body = json.dumps({"prompt": text, "stop": ["</c>"], "max_tokens": 16}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/completions", body, {"Content-Type": "application/json"})
    choice = json.load(urllib.request.urlopen(request))["choices"][0]
    text += choice["text"]
    call = re.search(r"<c>(\d+)\*(\d+)$", text)
    if not call or choice["stop_reason"] != "</c>":
        break
    text += "</c><r>%d</r>" % (int(call[1]) * int(call[2]))
