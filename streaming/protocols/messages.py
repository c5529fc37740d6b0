"""Conversations as clients send them, brought to the engine's form: a role, and text or a list of text parts."""

from __future__ import annotations

from typing import Any

from ...runtime.backend import Message
from ...runtime.errors import InvalidField, RequestError
from .fields import HONOURED, Harmless, Refused, Table, every, honoured

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The roles that are taken, and what they are to a model's template."""

MAX_PARTS = 8192
"""Messages and text parts of one request, all told."""

MESSAGE: Table = {
    **every(HONOURED, "role", "content"),
    **every(Harmless(([],)), "tool_calls", "annotations"),
    "reasoning_content": Harmless(),
    **every(Refused(), "name", "refusal", "audio", "function_call", "tool_call_id"),
}
TEXT_PART = every(HONOURED, "type", "text")

ITEM: Table = {**every(HONOURED, "type", "role", "content"), **every(Harmless(), "id", "status", "phase")}
"""A message item of the Responses API, input or output: clients send our own output items back."""
REASONING_ITEM = every(Harmless(), "type", "id", "summary", "content", "encrypted_content", "status")
ITEM_PART: Table = {**TEXT_PART, "annotations": Harmless(([],)), "logprobs": Harmless()}


def chat_messages(messages: list[Any]) -> list[Message]:
    """Raises `RequestError` naming the message, by its index, and the field."""
    if not messages:
        raise InvalidField("messages", "at least one message", messages)
    _check_count("messages", messages)
    return [_message(message, f"messages[{i}]", MESSAGE, TEXT_PART) for i, message in enumerate(messages)]


def input_messages(given: str | list[Any]) -> list[Message]:
    """The `input` of the Responses API: a user's text, or a list of message items."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    _check_count("input", given)
    items = [_item(item, f"input[{i}]") for i, item in enumerate(given)]
    return [message for message in items if message is not None]


def _check_count(field: str, given: list[Any]) -> None:
    """Each is looked at on the event loop: so many take some 30 ms."""
    count = len(given)
    if count <= MAX_PARTS:
        contents = [message.get("content") for message in given if isinstance(message, dict)]
        count += sum(len(content) for content in contents if isinstance(content, list))
    if count > MAX_PARTS:
        raise InvalidField(field, f"up to {MAX_PARTS} messages and parts of messages", count)


def _item(item: Any, at: str) -> Message | None:
    """None for our own reasoning: templates show none of earlier turns."""
    if isinstance(item, dict) and item.get("type") == "reasoning":
        honoured(item, REASONING_ITEM, at=f"{at}.")
        return None
    if isinstance(item, dict) and item.get("type", "message") != "message":
        raise InvalidField(
            f"{at}.type", "'message' or 'reasoning'; other items are not supported", item["type"]
        )
    return _message(item, at, ITEM, ITEM_PART)


def _message(message: Any, at: str, table: Table, part_table: Table) -> Message:
    if not isinstance(message, dict):
        raise InvalidField(at, "an object", message)
    fields = honoured(message, table, at=f"{at}.")
    role = fields.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidField(f"{at}.role", f"one of {', '.join(ROLES)}", role)
    return {"role": ROLES[role], "content": _content(fields.get("content"), f"{at}.content", part_table)}


def _content(content: Any, at: str, table: Table) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidField(at, "text, or a list of text parts", content)
    texts = [_text(part, f"{at}[{i}]", table) for i, part in enumerate(content)]
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _text(part: Any, at: str, table: Table) -> str:
    if not isinstance(part, dict):
        raise InvalidField(at, "an object", part)
    expected = ("text",) if table is TEXT_PART else ("input_text", "output_text")
    if part.get("type") not in expected:
        raise InvalidField(
            f"{at}.type", f"{' or '.join(map(repr, expected))}; only text is taken", part.get("type")
        )
    text = honoured(part, table, at=f"{at}.").get("text")
    if not isinstance(text, str):
        raise RequestError(f"{at}.text: expected a string", field=f"{at}.text")
    return text
