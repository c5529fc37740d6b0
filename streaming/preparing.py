"""What the server does to a request before the engine sees it, on every route: instructions, then the host's `prepare`.

A client can neither read instructions nor change them: they stand before its conversation, which may hold no system
message of its own, and they are in nothing that is sent back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable

import msgspec

from ..runtime.errors import InvalidField, RequestError
from .principal import Principal
from .protocols.generate import Generate

Prepare = Callable[[Generate, Principal], Generate | Awaitable[Generate]]
"""Gives the request to run in place of the one that came, or raises `RequestError` to refuse it."""


async def prepared(generate: Generate, principal: Principal, prepare: Prepare | None) -> Generate:
    """Raises what `prepare` raises, and `RequestError` for a request that instructions do not allow."""
    if principal.instructions is not None:
        generate = instructed(generate, principal.instructions)
    if prepare is None:
        return generate
    given = prepare(generate, principal)
    return await given if isawaitable(given) else given


def instructed(generate: Generate, instructions: str) -> Generate:
    """The request with a system message of the server's before its own messages."""
    field, prompt = generate.spelled.get("prompt", "prompt"), generate.prompt
    messages = [message for message in prompt if isinstance(message, dict)]
    if isinstance(prompt, str) or not messages or len(messages) != len(prompt):
        raise InvalidField(field, "a conversation: the server instructs", prompt)
    if any(message.get("role") == "system" for message in messages):
        raise RequestError(f"{field}: no system message is taken; the server instructs", field=field)
    return msgspec.structs.replace(generate, prompt=[{"role": "system", "content": instructions}, *messages])
