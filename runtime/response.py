"""One accepted request on the loop: tokens become text, stop strings are found, events go into the log.

Touched by the engine's loop alone. The worker knows nothing of text: where a stop string ends a choice, this side
seals it and asks for the row to be cancelled; whatever the row still sends is dropped and counted.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from .backend import Tokenizer
from .choice import Choice
from .events import Event, FinishReason, Progress, Times, Usage
from .log import Log
from .messages import Generate, Output
from .observer import Gain
from .params import SamplingParams
from .shapes import SHAPES, Shape
from .text.pieces import Pieces


class Response:
    """A handle on one accepted request. Follow it with `events`, as often and from as many tasks as you like. `id` is
    the caller's; queue and worker know it as `request.id`. `first_token_s` is set with the first."""

    __slots__ = (
        "_cached_tokens", "_cancel", "_clock", "_error", "_forget", "_gaps", "_last_reason", "_num_pieces", "_open",
        "_pieces", "_position", "_prefilled", "_queued_s", "_spoke_at", "_told_gaps", "_told_tokens", "choices",
        "first_token_s", "id", "is_forgotten", "log", "params", "request", "when_forgotten",
    )  # fmt: skip

    def __init__(
        self,
        request: Generate,
        params: SamplingParams,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        cancel: Callable[[str], bool],
        position: Callable[[str], int] = lambda response_id: 0,
        forget: Callable[[str], bool] = lambda response_id: False,
        response_id: str | None = None,
    ) -> None:
        self.id = response_id or request.id
        self.request = request
        self.params = params
        self.log = Log(self.id)
        self.choices = [Choice(index, params, tokenizer) for index in range(request.n)]
        self._open = request.n
        self._clock = clock
        self._cancel = cancel
        self._position = position
        self._forget = forget
        self.when_forgotten: Callable[[], None] | None = None
        """Called when the engine no longer keeps it: set by whoever else holds on to it."""
        self.is_forgotten = False
        self._cached_tokens = self._prefilled = 0
        self._queued_s: float | None = None
        self.first_token_s: float | None = None
        self._spoke_at: float | None = None
        self._gaps = array("f")
        self._told_gaps = self._told_tokens = 0
        self._pieces: Pieces | None = None
        """While tokens that are found there need nothing but their text told."""
        self._num_pieces = 0
        self._last_reason: FinishReason = "cancelled"
        self._error: str | None = None

    @property
    def done(self) -> bool:
        return self.log.is_sealed

    @property
    def num_bytes(self) -> int:
        """What it holds in memory, roughly: the prompt and the log."""
        return 40 * len(self.request.prompt) + self.log.num_bytes

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def finish_reasons(self) -> list[FinishReason]:
        """Of the choices that have ended."""
        return [choice.finish_reason for choice in self.choices if choice.finish_reason is not None]

    def progress(self) -> Progress | None:
        """How far it is from its first token; None once that is out, or it is over."""
        if self.done or self.first_token_s is not None:
            return None
        return Progress(
            queue_position=self._position(self.request.id),
            prefill_done=self._prefilled,
            prefill_total=self.prompt_tokens,
        )

    def cancel(self) -> bool:
        """End it now. False if it was over already."""
        return self._cancel(self.id)

    def forget(self) -> bool:
        """Have the engine keep it no longer. False if it is not over, or not kept any more."""
        return self._forget(self.id)

    async def events(self, after: int = 0) -> AsyncGenerator[Event]:
        """Events with seq > `after`, then live ones, to the `done` event. Leaving early does not cancel."""
        shape = self.shape(after)
        async with aclosing(self.log.follow(after)) as events:
            async for event in events:
                for shown in shape(event):
                    yield shown

    def shape(self, after: int = 0) -> Shape:
        """How a reader that starts behind `after` sees events: deltas, cumulative or final, as the request asked."""
        return SHAPES[self.params.output](self.log.read(0)[: max(0, after)])

    def dispatched(self) -> None:
        """The request left the queue."""
        self._queued_s = self._clock() - self.request.arrival

    def take(self, output: Output, now: float) -> bool:
        """Take in a worker's output. True if the choice's row should now be cancelled: a stop string ended it."""
        choice = self.choices[output.choice]
        if choice.finish_reason is not None or self.log.is_sealed:
            self.log.num_discarded += 1
            return False
        if output.cached_tokens is not None and output.choice == 0:
            self._cached_tokens = output.cached_tokens
        if output.prompt_logprobs:
            self._append("prompt", prompt_logprobs=output.prompt_logprobs)
        self._prefilled = output.prefilled or self._prefilled
        if output.tokens:
            self._time(output.choice, now)
        choice.take(output)
        self._error = self._error or output.error
        return self._tell(choice) and output.finish_reason is None

    def advance(self, index: int, tokens: tuple[int, ...], now: float) -> bool:
        """Take in tokens of a choice of which nothing else is to be told. True as from `take`."""
        if self._speak(tokens, now):
            return False
        choice = self.choices[index]
        if choice.finish_reason is not None:
            self.log.num_discarded += 1
            return False
        self._time(choice.index, now)
        choice.advance(tokens)
        return self._tell(choice)

    def _speak(self, tokens: tuple[int, ...], now: float) -> bool:
        """Take in tokens that only add to the text of the one choice. False: it is not as simple as that."""
        table = self._pieces
        pieces = None if table is None else table[tokens]
        if pieces is None or self._spoke_at is None:
            return False
        self._gaps.append(now - self._spoke_at)
        self._spoke_at = now
        self._num_pieces += len(pieces)
        self.log.extend(pieces)
        return True

    def _tell(self, choice: Choice) -> bool:
        """The log, of what is new of a choice, once it is enough for a delta. True if it is over."""
        if choice.finish_reason is not None:
            self._finish(choice)
            return True
        if choice.num_new >= self.params.stream_interval:
            self.log.append(Event(self.id, self.log.last_seq + 1, "delta", *choice.collect()))
        if self.request.n == self.params.stream_interval == 1:
            self._pieces = choice.pieces
        return False

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """Finish what is still open with `reason`, and seal the log."""
        self._error = self._error or error
        for choice in self.choices:
            if choice.finish_reason is None:
                choice.finish(reason)
                choice.finish_reason, choice.matched = reason, None
                self._finish(choice)

    def break_off(self, error: str) -> None:
        """End it with an error after its text machinery has failed: what that held back is lost."""
        for choice in self.choices:
            choice.put_away()
        self.end("error", error)

    @property
    def num_generated(self) -> int:
        """Tokens of all choices."""
        return self._num_pieces + sum([choice.num_tokens for choice in self.choices])

    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.num_generated, self._cached_tokens)

    def gain(self) -> Gain:
        """What has come since the last call."""
        told, gaps = self._told_tokens, self._gaps[self._told_gaps :]
        self._told_tokens, self._told_gaps = self.num_generated, len(self._gaps)
        if self.done:
            self._gaps = array("f")
        return Gain(self, self._told_tokens - told, gaps, is_first=not told)

    def _finish(self, choice: Choice) -> None:
        self._append("finish", *choice.collect(), finish_reason=choice.finish_reason, matched=choice.matched)
        choice.put_away()
        self._pieces = None
        self._last_reason = choice.finish_reason or self._last_reason
        self._open -= 1
        if not self._open:
            total_s = self._clock() - self.request.arrival
            times = Times(self._queued_s, self.first_token_s, total_s, *_percentiles(self._gaps))
            self._append(
                "done", finish_reason=self._last_reason, usage=self.usage(), times=times, error=self._error
            )

    def _time(self, choice: int, now: float) -> None:
        """Tokens of a choice are there. The gaps that are kept are those of the first."""
        if self.first_token_s is None:
            self.first_token_s = now - self.request.arrival
        if not choice:
            if self._spoke_at is not None:
                self._gaps.append(now - self._spoke_at)
            self._spoke_at = now

    def _append(self, kind: Any, *fields: Any, **more: Any) -> None:
        self.log.append(Event(self.id, self.log.last_seq + 1, kind, *fields, **more))


def _percentiles(gaps: array[float]) -> tuple[float | None, float | None]:
    """The median and the 99th percentile, by the nearest rank."""
    if not gaps:
        return None, None
    ranked = sorted(gaps)
    return ranked[(len(ranked) - 1) // 2], ranked[-(-99 * len(ranked) // 100) - 1]
