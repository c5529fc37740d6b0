"""The `jitney` object of a request: how its answer is delivered, and what becomes of it when its reader is gone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ...runtime.errors import InvalidField, RequestError
from .fields import honoured, honours, typed

DETACH_S = 30.0
MAX_DETACH_S = 3600.0
MAX_CREDIT = 2**31 - 1

Mode = Literal["cancel", "detach", "finish"]


class OnDisconnect(msgspec.Struct, frozen=True):
    """What becomes of an answer whose last reader is gone: it is cancelled, cancelled after `detach_s` unless a
    reader comes back, or finished and kept."""

    mode: Mode
    detach_s: float = DETACH_S


CANCEL = OnDisconnect("cancel")
FINISH = OnDisconnect("finish")


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """The decoded object. `credit`: deltas that may be sent before the reader grants more. A delta waits for
    `min_flush_tokens` tokens, though no longer than `max_flush_ms`."""

    on_disconnect: Mode | None = None
    detach_ttl_s: float | None = None
    min_flush_tokens: int = 1
    max_flush_ms: float | None = None
    credit: int | None = None
    deadline_ms: float | None = None
    priority: int | None = None

    def policy(self, default: OnDisconnect) -> OnDisconnect:
        """What to do when the last reader is gone."""
        if self.on_disconnect is None:
            return default
        return OnDisconnect(self.on_disconnect, self.detach_ttl_s or DETACH_S)


FIELDS = honours(Delivery)


def delivery(given: Mapping[str, Any] | None, *, at: str = "jitney") -> Delivery:
    """Raises `RequestError` naming the field."""
    if not given:
        return Delivery()
    wanted = typed(honoured(given, FIELDS, at=f"{at}."), Delivery, at=f"{at}.")
    _check(wanted, at)
    return wanted


def _check(wanted: Delivery, at: str) -> None:
    ttl = wanted.detach_ttl_s
    if ttl is not None and wanted.on_disconnect != "detach":
        raise RequestError(f"{at}.detach_ttl_s: goes with on_disconnect 'detach'", field=f"{at}.detach_ttl_s")
    if ttl is not None and not 0 < ttl <= MAX_DETACH_S:
        raise InvalidField(f"{at}.detach_ttl_s", f"seconds above 0, up to {MAX_DETACH_S:g}", ttl)
    for field in ("deadline_ms", "max_flush_ms"):
        value = getattr(wanted, field)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InvalidField(f"{at}.{field}", "a positive number of milliseconds", value)
    for field, least in (("credit", 0), ("min_flush_tokens", 1)):
        value = getattr(wanted, field)
        if value is not None and not least <= value <= MAX_CREDIT:
            raise InvalidField(f"{at}.{field}", f"an integer from {least} to {MAX_CREDIT}", value)
