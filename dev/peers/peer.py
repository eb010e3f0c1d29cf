"""Shared parts of the scripts that benchmark TRL's trainers: options, TRL's settings, timing and the JSON line.

    parser = peer.options(__doc__, steps=4)
    o = peer.start(parser)                          # call it before importing torch or transformers
    model = GPT2LMHeadModel(GPT2Config(**peer.shape(o), ...))
    trainer = DPOTrainer(model, args=DPOConfig(**peer.settings(o, folder), ...), ...)
    peer.measure(trainer, o, batch=o.batch)         # trains, prints one JSON line
"""

import argparse
import json
import os
import resource
import statistics
import time


EOS, PAD = 256, 259  # of the tokenizer of bytes
PAIRS = """
Both programs train on the same pairs, with one token per byte and an end token. TRL pads the completions of a step to the
longest and runs each prompt twice. TRL's defaults apply except for what the comparison fixes: float32 unless --dtype
bfloat16 (which is TRL's default), and no gradient checkpointing (it would only slow TRL down). Nothing is downloaded and
nothing is reported. Prints one JSON line: optimizer steps/s of the median step, peak resident memory in MiB.
"""


def options(doc, steps, shape=True):
    """shape: with the options of GPT-2's shape."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    if shape:
        parser.add_argument("--layers", type=int, default=6)
        parser.add_argument("--heads", type=int, default=6)
        parser.add_argument("--width", type=int, default=384)
        parser.add_argument("--vocab", type=int, default=260)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
    parser.add_argument("--steps", type=int, default=steps, help="timed steps, after one untimed step")
    return parser


def pair_options(doc):
    """The options of the benchmarks that train on pairs of completions."""
    parser = options(doc + PAIRS, steps=4)
    parser.add_argument("--data", required=True, help="JSON lines with prompt, chosen, rejected")
    parser.add_argument("--batch", type=int, default=8, help="pairs per step")
    return parser


def lora_option(parser):
    parser.add_argument("--lora-rank", type=int, default=0, help="train PEFT's adapters of this rank; 0 trains all weights")


def adapters(o):
    """The trainer's peft_config for --lora-rank."""
    if not o.lora_rank:
        return None
    from peft import LoraConfig
    return LoraConfig(r=o.lora_rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def tokenizer_of(words, **options):
    """A tokenizer with one token per character, from a table that has <eos> and <pad>, too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", **options)


def byte_tokenizer():
    """A tokenizer with one token per byte of ASCII text, an end token and padding."""
    tokenizer = tokenizer_of({**{chr(i): i for i in range(256)}, "<eos>": EOS, "<pad>": PAD})
    assert tokenizer("ab:<eos>")["input_ids"] == [97, 98, 58, EOS]
    return tokenizer


def character_tokenizer(vocab):
    """A tokenizer in which token i is the character 0x100 + i; the last two of `vocab` tokens are padding and the end."""
    return tokenizer_of({**{chr(0x100 + i): i for i in range(vocab - 2)}, "<pad>": vocab - 2, "<eos>": vocab - 1},
                        padding_side="left")


def pairs(o):
    """The rows of --data."""
    return [json.loads(line) for line in open(o.data)]


def start(parser):
    """Parses the command line and sets up the libraries: offline, with --threads threads and a fixed seed."""
    o = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", WANDB_MODE="disabled",
                      OMP_NUM_THREADS=str(o.threads), TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    return o


def shape(o):
    """The arguments of GPT2Config; no dropout."""
    return dict(vocab_size=o.vocab, n_embd=o.width, n_layer=o.layers, n_head=o.heads, n_positions=1024, resid_pdrop=0,
                embd_pdrop=0, attn_pdrop=0)


def settings(o, folder):
    """TRL's settings that all methods share. Gradient checkpointing is off, as it would only slow TRL down."""
    return dict(output_dir=folder, use_cpu=True, bf16=o.dtype == "bfloat16", gradient_checkpointing=False,
                report_to="none", max_steps=o.steps + 1, save_strategy="no", logging_steps=1, disable_tqdm=True,
                dataloader_pin_memory=False)


def measure(trainer, o, tokens=None, **facts):
    """Trains and prints optimizer steps/s of the median step, peak memory and `facts`. tokens, for tokens/s: tokens per step,
    or a list that holds the tokens of each step afterwards."""
    import torch
    import transformers
    import trl
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter() - self.start)

    trainer.add_callback(Clock())
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    seconds = statistics.median(times[1:])
    libraries = f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    rate = {}
    if isinstance(tokens, list):
        rate = {"tokens_per_second": round(sum(tokens[1:]) / sum(times[1:]), 1)}
    elif tokens:
        rate = {"tokens_per_second": round(tokens / seconds, 1)}
    print(json.dumps({"peer": libraries, "dtype": o.dtype, "threads": o.threads, **facts,
                      "parameters": sum(p.numel() for p in trainer.model.parameters()),
                      "seconds_per_step": round(seconds, 3), "steps_per_second": round(1 / seconds, 4), **rate,
                      "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
