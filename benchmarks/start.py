"""From the start of a process to the first token of an answer on the CPU: an engine directory, the Hugging Face
directory it was made of, and transformers on the same directory.

    jitney export MODEL ENGINE && python benchmarks/start.py MODEL ENGINE [ENGINE …] [--rounds 7]

MODEL is a Hugging Face directory, or the default model's name. Every round starts each of them once, one after the
other, so that a busy machine disturbs all alike. Prints medians and ranges in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from jitney.runtime.weights.default_model import NAMES, default_model

QUESTION = "What is the capital of France?"
JITNEY = "from jitney.streaming.cli import main; main()"
TRANSFORMERS = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
chat = [{"role": "user", "content": sys.argv[2]}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
sys.stdout.write(tokenizer.decode(answer[0, -1:]))
sys.stdout.flush()
"""


def seconds(command: list[str], question: str) -> float:
    """Until the first byte of the answer."""
    started = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(question.encode() + b"\n")
        process.stdin.close()
        first = process.stdout.read(1)
        taken = time.perf_counter() - started
        process.stdout.read()
    if not first or process.returncode:
        raise SystemExit(f"{command}: no answer, status {process.returncode}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    directory = str(default_model()) if arguments.model.lower() in NAMES else arguments.model
    chat = [sys.executable, "-c", JITNEY, "chat", "--max-tokens", "8"]
    starts = {f"jitney, {engine}": [*chat, engine] for engine in arguments.engines}
    starts["jitney, Hugging Face directory"] = [*chat, directory]
    starts["transformers"] = [sys.executable, "-c", TRANSFORMERS, directory, QUESTION]
    taken: dict[str, list[float]] = {name: [] for name in starts}
    for command in starts.values():
        seconds(command, QUESTION)  # files into the system's cache
    for _ in range(arguments.rounds):
        for name, command in starts.items():
            taken[name].append(seconds(command, QUESTION))
    for name, times in taken.items():
        spread = f"({min(times):.2f} to {max(times):.2f})"
        sys.stdout.write(f"{name:40} {statistics.median(times):6.2f} s  {spread}\n")


if __name__ == "__main__":
    main()
