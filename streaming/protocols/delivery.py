"""The `jitney` object of a request: how its answer is delivered, and what becomes of it when its reader is gone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from ...runtime.checks import check_fields, expecting, integer
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


_DETACH = expecting(f"seconds above 0, up to {MAX_DETACH_S:g}", lambda value: 0 < value <= MAX_DETACH_S)
CREDIT = integer(0, MAX_CREDIT)
MILLISECONDS = expecting("a positive number of milliseconds", lambda value: 0 < value < math.inf)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """The decoded object. `credit`: deltas that may be sent before the reader grants more. A delta waits for
    `min_flush_tokens` tokens, though no longer than `max_flush_ms`."""

    on_disconnect: Mode | None = None
    detach_ttl_s: Annotated[float | None, _DETACH] = None
    min_flush_tokens: Annotated[int, integer(1, MAX_CREDIT)] = 1
    max_flush_ms: Annotated[float | None, MILLISECONDS] = None
    credit: Annotated[int | None, CREDIT] = None
    deadline_ms: Annotated[float | None, MILLISECONDS] = None
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
    if wanted.detach_ttl_s is not None and wanted.on_disconnect != "detach":
        raise RequestError(f"{at}.detach_ttl_s: goes with on_disconnect 'detach'", field=f"{at}.detach_ttl_s")
    try:
        check_fields(wanted)
    except InvalidField as error:
        raise error.renamed(f"{at}.{error.field}") from None
