"""Scripts: which reply a prompt gets, how fast, and what goes wrong. From a TOML file or from code.

name = "scripted"            # optional, as are all of these
context_length = 4096
max_rows = 32

[[reply]]
match = "sky"                # found in the last user message, or in a plain prompt; empty matches all
text = "Rayleigh scattering."
first_token_s = 0.2          # delays
token_s = 0.02
fail_after = 5               # tokens, then the fault
fault = "request"            # this request fails; "step": all that run, and the third in a row the engine
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ..backend import GenerationDefaults, Tokenizer
from ..batch import Batch, Capacity, Chunk, RowOutcome, Seat
from ..config import EngineConfig
from ..errors import CannotServe, ModelError
from ..params import MAX_CHOICES
from .byte_tokenizer import ASSISTANT, END, USER, ByteTokenizer
from .scripted_step import RowView, ScriptedStep

PAGE_SIZE = 16

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Reply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule of a script."""

    match: str = ""
    text: str = ""
    first_token_s: Seconds = 0.0
    token_s: Seconds = 0.0
    fail_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    fault: Literal["request", "step", "worker"] = "request"


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first reply that matches is given; without one the prompt is echoed."""

    name: str = "scripted"
    context_length: Positive = 4096
    max_rows: Positive = 32
    reasons: bool = False
    """What replies have between <think> and </think> at their beginning is reasoning."""
    reply: list[Reply] = []

    def find(self, prompt: str) -> Reply:
        echo = Reply(text=prompt)
        return next((reply for reply in self.reply if reply.match in prompt), echo)


class ScriptedBackend:
    """A `Backend` for `DynamicEngine`: `DynamicEngine(ScriptedBackend(Script(reply=[Reply(text="Hello")])))`."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.script = script or Script()
        self.name = self.script.name
        self.context_length = self.script.context_length
        self.tokenizer: Tokenizer = ByteTokenizer(reasons=self.script.reasons)
        self.vocab_size = self.tokenizer.vocab_size
        self.defaults = GenerationDefaults(end_token_ids=(END,))
        self._clock = clock
        self._sleep = sleep

    @classmethod
    def from_file(cls, path: str | Path) -> ScriptedBackend:
        """Raises `ModelError` naming the file and the field."""
        try:
            return cls(msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), Script))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ModelError(f"{path}: not a script: {error}") from None

    def open_step(self, config: EngineConfig) -> ScriptedStep:
        rows = min(config.max_rows or self.script.max_rows, self.script.max_rows)
        context = self._context(config)
        needed = _pages(context)
        num_pages = rows * needed if config.kv_cache_bytes is None else config.kv_cache_bytes // PAGE_SIZE
        if num_pages < needed:
            raise CannotServe(f"{num_pages} pages given, {needed} needed for one context of {context} tokens")
        return self._perform(Capacity(num_pages, PAGE_SIZE, rows))

    def open_padded(self, config: EngineConfig) -> ScriptedPadded:
        rows = max(MAX_CHOICES, min(config.max_rows or self.script.max_rows, self.script.max_rows))
        needed = _pages(self._context(config))
        return ScriptedPadded(self._perform(Capacity(rows * needed + 1, PAGE_SIZE, rows)), needed)

    def _context(self, config: EngineConfig) -> int:
        return min(self.context_length, config.max_context or self.context_length)

    def _perform(self, capacity: Capacity) -> ScriptedStep:
        performance = Performance(self.script, self._clock, self._sleep)
        return ScriptedStep(
            capacity, performance.next_token, before=performance.start, after=performance.rest
        )


class ScriptedPadded:
    """The same script as a plain static batch: implements `PaddedBatch`."""

    def __init__(self, step: ScriptedStep, pages_per_row: int) -> None:
        self.max_rows = step.capacity.max_rows
        self._step = step
        self._pages_per_row = pages_per_row

    def run(self, seats: Sequence[Seat]) -> Iterator[list[RowOutcome]]:
        count = self._pages_per_row
        seated = [
            msgspec.structs.replace(
                seat, slot=i, start=0, pages=tuple(range(1 + i * count, 1 + (i + 1) * count))
            )
            for i, seat in enumerate(seats)
        ]
        chunks = [Chunk(seat.slot, 0, len(seat.tokens), True) for seat in seated]
        batch = Batch(0, tuple(seated), (), tuple(chunks), ())
        while True:
            outcomes = self._step.perform(batch)
            self._step.pause()
            yield outcomes
            batch = Batch(batch.serial + 1, (), (), (), tuple(range(len(seated))))

    def close(self) -> None:
        self._step.close()


class Performance:
    """A script being played: which row gives which reply, and when its next token is due."""

    def __init__(self, script: Script, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._script = script
        self._clock = clock
        self._sleep = sleep
        self._playing: dict[int, tuple[tuple[int, ...], Reply, bytes]] = {}
        self._due: dict[int, float] = {}
        self._next_due: float | None = None

    def start(self, batch: Batch) -> None:
        for seat in batch.seats:
            reply = self._script.find(_question(seat.tokens[: seat.prompt_len]))
            self._playing[seat.slot] = (seat.tokens, reply, reply.text.encode())
            self._due[seat.slot] = self._clock() + reply.first_token_s
        self._next_due = None

    def next_token(self, row: RowView) -> int | str | None:
        slot, position = row.seat.slot, row.num_generated
        _, reply, text = self._playing[slot]
        now = self._clock()
        if now < self._due[slot]:
            self._next_due = min(self._due[slot], self._next_due or self._due[slot])
            return None
        if position == reply.fail_after:
            return self._fail(reply)
        self._due[slot] = now + reply.token_s
        self._next_due = now
        return text[position] if position < len(text) else END

    def rest(self) -> None:
        """Sleep until a token is due if none was, in short naps so that cancels are heard."""
        wait = (self._next_due or 0.0) - self._clock()
        if wait > 0:
            self._sleep(min(wait, 0.005))

    def _fail(self, reply: Reply) -> str:
        if reply.fault == "request":
            return "the script failed this request"
        if reply.fault == "step":
            raise RuntimeError("the script failed this step")
        raise SystemExit("the script ended the worker")


def _pages(context: int) -> int:
    """Pages that hold a context, and the step's own."""
    return -(-context // PAGE_SIZE) + 1


def _question(prompt: tuple[int, ...]) -> str:
    """The last user message of a conversation, or the whole of a plain prompt."""
    ids = list(prompt)
    if ids and ids[-1] == ASSISTANT:
        ids = ids[:-1]
        if USER in ids:
            ids = ids[len(ids) - ids[::-1].index(USER) :]
    return bytes(token for token in ids if token < END).decode(errors="replace")
