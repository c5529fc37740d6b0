"""Names of full pages: a keyed hash chained over the tokens from the start of the sequence.

The chain begins with a salt, so requests of different tenants never share a page, and its key is drawn once per
process, so a name cannot be computed outside.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b


class PrefixHasher:
    """Keys of 128 bits (BLAKE2b, RFC 7693)."""

    def __init__(self, secret: bytes, page_size: int) -> None:
        self._secret = secret
        self._page_size = page_size

    def root(self, salt: bytes) -> bytes:
        return blake2b(salt, key=self._secret, digest_size=16, person=b"jitney-root").digest()

    def extend(self, keys: list[bytes], tokens: Sequence[int], length: int) -> None:
        """Grow `keys` (its first entry is a root) to cover every full page of tokens [0, length)."""
        size = self._page_size
        for page in range(len(keys) - 1, length // size):
            content = array("I", tokens[page * size : (page + 1) * size]).tobytes()
            keys.append(blake2b(keys[-1] + content, key=self._secret, digest_size=16).digest())
