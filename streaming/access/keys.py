"""API keys: what each may use, and the ring that finds one by its secret and reads its file again when it changes.

Secrets are kept as SHA-256 digests: they are drawn at random, so nothing slower would add to their safety. A lookup
compares with every key on the ring and takes the same time wherever the match stands.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ...runtime.checks import check_fields, expecting, integer, is_number
from ...runtime.errors import InvalidField, JitneyError

RELOAD_S = 0.5
"""How often, at most, the file is looked at."""

MAX_SECRET_CHARS = 512

logger = logging.getLogger("jitney.streaming")


_POSITIVE = expecting("a positive number", lambda value: is_number(value) and value > 0)


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key and its limits; None is no limit. Raises `InvalidField`."""

    name: str
    """What logs and metrics call it: 1 to 64 letters, digits, `_`, `-` or `.`."""
    sha256: str = ""
    """Of the secret, in hexadecimal digits."""
    concurrency: Annotated[int | None, _POSITIVE] = None
    """Answers that may be open at a time."""
    tokens_per_minute: Annotated[int | None, _POSITIVE] = None
    """Prompt and generated tokens."""
    connections: Annotated[int | None, _POSITIVE] = None
    """Sockets that may be open at a time."""
    highest_priority: Annotated[int, integer(-100, 100)] = -100
    """The lowest number that `priority` may be; lower goes first."""
    longest_deadline_s: Annotated[float | None, _POSITIVE] = None
    """The longest that an answer may take, and how long it may take if the request does not say."""
    trusted: bool = False
    """Whether requests may name the end user that they come from."""
    salt_by_user: bool = False
    """Whether its users share no cached prefixes with each other."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.name):
            raise InvalidField("name", "1 to 64 letters, digits, '_', '-' or '.'", self.name)
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InvalidField("sha256", "64 hexadecimal digits", "x" * len(self.sha256))
        check_fields(self)


class KeyRing:
    """The keys that are valid now. Without a file and without keys it is open: everybody may come in.

    `clock` gives monotonic seconds. Raises `InvalidField` or `JitneyError` if the file cannot be used; later, a file
    that cannot be used is logged and changes nothing.
    """

    def __init__(self, fixed: Sequence[Key], path: Path | None, clock: Callable[[], float]) -> None:
        self.is_open = path is None and not fixed
        self._fixed = tuple(fixed)
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._stamp = _stamp(path)
        self._keys = self._read()

    def find(self, secret: str) -> Key | None:
        """The key whose secret this is."""
        digest = digest_of(secret[:MAX_SECRET_CHARS])
        found = None
        for key in self._keys.values():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def named(self, name: str) -> Key | None:
        """The key of this name as it is now; None once it has been revoked."""
        return self._keys.get(name)

    def refresh(self) -> set[str]:
        """Read the file again if it has changed. Returns the names of keys that are revoked by it: gone, or with
        another secret."""
        if self._path is None or self._clock() - self._looked_at < RELOAD_S:
            return set()
        self._looked_at = self._clock()
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return set()
        self._stamp = stamp
        try:
            keys = self._read()
        except JitneyError as error:
            logger.error("the keys stay as they were: %s", error)
            return set()
        revoked = {
            name for name, key in self._keys.items() if name not in keys or keys[name].sha256 != key.sha256
        }
        self._keys = keys
        logger.info("%s: %d keys, %d revoked", self._path, len(keys), len(revoked))
        return revoked

    def _read(self) -> dict[str, Key]:
        listed = [*self._fixed, *(_read(self._path) if self._path else ())]
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in listed]
            twice = next((key.name for key in listed if values.count(getattr(key, field)) > 1), None)
            if twice is not None:
                raise JitneyError(f"{self._path or 'keys'}: {field} of the key {twice!r} is there twice")
        return {key.name: key for key in listed}


def digest_of(secret: str) -> str:
    """How a key's file spells a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _read(path: Path) -> list[Key]:
    """`[[key]]` tables of a TOML file."""
    try:
        listed: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JitneyError(f"{path}: expected a TOML file of [[key]] tables: {error}") from None
    tables = listed.pop("key", [])
    if listed or not isinstance(tables, list):
        raise JitneyError(
            f"{path}: expected [[key]] tables and nothing else, got {', '.join(listed) or 'key'}"
        )
    return [_key(table, f"{path}: key {number}") for number, table in enumerate(tables, 1)]


def _key(table: Any, at: str) -> Key:
    try:
        return msgspec.convert(table, Key)
    except msgspec.ValidationError as error:
        raise JitneyError(f"{at}: {error}") from None
    except InvalidField as error:
        raise error.renamed(f"{at}: {error.field}") from None
