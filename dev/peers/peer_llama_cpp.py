"""Benchmark of llama.cpp's decode of one sequence, the peer of `generate --verbose`: greedy, on the processor alone.

    pip install -r dev/requirements.txt && python dev/peers/peer_llama_cpp.py --model MODEL.gguf [--threads 2]

The model is mapped and its weights are repacked as llama.cpp does by default; the end of text does not end the completion.
The rate is that of the tokens after the first one, as llama.cpp counts it, of the best of some runs after an untimed one.
Prints one JSON line: new tokens/s, peak resident memory in MiB, which includes the mapped file.
"""

import argparse
import importlib.metadata
import json
import resource

import xllamacpp

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="GGUF file")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--prompt", default="Write a long story about a ship.")
parser.add_argument("--new", type=int, default=256, help="tokens of the completion")
parser.add_argument("--runs", type=int, default=3, help="timed runs")
o = parser.parse_args()

params = xllamacpp.CommonParams()
params.model.path = o.model
params.n_ctx, params.n_gpu_layers, params.n_parallel, params.verbosity = 2048, 0, 1, -1
params.fit_params, params.cpuparams.n_threads, params.cpuparams_batch.n_threads = False, o.threads, o.threads
server = xllamacpp.Server(params)


def run():
    answer = server.handle_completions(dict(prompt=o.prompt, n_predict=o.new, temperature=0, ignore_eos=True,
                                            cache_prompt=False))
    times = answer["timings"]
    assert times["predicted_n"] == o.new, times
    return times["predicted_per_second"]


run()
rate = max(run() for _ in range(o.runs))
print(json.dumps({"peer": f"xllamacpp {importlib.metadata.version('xllamacpp')}", "threads": o.threads, "new": o.new,
                  "tokens_per_second": round(rate, 2),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
