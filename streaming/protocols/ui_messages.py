"""`UIMessage`s of Vercel's AI SDK, as `useChat` keeps them, brought to the engine's form."""

from __future__ import annotations

from typing import Any

from ...runtime.backend import Message
from ...runtime.errors import InvalidField, RequestError
from .fields import HONOURED, Harmless, Table, every, honoured

MAX_MESSAGES = 10_000

MESSAGE: Table = {**every(HONOURED, "role", "parts"), **every(Harmless(), "id", "metadata", "createdAt")}
TEXT: Table = {
    **every(HONOURED, "type", "text"),
    **every(Harmless(), "id", "state", "citations", "providerMetadata"),
}

SILENT_PARTS = ("step-start", "reasoning", "source-url", "source-document")
"""Parts of an earlier answer that say nothing to the model."""


def ui_messages(messages: list[Any], *, has_instructions: bool) -> list[Message]:
    """The conversation. Messages without text, such as an answer that was stopped before its first token, are left
    out. Raises `RequestError` naming the message, by its index, and the field.

    Where the server has instructions of its own, a system message of the client's is refused."""
    if not messages or len(messages) > MAX_MESSAGES:
        raise InvalidField("messages", f"1 to {MAX_MESSAGES} messages", messages)
    given = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    for i, message in enumerate(given):
        if has_instructions and message["role"] == "system":
            raise InvalidField(f"messages[{i}].role", "'user' or 'assistant'; the server instructs", "system")
    spoken = [message for message in given if message["content"]]
    if not spoken:
        raise InvalidField("messages", "at least one message with text", messages)
    return spoken


def _message(message: Any, at: str) -> Message:
    if not isinstance(message, dict):
        raise InvalidField(at, "an object", message)
    fields = honoured(message, MESSAGE, at=f"{at}.")
    role, parts = fields.get("role"), fields.get("parts")
    if role not in ("system", "user", "assistant"):
        raise InvalidField(f"{at}.role", "'system', 'user' or 'assistant'", role)
    if not isinstance(parts, list):
        raise InvalidField(f"{at}.parts", "a list of parts", parts)
    return {"role": role, "content": "".join(_text(part, f"{at}.parts[{i}]") for i, part in enumerate(parts))}


def _text(part: Any, at: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise InvalidField(at, "an object with a type", part)
    if kind in SILENT_PARTS or kind.startswith("data-"):
        return ""
    if kind != "text":
        raise InvalidField(f"{at}.type", "'text'; other parts are not supported", kind)
    text = honoured(part, TEXT, at=f"{at}.").get("text")
    if not isinstance(text, str):
        raise RequestError(f"{at}.text: expected a string", field=f"{at}.text")
    return text
