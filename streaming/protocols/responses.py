"""The events of one response of OpenAI's Responses API, in their order, for one reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...runtime.backend import Tokenizer
from ...runtime.events import Event, Progress, Usage
from .errors import failure
from .items import Delta, Kind, OutputItem, PlainDelta
from .logprobs import entries
from .reasoning import ReasoningSplitter

TERMINAL_ONLY = 2**62
"""As `after`: a reader who wants the last frame and no other."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a response object says of its request. `created_at` is in Unix seconds."""

    model: str
    created_at: float
    instructions: str | None = None
    metadata: dict[str, str] = {}
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    background: bool = False
    is_warm_up: bool = False


class ResponseEvents:
    """Encodes one response for one reader: `queued` if it waits, `begin`, then `feed` with the whole log from its
    first entry, in pieces as they come; what the reader has, up to number `after`, is left out.

    Sequence numbers follow the log's and nothing else, however its entries come and however deltas are merged, so a
    reader may come back at any of them. Queued is 0, created 1, in progress 2, the first item and its part 3 and 4,
    and a delta at log position s has s + `PRELUDE`. An item closes with three numbers of its own; where reasoning
    ends, those and the next item's two move all that follow.
    """

    PRELUDE = 4
    __slots__ = (
        "_after", "_delta", "_facts", "_frames", "_items", "_lane", "_matched", "_plain", "_reasoning_tokens", "_shift",
        "_splitter", "_state", "_tokenizer", "_undecided_tokens", "id", "is_done", "num_deltas", "num_merged",
        "reached",
    )  # fmt: skip

    def __init__(
        self,
        response_id: str,
        facts: Facts,
        tokenizer: Tokenizer,
        *,
        stream_id: str | None = None,
        after: int = -1,
    ) -> None:
        self.id = response_id
        self.num_deltas = self.num_merged = 0
        self.reached = -1
        """The highest number that anything has, left out or not."""
        self.is_done = False
        self._facts = facts
        self._tokenizer = tokenizer
        self._lane = msgspec.UNSET if stream_id is None else stream_id
        self._after = after
        self._splitter = ReasoningSplitter(None)
        self._items: list[OutputItem] = []
        self._shift = self.PRELUDE
        self._undecided_tokens = self._reasoning_tokens = 0
        self._matched: str | int | None = None
        self._state: dict[str, Any] = {"status": "queued"}
        self._frames: list[bytes] = []
        self._plain: PlainDelta | None = None
        self._delta: Delta | None = None

    def queued(self) -> list[bytes]:
        self._say("response.queued", 0, response=self.response())
        return self._drained()

    def begin(self, splitter: ReasoningSplitter) -> list[bytes]:
        """The engine has accepted it."""
        self._splitter = splitter
        self._state = {"status": "in_progress"}
        self._say("response.created", 1, response=self.response())
        self._say("response.in_progress", 2, response=self.response())
        return self._drained()

    def still(self, progress: Progress) -> bytes:
        """`response.in_progress` once more, with its number: nothing has happened since but progress."""
        self._state = {"status": "queued" if progress.queue_position else "in_progress"}
        return self._frame("response.in_progress", 2, response=self.response(), jitney=progress)

    def feed(self, events: Sequence[Event]) -> list[bytes]:
        """The frames of log entries. Neighbouring deltas become one, with the highest of their numbers."""
        for event in events:
            if event.kind == "done":
                self._finish(event)
            elif event.kind != "prompt":
                self._take(event)
        return self._drained()

    def plain(self) -> PlainDelta | None:
        """What makes the frames of entries that only add text, until others come. `catch_up` is to hear of them before
        anything else is fed. None where they cannot be made without feeding."""
        return None if self.reached < self._after else self._plain

    def catch_up(self, text: str, seq: int, num_entries: int, num_frames: int) -> None:
        """`plain` made so many frames of so many entries, with this text, up to number `seq` of the log."""
        self._items[-1].texts.append(text)
        self.reached = seq + self._shift
        self.num_deltas += num_frames
        self.num_merged += num_entries - num_frames

    def owes(self, events: Sequence[Event]) -> bool:
        """Whether entries of the log that are yet to be fed hold text that the client has not."""
        return any(event.text and event.seq + self._shift > self._after for event in events)

    def response(self) -> dict[str, Any]:
        """The response object as it is now."""
        facts = self._facts
        return {
            "id": self.id,
            "object": "response",
            "created_at": facts.created_at,
            "model": facts.model,
            "output": [item.whole() for item in self._items if item.status != "in_progress"],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "instructions": facts.instructions,
            "metadata": facts.metadata,
            "temperature": facts.temperature,
            "top_p": facts.top_p,
            "max_output_tokens": facts.max_output_tokens,
            "previous_response_id": facts.previous_response_id,
            "truncation": "disabled",
            "text": {"format": {"type": "text"}},
            "background": facts.background,
            "usage": None,
            **self._state,
        }

    @property
    def text(self) -> str:
        """The answer so far, without reasoning."""
        return "".join(item.text for item in self._items if item.kind == "message")

    # Entries of the log

    def _take(self, event: Event) -> None:
        number = event.seq + self._shift
        reasoning, text = self._splitter.push(event.text)
        self._count(event, reasoning, text)
        if event.kind == "finish":
            rest = self._splitter.flush()
            reasoning, text = reasoning + rest.reasoning, text + rest.text
        self._write("reasoning", number, reasoning, ())
        self._write("message", number, text, event.logprobs or ())
        if event.kind == "finish" and not self._facts.is_warm_up:
            self._end(event)

    def _end(self, event: Event) -> None:
        """The choice is over: its item closes, be it empty."""
        self._matched = event.matched
        number = event.seq + self._shift
        if not self._items:
            self._open("message", number)
        whole = event.finish_reason in ("stop_token", "stop_string")
        self._close(number, "completed" if whole else "incomplete")

    def _finish(self, event: Event) -> None:
        if self._items and self._items[-1].status == "in_progress":
            self._close(event.seq + self._shift - 1, "incomplete")
        name, self._state = self._ending(event)
        number = event.seq + self._shift + 3
        if self._after == TERMINAL_ONLY:
            self._after = number - 1
        self._say(name, number, response=self.response())
        self.is_done = True

    def _ending(self, event: Event) -> tuple[str, dict[str, Any]]:
        reason, refused = event.finish_reason, failure(event)
        facts: dict[str, Any] = {
            "usage": self._usage(event.usage or Usage()),
            "jitney": {
                "finish_reason": reason,
                "matched": self._matched,
                "times": event.times,
                "merged_deltas": self.num_merged,
            },
        }
        if self._facts.is_warm_up and reason == "length":
            return "response.completed", {"status": "completed", **facts}
        if reason == "length":
            facts["incomplete_details"] = {"reason": "max_output_tokens"}
            return "response.incomplete", {"status": "incomplete", **facts}
        if reason in ("cancelled", "deadline"):
            facts["incomplete_details"] = {"reason": reason}
            status = "cancelled" if reason == "cancelled" else "incomplete"
            return "response.incomplete", {"status": status, **facts}
        if refused is not None:
            facts["error"] = {"code": "server_error", "message": refused.message}
            return "response.failed", {"status": "failed", **facts}
        total_s = (event.times and event.times.total_s) or 0.0
        facts["completed_at"] = self._facts.created_at + total_s
        return "response.completed", {"status": "completed", **facts}

    def _count(self, event: Event, reasoning: str, text: str) -> None:
        """Which of its tokens are reasoning; where it ends within them, by the share of their text."""
        count, state = len(event.token_ids), self._splitter.state
        if state == "undecided":
            self._undecided_tokens += count
        elif state == "reasoning" or reasoning or (self._items and self._items[-1].kind == "reasoning"):
            spoken = round(count * len(text) / max(1, len(event.text)))
            self._reasoning_tokens += self._undecided_tokens + count - spoken
            self._undecided_tokens = 0

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    # Items

    def _write(self, kind: Kind, number: int, text: str, logprobs: Sequence[Any]) -> None:
        if not text and not (logprobs and self._splitter.state == "text" and kind == "message"):
            return
        if not self._items or self._items[-1].kind != kind:
            if self._items:
                self._close(number, "completed")
                number += 4
                self._shift += 6
            self._open(kind, number)
            number += 2 if len(self._items) > 1 else 0
        item = self._items[-1]
        scores = entries(logprobs, self._tokenizer) if logprobs else []
        item.texts.append(text)
        item.logprobs += scores
        self._add(item, number, text, scores)
        if kind == "message" and self._splitter.is_past and self._plain is None:
            self._plain = item.plain(self._shift)

    def _open(self, kind: Kind, number: int) -> None:
        """The first item has numbers 3 and 4, a further one `number` and the one after."""
        number = number if self._items else 3
        item = OutputItem(kind, self.id, len(self._items), self._lane)
        self._items.append(item)
        self._say("response.output_item.added", number, output_index=item.index, item=item.opened())
        self._say("response.content_part.added", number + 1, part=item.empty_part(), **item.place)

    def _close(self, number: int, status: str) -> None:
        item, self._plain = self._items[-1], None
        item.status = status
        self._say(f"{item.text_event}.done", number + 1, **item.spoken())
        self._say("response.content_part.done", number + 2, part=item.part(), **item.place)
        self._say("response.output_item.done", number + 3, output_index=item.index, item=item.whole())

    # Frames

    def _add(self, item: OutputItem, number: int, text: str, scores: list[dict[str, Any]]) -> None:
        self.reached = number
        if number <= self._after:
            return
        if self._delta is not None and self._delta.extend(number, text, scores):
            self.num_merged += 1
            return
        self._put_delta()
        self._delta = Delta(item, number, text, scores)

    def _put_delta(self) -> None:
        if self._delta is not None:
            self._frames.append(self._delta.frame())
            self._delta = None
            self.num_deltas += 1

    def _say(self, kind: str, number: int, **fields: Any) -> None:
        self.reached = number
        if number > self._after:
            self._put_delta()
            self._frames.append(self._frame(kind, number, **fields))

    def _frame(self, kind: str, number: int, **fields: Any) -> bytes:
        lane = {} if self._lane is msgspec.UNSET else {"stream_id": self._lane}
        return msgspec.json.encode({"type": kind, "sequence_number": number, **lane, **fields})

    def _drained(self) -> list[bytes]:
        self._put_delta()
        frames, self._frames = self._frames, []
        return frames
