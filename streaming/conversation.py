"""An answer as others see it: its response object, its text, and the conversation that a further one continues."""

from __future__ import annotations

from ..runtime.backend import Message, Tokenizer
from .entry import Entry
from .principal import Principal
from .protocols.errors import Refused
from .protocols.reasoning import ReasoningSplitter, splitter
from .protocols.responses import TERMINAL_ONLY, ResponseEvents
from .protocols.session import not_found
from .registry import Registry


def events_of(
    entry: Entry, tokenizer: Tokenizer, *, stream_id: str | None = None, after: int
) -> ResponseEvents:
    """The encoder of an answer for one reader."""
    assert entry.facts is not None, "an entry that was never opened"
    return ResponseEvents(entry.id, entry.facts, tokenizer, stream_id=stream_id, after=after)


def answer_splitter(entry: Entry, tokenizer: Tokenizer) -> ReasoningSplitter:
    """Raw completions have no reasoning, whatever they write."""
    if entry.response is None or not entry.is_chat:
        return ReasoningSplitter(None)
    return splitter(tokenizer, entry.response.request.prompt)


def shown(entry: Entry, tokenizer: Tokenizer) -> ResponseEvents:
    """An answer as far as it is now."""
    events = events_of(entry, tokenizer, after=TERMINAL_ONLY - 1)
    if entry.response is not None:
        events.begin(answer_splitter(entry, tokenizer))
        events.feed(entry.response.log.read(0))
    elif entry.is_over:
        events.feed([entry.stillborn()])
    return events


def conversation(
    registry: Registry, principal: Principal, response_id: str, tokenizer: Tokenizer
) -> tuple[Message, ...]:
    """What was said up to the end of an answer. Raises `Refused` where nothing can follow it."""
    try:
        entry = registry.find(principal, response_id)
        entry.check_single()
    except Refused:
        raise Refused(not_found(response_id)) from None
    response = entry.response
    if response is None or not response.done or not entry.is_chat:
        raise Refused(not_found(response_id))
    if response.log.last.finish_reason == "error":
        raise Refused(not_found(response_id))
    history = entry.history or ()
    if response.request.pin:
        return history
    return (*history, {"role": "assistant", "content": shown(entry, tokenizer).text})
