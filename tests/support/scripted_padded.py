"""A padded batch by script: the twin of the scripted step, for engines that run without pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from scripted import REPLIES

from jitney.runtime import EngineConfig
from jitney.runtime.batch import RowOutcome, Seat, TokenLogprobs
from jitney.runtime.errors import CannotServe, ModelError
from jitney.runtime.testing import Script, ScriptedBackend
from jitney.runtime.testing.byte_tokenizer import END


class ScriptedPadded:
    """Implements `PaddedBatch`: a row echoes its prompt, or gives its reply's text, a token a step."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.runs: list[int] = []
        self.num_closed_runs = 0
        self.is_closed = False
        self._script = Script(reply=REPLIES)

    def run(self, seats: Sequence[Seat]) -> Iterator[list[RowOutcome]]:
        assert not self.is_closed
        self.runs.append(len(seats))
        prompts = [bytes(token for token in seat.tokens if token < END).decode() for seat in seats]
        replies = [self._script.find(prompt) for prompt in prompts]
        step = 0
        try:
            while True:
                yield [self._outcome(seat, reply, step) for seat, reply in zip(seats, replies, strict=True)]
                step += 1
        finally:
            self.num_closed_runs += 1

    def close(self) -> None:
        self.is_closed = True

    def _outcome(self, seat: Seat, reply: Any, step: int) -> RowOutcome:
        if reply.fail_after == step:
            if reply.fault != "request":
                raise RuntimeError("the script failed this step")
            return RowOutcome(seat.slot, error="the script failed this request")
        text = reply.text.encode()
        token = text[step] if step < len(text) else END
        wanted = seat.sampling.prompt_logprobs is not None and not step
        scores = (None, *(TokenLogprobs(t, -0.5) for t in seat.tokens[1:])) if wanted else ()
        return RowOutcome(seat.slot, (token,), (TokenLogprobs(token, -0.25),), scores)


class PagelessBackend(ScriptedBackend):
    """Refuses a paged step; opens padded batches."""

    def __init__(self, max_rows: int = 4, context_length: int = 4096, error: Exception | None = None) -> None:
        super().__init__(Script(max_rows=max_rows, context_length=context_length))
        self.padded = ScriptedPadded(max_rows)
        self._error = error or CannotServe("no paged attention for this model")

    def open_step(self, config: EngineConfig) -> Any:
        raise self._error

    def open_padded(self, config: EngineConfig) -> ScriptedPadded:
        return self.padded


class BrokenBackend(PagelessBackend):
    """Has neither."""

    def open_padded(self, config: EngineConfig) -> ScriptedPadded:
        raise ModelError("weights.bin: expected 3 tensors, found none")
