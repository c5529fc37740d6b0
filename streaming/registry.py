"""Every answer that a client may follow, come back to, cancel or delete: one registry, which outlives all sockets.

Who may call what. A route opens an entry with `open` and lets it `begin`, reads it within `reading`, and need not look
after it any further: what becomes of an answer that nobody reads is decided here, by its `on_disconnect`. Any
route may `find`, `cancel` and `delete` an answer of the same owner, whichever route began it; another owner's is not
there. `latest` is the newest answer of a chat. All of it belongs to the engine's loop.

An entry lives as long as the engine keeps its response: until it is over, and then for `keep_finished_s`, within
`keep_finished_bytes` for all. Who comes later is told that it is gone, as long as its id is remembered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from ..runtime.backend import Message
from ..runtime.errors import EngineClosed, QueueFull
from ..runtime.intake import Prompt
from ..runtime.response import Response
from .entry import Entry
from .principal import Principal
from .protocols.errors import STOPPING, Refusal, Refused, invalid, refusal
from .protocols.generate import Generate
from .protocols.responses import Facts

MAX_DETACHED = 128
"""Unread answers of one owner that go on, more than the turns of a socket, so that one that drops loses none; one more
is cancelled when its reader leaves."""
MAX_REMEMBERED = 10_000
"""Ids of answers that are no longer kept."""

logger = logging.getLogger("jitney.streaming")

Submit = Callable[[Generate, Principal, str], Awaitable[Response]]


class Registry:
    """`submit` hands a request to the engine under an id; `model` is the name that answers are served under."""

    def __init__(self, submit: Submit, model: Callable[[], str], *, max_detached: int = MAX_DETACHED) -> None:
        self._submit = submit
        self._model = model
        self._max_detached = max_detached
        self._entries: dict[str, Entry] = {}
        self._chats: dict[tuple[str, str, str], str] = {}
        self._detached: dict[tuple[str, str], set[str]] = {}
        self._gone: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._admitted: set[str] | None = None

    def open(self, entry: Entry) -> Entry:
        """Take in an entry that has not begun. Its id must be new."""
        assert entry.id not in self._entries
        entry.facts = entry.facts or Facts(model=self._model(), created_at=entry.created_at)
        self._entries[entry.id] = entry
        if entry.chat_id is not None:
            self._chats[*entry.principal.owner, entry.chat_id] = entry.id
        return entry

    async def begin(self, entry: Entry, generates: Sequence[Generate]) -> None:
        """Submit an open entry's requests. If one is refused the others are cancelled, the entry is dropped, its
        readers are told, and what the engine raised is raised."""
        responses: list[Response] = []
        entry.is_beginning = True
        messages = _messages(generates[0].prompt)
        entry.is_chat = bool(messages)
        if entry.history is None:
            entry.history = messages
        try:
            if entry.id not in (self._admitted or ()):
                self.check_open()
            for number, generate in enumerate(generates):
                name = entry.id if len(generates) == 1 else f"{entry.id}-{number}"
                responses.append(await self._submit(generate, entry.principal, name))
        except BaseException as exc:
            for response in responses:
                response.cancel()
            self.refuse(entry, refusal(exc) if isinstance(exc, Exception) else STOPPING)
            raise
        entry.settle(responses)
        responses[-1].when_forgotten = lambda: self._expire(entry)  # the first may be forgotten by now
        if responses[-1].is_forgotten:  # it was late, and kept for no time at all
            self._expire(entry)
        if entry.is_cancelled:  # while it was being tokenised
            entry.cancel()

    @property
    def is_closing(self) -> bool:
        return self._admitted is not None

    def check_open(self) -> None:
        """Raises `EngineClosed` once nothing new is taken in."""
        if self.is_closing:
            raise EngineClosed("the engine is draining")

    def shut(self) -> None:
        """Take in nothing new, nor what is open and has not begun."""
        self._admitted = self._admitted or set()

    async def close(self) -> None:
        """Take in nothing new, and wait until all that is open has begun, or never will."""
        waiting = [entry for entry in self._entries.values() if not entry.is_settled]
        self._admitted = {entry.id for entry in waiting}
        for entry in waiting:
            await entry.settled()

    def refuse(self, entry: Entry, why: Refusal) -> None:
        """It will not begin."""
        entry.settle(refused=why)
        self._drop(entry)

    def find(self, principal: Principal, entry_id: str) -> Entry:
        """Raises `Refused`: 404 for what never was, or is another's; 409 for what is no longer kept."""
        entry = self._entries.get(entry_id)
        if entry is not None and entry.principal.owner == principal.owner:
            return entry
        if self._gone.get(entry_id) == principal.owner:
            message = f"{entry_id!r} is no longer kept"
            raise Refused(invalid(message, code="resume_window_expired", param="response_id", status=409))
        message = f"no response {entry_id[:80]!r}"
        raise Refused(invalid(message, code="response_not_found", param="response_id", status=404))

    def latest(self, principal: Principal, chat_id: str) -> Entry | None:
        """The newest answer of a chat, under way (`not is_over`) or still kept."""
        entry_id = self._chats.get((*principal.owner, chat_id))
        return None if entry_id is None else self._entries[entry_id]

    def cancel(self, principal: Principal, entry_id: str) -> Entry:
        """Raises as `find` does. One that is over stays as it is."""
        entry = self.find(principal, entry_id)
        self._cancel(entry)
        return entry

    def expire(self, entry: Entry) -> None:
        """Its deadline has passed before it began."""
        entry.is_late = True
        self._cancel(entry)

    def cancel_all(self) -> None:
        """Whoever's they are."""
        for entry in list(self._entries.values()):
            self._cancel(entry)

    def delete(self, principal: Principal, entry_id: str) -> None:
        """Cancel and forget. Raises as `find` does."""
        entry = self.cancel(principal, entry_id)
        self._drop(entry)
        for response in entry.responses:
            response.forget()

    def check_room(self, principal: Principal) -> None:
        """Raises `QueueFull` where no further unread answer of the owner may go on."""
        if len(self._unread(principal.owner)) >= self._max_detached:
            raise QueueFull(f"{self._max_detached} unread answers go on, the most that may")

    @contextmanager
    def reading(self, entry: Entry) -> Iterator[None]:
        """Around the time in which a client is there to read the answer."""
        entry.num_readers += 1
        self._come_back(entry)
        try:
            yield
        finally:
            entry.num_readers -= 1
            if not entry.num_readers and not entry.is_over:
                self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        mode, unread = entry.on_disconnect.mode, self._unread(entry.principal.owner)
        if mode != "cancel" and len(unread) >= self._max_detached:
            logger.info("%s is cancelled: %d unread answers of its owner go on", entry.id, len(unread))
            mode = "cancel"
        if mode == "cancel":
            self._cancel(entry)
            return
        self._detached[entry.principal.owner] = unread | {entry.id}
        if mode == "detach":
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_later(entry.on_disconnect.detach_s, self._cancel, entry)

    def _come_back(self, entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        unread = self._detached.get(entry.principal.owner)
        if unread is not None:
            unread.discard(entry.id)
            if not unread:
                del self._detached[entry.principal.owner]

    def _cancel(self, entry: Entry) -> None:
        entry.cancel()
        self._come_back(entry)
        if not entry.has_begun and not entry.is_beginning:
            self._drop(entry)

    def _unread(self, owner: tuple[str, str]) -> set[str]:
        """Those that go on."""
        left = (self._entries.get(entry_id) for entry_id in self._detached.get(owner, ()))
        return {entry.id for entry in left if entry is not None and not entry.is_over}

    def _expire(self, entry: Entry) -> None:
        """The engine keeps it no longer."""
        if self._drop(entry):
            self._gone[entry.id] = entry.principal.owner
            if len(self._gone) > MAX_REMEMBERED:
                self._gone.popitem(last=False)

    def _drop(self, entry: Entry) -> bool:
        if self._entries.pop(entry.id, None) is None:
            return False
        self._come_back(entry)
        if entry.chat_id is not None and self._chats.get((*entry.principal.owner, entry.chat_id)) == entry.id:
            del self._chats[*entry.principal.owner, entry.chat_id]
        return True


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    messages = tuple(message for message in prompt if isinstance(message, dict))
    return messages if len(messages) == len(prompt) else ()
