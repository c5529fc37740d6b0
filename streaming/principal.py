"""Who a request comes from: what the guard establishes, and what ownership, fairness and cache salts go by.

The guard puts one in every ASGI scope, at `scope["state"]["principal"]`; without a guard it is `ANONYMOUS`. Nothing a
client writes in a body can change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec


class Principal(msgspec.Struct, frozen=True):
    """`key` is the name of an API key, never the key; `user` is the end user that a ticket or a trusted key named.

    `instructions` is a system prompt that came with a ticket: the client can neither read nor change it.
    Two principals with the same key and user are one owner: each sees the other's responses.
    """

    key: str
    user: str = ""
    instructions: str | None = None

    @property
    def owner(self) -> tuple[str, str]:
        """Whose responses these are."""
        return (self.key, self.user)

    @property
    def share(self) -> str:
        """The name under which the queue shares the engine fairly: of up to 64 characters."""
        return _digest(self.key, self.user)

    def salt(self, asked: str, *, by_user: bool = False) -> str:
        """The salt of the prefix cache: per key; `asked` divides it further, and so does the user where told to."""
        return _digest(self.key, self.user if by_user else "", asked)


ANONYMOUS = Principal("")


def principal_of(scope: Mapping[str, Any]) -> Principal:
    """The principal of an ASGI scope."""
    principal = scope.get("state", {}).get("principal", ANONYMOUS)
    assert isinstance(principal, Principal)
    return principal


def _digest(*parts: str) -> str:
    """Injective over its parts, whatever they hold; empty where all of them are."""
    if not any(parts):
        return ""
    spelled = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (text.encode(errors="surrogatepass") for text in parts)
    )
    return blake2b(spelled, digest_size=16).hexdigest()
