"""The whole way of an answer, from socket to socket, without a card: its steps are waited for, not computed.

    python benchmarks/pretend_card.py [--shape llama-1b] [--faster 1.0] [--profile FILE] [OPTIONS of jitney bench serve]

A launch takes what it took on an H100 (`COSTS`), may be two launches ahead, and gives each row a token that means
nothing. `jitney bench serve` puts load on `jitney serve` over such a step: 256 clients, 768 requests, 512 tokens in and
256 out, over WebSocket, where no options are given. Then what the thread of the server's loop computed, and its turns.
With `--profile`, cProfile watches that thread, which makes it slower, and writes what it saw to FILE.
"""

from __future__ import annotations

import argparse
import atexit
import cProfile
import re
import selectors
import subprocess
import sys
import time
from typing import Any, NamedTuple

from jitney.runtime.batch import Batch, Capacity, Decoded, Outcomes, RowOutcome
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.ladder import Ladder
from jitney.runtime.cuda.sizes import PAGE_TOKENS, Sizes, mixed_tokens
from jitney.runtime.model.config import ModelConfig
from jitney.runtime.weights.checkpoint import Checkpoint
from jitney.streaming.cli import app
from jitney.streaming.commands.benches.servers import MAIN, SERVED
from jitney.streaming.commands.benches.shapes import Subject

LOAD = "--transport ws --clients 256 --requests 768 --input 512 --output 256 --no-offline".split()
TOKEN = 1000
"""A word of the made-up tokenizer."""
ROWS, CONTEXT, DEPTH, PREFILL_TOKENS = 256, 2048, 2, 8192
LONG_MS = 6.0
"""Turns of the loop that are counted apart."""


class Costs(NamedTuple):
    """Milliseconds of a launch: with one row, of each row more, of a thousand tokens that rows attend to, and of a
    thousand prompt tokens. `beside`: prompt tokens that go with rows that decode."""

    launch: float
    row: float
    context: float
    prompt: float


COSTS = {
    "llama-1b": Costs(launch=0.95, row=0.005, context=0.011, prompt=4.5),
    "llama-8b": Costs(launch=5.3, row=0.012, context=0.045, prompt=25.2),
}


class PretendStep:
    """Implements `Step`: launches run one after the other, each for as long as its rows and tokens cost."""

    def __init__(self, model: ModelConfig, costs: Costs, faster: float) -> None:
        sizes = Sizes(CONTEXT, ROWS, PREFILL_TOKENS, num_pages=1 + ROWS * CONTEXT // PAGE_TOKENS)
        self.capacity = Capacity(
            sizes.num_pages, PAGE_TOKENS, ROWS, depth=DEPTH, max_batch_tokens=PREFILL_TOKENS,
            mixed_tokens=mixed_tokens(model, PREFILL_TOKENS), chunk_sizes=tuple(Ladder(sizes).offered()),
        )  # fmt: skip
        self._costs, self._faster = costs, faster
        self._lengths = [0] * ROWS
        self._free_at = 0.0

    def launch(self, batch: Batch) -> tuple[float, Batch]:
        costs, lengths = self._costs, self._lengths
        for slot in batch.decodes:
            lengths[slot] += 1
        for chunk in batch.chunks:
            lengths[chunk.slot] = chunk.start + chunk.count
        context = sum([lengths[slot] for slot in batch.decodes])
        ms = costs.launch + costs.row * len(batch.decodes) + costs.context * context / 1000
        if batch.chunks:
            prompt = costs.prompt * sum(chunk.count for chunk in batch.chunks) / 1000
            ms = max(costs.launch, prompt + ms - costs.launch)
        self._free_at = max(self._free_at, time.perf_counter()) + ms / 1e3 / self._faster
        return self._free_at, batch

    def collect(self, ticket: tuple[float, Batch]) -> Outcomes:
        done_at, batch = ticket
        time.sleep(max(0.0, done_at - time.perf_counter()))
        first = [RowOutcome(chunk.slot, (TOKEN,)) for chunk in batch.chunks if chunk.samples]
        return [*first, Decoded(batch.decodes, [TOKEN] * len(batch.decodes))]

    def prepare(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Turns:
    """Of the main thread's loop: a turn is what lies between two waits for sockets."""

    def __init__(self) -> None:
        self._computed_s = self._longest_ms = 0.0
        self._turns = self._long = 0
        self._begun: tuple[float, float] | None = None

    def watch(self, profile: cProfile.Profile | None) -> None:
        """From the first wait of the process on."""
        select = selectors.DefaultSelector.select

        def watched(selector: Any, timeout: float | None = None) -> Any:
            if self._begun is not None:
                self._count(*self._begun)
            if profile is not None:
                profile.disable()
            found = select(selector, timeout)
            self._begun = time.perf_counter(), time.thread_time()
            if profile is not None:
                profile.enable()
            return found

        selectors.DefaultSelector.select = watched  # type: ignore[method-assign]  # asyncio offers no way to time turns

    def _count(self, began: float, computed: float) -> None:
        ms = (time.perf_counter() - began) * 1e3
        self._turns += 1
        self._long += ms > LONG_MS
        self._longest_ms = max(self._longest_ms, ms)
        self._computed_s += time.thread_time() - computed

    def __str__(self) -> str:
        return (
            f"the loop computed {self._computed_s:.2f} s in {self._turns} turns, {self._long} of them longer than"
            f" {LONG_MS:g} ms, the longest {self._longest_ms:.1f} ms"
        )


def serve(shape: str, faster: float, profile_to: str | None) -> None:
    def open_step(checkpoint: Checkpoint, config: EngineConfig) -> PretendStep:
        return PretendStep(checkpoint.config, COSTS[shape], faster)

    Checkpoint.open_step = open_step  # type: ignore[assignment,method-assign]  # what a server opens
    turns, profile = Turns(), None if profile_to is None else cProfile.Profile()
    turns.watch(profile)
    atexit.register(lambda: print(turns, file=sys.stderr, flush=True))
    if profile is not None:
        atexit.register(profile.dump_stats, profile_to)
    with Subject(random_shape=shape).opened() as (path, load_format):
        app(
            ["serve", path, "--load-format", load_format, "--served-model-name", SERVED, "--port", "0",
             "--log-level", "warning", "--max-rows", str(ROWS), "--max-context", str(CONTEXT)]
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=COSTS, default="llama-1b")
    parser.add_argument("--faster", type=float, default=1.0, help="The card's speed, in H100s.")
    parser.add_argument("--profile", metavar="FILE")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked, load = parser.parse_known_args()
    if asked.serve:
        serve(asked.shape, asked.faster, asked.profile)
        return
    server = subprocess.Popen([sys.executable, *sys.argv, "--serve"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        bench = ["bench", "serve", "--random-shape", asked.shape, "--url", url, *(load or LOAD)]
        subprocess.run([sys.executable, "-c", MAIN, *bench], check=True)
    finally:
        server.terminate()
        print(server.stderr.read().strip().rpartition("\n")[2])


if __name__ == "__main__":
    main()
