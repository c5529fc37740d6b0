"""What crosses between the loop and the worker: frozen structs, and nothing else.

Loop to worker, through the inbox: `Generate`, `Cancel`, `Unpin`, `Look`, `Stop`. Worker to loop, one object a
step: `Report`; and `Opened` once before the first, `Stopped` once after the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .batch import Capacity, RowSampling, TokenLogprobs
from .errors import EngineClosed, EngineDied
from .events import FinishReason
from .layout import Layout


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """A request after the edge: token ids, everything resolved. `arrival` and `deadline` are of the engine's clock."""

    id: str
    prompt: tuple[int, ...]
    sampling: RowSampling
    """Of choice 0; the others differ in `choice` alone."""
    n: int = 1
    max_tokens: int
    priority: int = 0
    """Lower goes first."""
    user: str = ""
    arrival: float = 0.0
    deadline: float | None = None
    salt: bytes = b""
    use_prefix_cache: bool = True
    pin: bool = False
    """A warm-up: nothing is generated (`max_tokens` is 0); the prompt's pages stay until an `Unpin`."""


class Cancel(msgspec.Struct, frozen=True):
    """End a request, or one choice of it, without a word: the loop has sealed it already."""

    id: str
    choice: int | None = None


class Unpin(msgspec.Struct, frozen=True):
    """Let go of the pages that a warm-up pinned, if they still are."""

    id: str


class Look(msgspec.Struct, frozen=True):
    """Post a `Layout`."""


class Stop(msgspec.Struct, frozen=True):
    """Leave the loop and close the step."""


Command = Generate | Cancel | Unpin | Look | Stop


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """News of one choice. `finish_reason` is set once, with the last."""

    id: str
    choice: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    cached_tokens: int | None = None
    """Set with a choice's first output: how much of its prompt the prefix cache held."""
    finish_reason: FinishReason | None = None
    matched: int | None = None
    """The end id that was sampled."""
    error: str | None = None
    prefilled: int | None = None
    """Set where a chunk was computed that does not end the prompt: how much of it is done."""


class Advance(msgspec.Struct, frozen=True):
    """News of many choices at once: (id, choice) of each, and its new tokens, of which nothing else is to be told. A
    step's report has at most one, with one token each, and no choice stands in it and in an `Output`."""

    names: Sequence[tuple[str, int]]
    tokens: Sequence[tuple[int, ...]]


class Singles(dict[int, tuple[int, ...]]):
    """A token as a tuple, made once: answers keep those of their tokens, and that many new objects would call the
    garbage collector up all the time."""

    def __missing__(self, token: int) -> tuple[int, ...]:
        self[token] = single = (token,)
        return single


class SchedulerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the engine opened, and how full it is now."""

    running: int = 0
    waiting: int = 0
    free_rows: int = 0
    """Rows to spare once all that was received is seated; negative while some wait."""
    received_rows: int = 0
    """Rows received so far, cumulatively: what is on its way is what was sent less this."""
    received_cancels: int = 0
    """Likewise: of what a cancel has ended nothing is told after it."""
    pages_total: int = 0
    pages_used: int = 0
    pages_pinned: int = 0
    """Of those used: by warm-ups that are over."""
    prefix_queries: int = 0
    prefix_hits: int = 0
    """Tokens looked up, and tokens found."""
    preemptions: int = 0
    steps: int = 0


class Opened(msgspec.Struct, frozen=True):
    """The step is open."""

    capacity: Capacity


class Report(msgspec.Struct, frozen=True):
    """One step's news."""

    outputs: list[Output | Advance]
    stats: SchedulerStats


class Stopped(msgspec.Struct, frozen=True):
    """The worker has ended; `error` is set unless it was told to. Nothing follows."""

    error: BaseException | None = None

    @property
    def cause(self) -> Exception:
        """What a caller can be given: SystemExit and its like would end the caller's loop."""
        if self.error is None:
            return EngineClosed("the engine was closed")
        if isinstance(self.error, Exception):
            return self.error
        died = EngineDied(f"the worker ended: {type(self.error).__name__}: {self.error}")
        died.__cause__ = self.error
        return died


News = Opened | Report | Layout | Stopped
