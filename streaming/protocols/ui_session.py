"""One socket of the AI SDK's `WebSocketChatTransport`, as a machine that takes frames and gives actions.

The caller performs the actions in their order. A `Send` is submitted under its chat's id, a `Resume` looks up what
that chat has; each then gets its frames from `chunks` and is `over` when the last of them is sent, and an `Abort`
cancels the answer that its request follows. Requests of one socket are independent of each other.

A frame that is not of the protocol cannot be answered, since no request of the client's would hear it: it closes the
socket with 1008, as the SDK's own servers do. A request with something wrong in it gets an `error` frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ...runtime.errors import InvalidField, QueueFull, RequestError
from .delivery import FINISH, OnDisconnect, delivery
from .fields import HONOURED, Harmless, Refused, Table, check_model, every, honoured, parse, typed
from .generate import SAMPLING, Envelope, Generate, sampling
from .ui_chunks import UIChunks, plain_frame
from .ui_messages import ui_messages

MAX_OPEN = 64
"""Requests that one socket may have open."""
MAX_ID_CHARS = 256

BODY: Table = {
    **SAMPLING,
    **every(HONOURED, "model", "max_tokens", "priority", "deadline_ms", "cache_salt", "user"),
    **every(HONOURED, "chat_template_kwargs", "jitney"),
    "metadata": Harmless(),
}
"""What an application may put in the transport's `body`, or in `sendMessage(…, { body })`."""

DELIVERY = every(HONOURED, "on_disconnect", "detach_ttl_s")
"""Of the fields in `jitney`, those that mean something on this socket."""

SEND: Table = {
    **every(HONOURED, "type", "requestId", "id", "trigger", "messages", "body"),
    **every(Harmless(), "messageId", "headers", "metadata"),
}
RESUME: Table = {
    **every(HONOURED, "type", "requestId", "id"),
    "lastSequence": Refused("leave it out: a resume replays the whole answer"),
    **every(Harmless(), "headers", "body", "metadata"),
}


class _Body(Envelope, kw_only=True):
    chat_template_kwargs: dict[str, Any] | None = None


class Request:
    """A `send` or a `resume`, until its last frame."""

    def __init__(self, chat_id: str, chunks: UIChunks) -> None:
        self.chat_id = chat_id
        self.chunks = chunks
        self.is_aborted = False

    @property
    def id(self) -> str:
        return self.chunks.request_id

    def active(self) -> bytes:
        """The chat has an answer, which follows."""
        return plain_frame("start", self.id)

    def no_active(self) -> bytes:
        return plain_frame("no-active", self.id)

    def refused(self, message: str) -> bytes:
        return plain_frame("error", self.id, errorText=message)


class Send(msgspec.Struct, frozen=True):
    """Submit this, unless the chat has a live answer already."""

    request: Request
    generate: Generate
    on_disconnect: OnDisconnect


class Resume(msgspec.Struct, frozen=True):
    """Replay what the chat has from its first event, and follow it; or say `no-active`."""

    request: Request


class Abort(msgspec.Struct, frozen=True):
    """Cancel the answer that this request follows, and send nothing more for it."""

    request: Request


class Close(msgspec.Struct, frozen=True):
    code: int
    reason: str


Action = bytes | Send | Resume | Abort | Close


class UISession:
    """`instructs` says whether the server has a system prompt of its own for this client."""

    def __init__(self, served_model: str, *, instructs: bool) -> None:
        self._served_model = served_model
        self._instructs = instructs
        self._open: dict[str, Request] = {}

    def receive(self, frame: bytes | str) -> list[Action]:
        """A frame from the client. Never raises: what is wrong with it is among the actions."""
        try:
            body = parse(frame, called="frame")
            kind, request_id = body.get("type"), _id(body, "requestId")
            if kind == "abort":
                return self._abort(request_id)
            if not isinstance(kind, str) or kind not in _HANDLERS:
                raise InvalidField("type", "'send', 'resume' or 'abort'", kind)
            if request_id in self._open:
                raise InvalidField("requestId", "one that is not in use", request_id)
            _id(body, "id")
        except RequestError as exc:
            return [Close(1008, str(exc)[:120])]
        try:
            if len(self._open) >= MAX_OPEN:
                raise QueueFull(f"this connection has {MAX_OPEN} requests open; wait for some to end")
            return [_HANDLERS[kind](self, body)]
        except (RequestError, QueueFull) as exc:
            return [plain_frame("error", request_id, errorText=str(exc))]

    def over(self, request: Request) -> None:
        """The last frame of a request is sent."""
        self._open.pop(request.id, None)

    def _send(self, frame: dict[str, Any]) -> Action:
        honoured(frame, SEND)
        trigger, messages, body = frame.get("trigger"), frame.get("messages"), frame.get("body")
        if trigger not in ("submit-message", "regenerate-message"):
            raise InvalidField("trigger", "'submit-message' or 'regenerate-message'", trigger)
        if not isinstance(messages, list):
            raise InvalidField("messages", "a list of messages", messages)
        if not isinstance(body, dict | None):
            raise InvalidField("body", "an object", body)
        conversation = ui_messages(messages, has_instructions=self._instructs)
        fields = honoured(body or {}, BODY, at="body.")
        policy = _policy(fields.pop("jitney", None))
        envelope = typed({**fields, "stream": True}, _Body, at="body.")
        check_model(envelope.model, self._served_model)
        params = sampling(fields, {"max_tokens": "max_tokens"})
        options = envelope.chat_template_kwargs
        generate = envelope.generate(conversation, params, {"prompt": "messages"}, options)
        return Send(self._opened(frame), generate, policy)

    def _resume(self, frame: dict[str, Any]) -> Action:
        honoured(frame, RESUME)
        return Resume(self._opened(frame))

    def _abort(self, request_id: str) -> list[Action]:
        """One that is over, or was never here, needs no answer: the client has forgotten it."""
        request = self._open.get(request_id)
        if request is None or request.is_aborted:
            return []
        request.is_aborted = True
        return [Abort(request)]

    def _opened(self, frame: dict[str, Any]) -> Request:
        request = Request(frame["id"], UIChunks(frame["requestId"], model=self._served_model))
        self._open[request.id] = request
        return request


_HANDLERS: dict[str, Callable[[UISession, dict[str, Any]], Action]] = {
    "send": UISession._send,
    "resume": UISession._resume,
}


def _policy(given: Any) -> OnDisconnect:
    """What becomes of the answer when nobody reads it: by default it is finished and kept."""
    if not isinstance(given, dict | None):
        raise InvalidField("body.jitney", "an object", given)
    wanted = delivery(honoured(given or {}, DELIVERY, at="body.jitney."), at="body.jitney")
    return wanted.policy(FINISH)


def _id(frame: dict[str, Any], name: str) -> str:
    value = frame.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_CHARS:
        raise InvalidField(name, f"a string of 1 to {MAX_ID_CHARS} characters", value)
    return value
