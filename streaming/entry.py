"""One answer in the registry, from the moment that a route speaks of it until the engine keeps it no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import time

from ..runtime.backend import Message
from ..runtime.events import Event, Progress
from ..runtime.response import Response
from .principal import Principal
from .protocols.delivery import OnDisconnect
from .protocols.errors import Refusal, Refused, invalid
from .protocols.responses import Facts


class Entry:
    """One answer. `responses` are the engine's, one for each prompt; none until it has begun.

    `facts` is what its response object says of the request; `history` is the conversation up to it, unless given the
    messages of the request. `is_chat`: it answers a conversation, and not a plain prompt.
    """

    def __init__(
        self,
        entry_id: str,
        principal: Principal,
        on_disconnect: OnDisconnect,
        *,
        chat_id: str | None = None,
        facts: Facts | None = None,
        history: Sequence[Message] | None = None,
    ) -> None:
        self.id = entry_id
        self.principal = principal
        self.on_disconnect = on_disconnect
        self.chat_id = chat_id
        self.facts = facts
        self.history = None if history is None else tuple(history)
        self.is_chat = False
        self.responses: list[Response] = []
        self.refused: Refusal | None = None
        self.created_at = time()
        self.is_cancelled = self.is_late = self.is_beginning = False
        self.num_readers = 0
        self.timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()

    @property
    def response(self) -> Response | None:
        """The engine's response, of the first prompt."""
        return self.responses[0] if self.responses else None

    @property
    def has_begun(self) -> bool:
        return bool(self.responses)

    @property
    def is_over(self) -> bool:
        """Refused, cancelled before it began, or all of it sealed."""
        if not self.responses:
            return self._settled.is_set()
        return all(response.done for response in self.responses)

    @property
    def has_failed(self) -> bool:
        """Whether a fault has ended it; a cancel and a deadline are none."""
        return any(
            response.done and response.log.last.finish_reason == "error" for response in self.responses
        )

    def progress(self) -> Progress | None:
        """How far it is from its first token; None once that is out, or before it has begun."""
        return self.response.progress() if self.response is not None else None

    async def begun(self) -> Response | None:
        """Waits until the engine has accepted it; None if it was cancelled before. Raises `Refused`."""
        await self._settled.wait()
        if self.refused is not None:
            raise Refused(self.refused)
        return self.response

    def stillborn(self) -> Event:
        """The one event of an answer that was cancelled, or late, before the engine had it."""
        return Event(self.id, 1, "done", finish_reason="deadline" if self.is_late else "cancelled")

    @property
    def is_settled(self) -> bool:
        """Whether it has begun, or never will."""
        return self._settled.is_set()

    def check_single(self) -> None:
        """Raises `Refused` for several prompts or choices: they cannot be shown as one response."""
        if len(self.responses) > 1 or any(response.request.n > 1 for response in self.responses):
            message = f"{self.id!r} has several answers; only one can be followed as a response"
            raise Refused(invalid(message, code="several_answers", param="response_id"))

    async def settled(self) -> None:
        """Waits until it `is_settled`."""
        await self._settled.wait()

    async def over(self) -> None:
        """Waits until it `is_over`."""
        await self._settled.wait()
        for response in self.responses:
            await response.log.wait_sealed()

    def settle(self, responses: Sequence[Response] = (), refused: Refusal | None = None) -> None:
        """It has begun, or never will."""
        self.responses, self.refused, self.is_beginning = list(responses), refused, False
        self._settled.set()

    def cancel(self) -> None:
        """End it now, wherever it is."""
        self.is_cancelled = self.is_cancelled or not self.is_over
        for response in self.responses:
            response.cancel()
        if not self.responses and not self.is_beginning:
            self._settled.set()
