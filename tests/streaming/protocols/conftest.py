"""Hand-made events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from jitney.runtime.batch import TokenLogprobs
from jitney.runtime.events import Event, Times, Usage


class Story:
    """The log of one response, written by hand: seq counts by itself."""

    def __init__(self) -> None:
        self.seq = 0

    def _event(self, kind: Any, **fields: Any) -> Event:
        self.seq += 1
        return Event("resp_1", self.seq, kind, **fields)

    def delta(self, text: str, index: int = 0, **fields: Any) -> Event:
        return self._event("delta", text=text, index=index, token_ids=tuple(text.encode()), **fields)

    def scored(self, text: str, index: int = 0) -> Event:
        logprobs = tuple(TokenLogprobs(b, -0.5, ((b, -0.5), (7, float("-inf")))) for b in text.encode())
        return self.delta(text, index, logprobs=logprobs)

    def prompt(self, text: str, *, start: int = 0) -> Event:
        """The scores of a chunk: `text` is the prompt up to its end, `start` where it begins."""
        scored = [TokenLogprobs(b, -1.0, ((b, -1.0),)) for b in text.encode()[1:]]
        return self._event("prompt", prompt_logprobs=(None, *scored)[start:])

    def finish(self, reason: Any = "stop_token", text: str = "", index: int = 0) -> Event:
        return self._event("finish", text=text, index=index, finish_reason=reason)

    def done(self, reason: Any = "stop_token", error: str | None = None) -> Event:
        usage, times = Usage(5, 3, 2), Times(0.1, 0.2, 0.5)
        return self._event("done", finish_reason=reason, usage=usage, times=times, error=error)


@pytest.fixture
def story() -> Callable[[], Story]:
    return Story


@pytest.fixture
def frames() -> Callable[[bytes], list[Any]]:
    """The data of server-sent events; the end mark stays bytes."""

    def read(body: bytes) -> list[Any]:
        events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
        return [event if event == b"[DONE]" else msgspec.json.decode(event) for event in events]

    return read
