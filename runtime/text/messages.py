"""Chat messages as users send them, checked and made plain before a template sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import InvalidField, RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
"""A closed set: templates build control tokens from roles."""
TEXT_PARTS = ("text", "input_text", "output_text")
MAX_MESSAGES = 4096
MAX_DEPTH = 32
_RESERVED = ("messages", "add_generation_prompt", "tools", "documents")


def plain_messages(messages: Sequence[dict[str, Any]], guard: Callable[[str], str]) -> list[dict[str, Any]]:
    """The messages with text parts joined and `guard` applied to every string but the roles.

    Raises `InvalidField` naming the message and the field.
    """
    if not isinstance(messages, (list, tuple)) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidField("messages", f"a list of 1 to {MAX_MESSAGES} messages", _brief(messages))
    return [_plain_message(f"messages[{index}]", message, guard) for index, message in enumerate(messages)]


def checked_options(options: dict[str, Any] | None, reserved: Sequence[str]) -> dict[str, Any]:
    """Template options: scalars under names that are not the template's own. Raises `InvalidField`."""
    for name, value in (options or {}).items():
        if name in _RESERVED or name in reserved or not isinstance(name, str) or not name.isidentifier():
            raise InvalidField("template_options", "names that the template does not own", name)
        if value is not None and not isinstance(value, (str, int, float, bool)):
            raise InvalidField(f"template_options.{name}", "text, a number, true, false or null", value)
    return dict(options or {})


def _plain_message(field: str, message: Any, guard: Callable[[str], str]) -> dict[str, Any]:
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise InvalidField(field, "an object with role and content", message)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidField(f"{field}.role", f"one of {', '.join(ROLES)}", role)
    if message.get("content") is None and role != "assistant":
        raise InvalidField(f"{field}.content", "text or a list of text parts", None)
    return {key: _plain_field(f"{field}.{key}", key, value, guard) for key, value in message.items()}


def _plain_field(field: str, key: str, value: Any, guard: Callable[[str], str]) -> Any:
    if key == "role" or value is None:
        return value
    return guard(_joined(field, value)) if key == "content" else _plain(field, value, guard, MAX_DEPTH)


def _joined(field: str, content: Any) -> str:
    """Parts follow one another with nothing between: the client's text, and no more."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidField(field, "text or a list of text parts", content)
    return "".join([_part_text(f"{field}[{index}]", part) for index, part in enumerate(content)])


def _part_text(field: str, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
        kind = part.get("type") if isinstance(part, dict) else part
        raise InvalidField(f"{field}.type", f"one of {', '.join(TEXT_PARTS)}", kind)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidField(f"{field}.text", "text", text)
    return text


def _plain(field: str, value: Any, guard: Callable[[str], str], depth: int) -> Any:
    if not depth:
        raise RequestError(f"{field}: nested deeper than {MAX_DEPTH}", field=field)
    if isinstance(value, str):
        return guard(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list):
        return [_plain(f"{field}[{n}]", item, guard, depth - 1) for n, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {guard(key): _plain(f"{field}.{key}", item, guard, depth - 1) for key, item in value.items()}
    raise InvalidField(field, "JSON", value)


def _brief(messages: Any) -> Any:
    return f"{len(messages)} messages" if isinstance(messages, (list, tuple)) else messages
