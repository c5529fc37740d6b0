"""The one place where a request or a handshake is let in: its Host, its Origin, its key or ticket, in this order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

import msgspec
from starlette.datastructures import Headers
from starlette.types import Scope

from ..principal import ANONYMOUS, Principal
from ..protocols.errors import Refused, invalid
from .keys import Key, KeyRing, digest_of
from .origins import Origins
from .quotas import Quotas
from .tickets import PREFIX, Tickets

HEALTH_PATHS = frozenset({"/live", "/ready", "/health"})
"""They need neither a key nor a known Host, and say nothing but their state."""
PAGE_PATHS = frozenset({"/", "/dashboard", "/client.js", "/client.d.ts"})
"""What a browser loads before it can send a key, and what lies under `/static/`. The same for everybody."""
METRICS_PATH = "/metrics"

FOREIGN = frozenset({"host_not_allowed", "origin_not_allowed"})
"""The codes of refusals that a page's script may not even read."""

USER_HEADER = "jitney-user"
MAX_USER_CHARS = 128
SUBPROTOCOL = "jitney.v1"
BEARER_PROTOCOLS = ("jitney.bearer.", "openai-insecure-api-key.")
ECHOED = frozenset({SUBPROTOCOL, "realtime"})

OWN_KEY = "default"
"""The name of the one key that was given by itself. It is the operator's, so it may name users."""


class Visit(msgspec.Struct, frozen=True):
    """Who came in. `subprotocol` is to be echoed in the handshake."""

    principal: Principal = ANONYMOUS
    origin: str | None = None
    subprotocol: str | None = None
    is_health: bool = False


class Door:
    """`metrics_key` opens `/metrics`; without one it is open where the ring is, and closed otherwise."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        keys_file: Path | None = None,
        metrics_key: str | None = None,
        allow_origins: Sequence[str] = (),
        allow_hosts: Sequence[str] = (),
        max_sockets: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        own = [] if api_key is None else [Key(name=OWN_KEY, sha256=digest_of(api_key), trusted=True)]
        self.ring = KeyRing(own, keys_file, clock)
        self.origins = Origins(allow_origins, allow_hosts)
        self.tickets = Tickets(clock)
        self.quotas = Quotas(self.ring, max_sockets=max_sockets, clock=clock)
        metrics = [] if metrics_key is None else [Key(name="metrics", sha256=digest_of(metrics_key))]
        self._metrics_ring = KeyRing(metrics, None, clock)

    def enter(self, scope: Scope) -> Visit:
        """Raises `Refused` with 401 or 403. A ticket in the query is used up, and taken out of the scope's query."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        ticket = _taken_ticket(scope) if scope["type"] == "websocket" else ""
        if path in HEALTH_PATHS:
            return Visit(is_health=True)
        if self.ring.is_open and not self.origins.admits_host(host, scope.get("server")):
            raise _forbidden("host", host)
        if not self.origins.admits_page(origin, host, scope.get("server")):
            raise _forbidden("origin", origin or "")
        if path in PAGE_PATHS or path.startswith("/static/") or is_preflight(scope, headers):
            return Visit(origin=origin)
        offered = scope.get("subprotocols", [])
        subprotocol = next((name for name in offered if name in ECHOED), None)
        if path == METRICS_PATH:
            self._check_metrics_reader(headers)
            return Visit(origin=origin)
        secret = _secret(scope, headers) or ticket
        if secret.startswith(PREFIX) and scope["type"] != "websocket":
            raise _unauthorized("a ticket opens one socket and nothing else")
        return Visit(self._principal(secret, origin, headers.get(USER_HEADER)), origin, subprotocol)

    def _principal(self, secret: str, origin: str | None, user: str | None) -> Principal:
        if secret.startswith(PREFIX):
            principal = self.tickets.redeem(secret, origin)
            if principal is None or user is not None or not self._is_valid(principal):
                raise _unauthorized("the ticket is unknown, used, too old, or was bought for another page")
            return principal
        if self.ring.is_open:
            return Principal("", _checked_user(user or ""))
        key = self.ring.find(secret)
        if key is None:
            raise _unauthorized("a valid API key is required: Authorization: Bearer KEY")
        if user is not None and not key.trusted:
            message = f"{USER_HEADER}: the key {key.name!r} may not name users"
            raise Refused(invalid(message, code="user_not_allowed", param=USER_HEADER, status=403))
        return Principal(key.name, _checked_user(user or ""))

    def _check_metrics_reader(self, headers: Headers) -> None:
        if not self._metrics_ring.is_open:
            if self._metrics_ring.find(_bearer(headers)) is None:
                raise _unauthorized("the key for metrics is required: Authorization: Bearer KEY")
        elif not self.ring.is_open:
            message = "metrics are read with a key of their own, or at a port of their own; none is set"
            raise Refused(invalid(message, code="metrics_not_allowed", status=403))

    def _is_valid(self, principal: Principal) -> bool:
        """Whether the key that bought the ticket still is."""
        return self.ring.is_open or self.ring.named(principal.key) is not None


def is_preflight(scope: Scope, headers: Headers) -> bool:
    """A browser asking what it may send: it comes without a key."""
    asked = "access-control-request-method" in headers and "origin" in headers
    return asked and bool(scope["type"] == "http" and scope["method"] == "OPTIONS")


def _secret(scope: Scope, headers: Headers) -> str:
    """The key or ticket that a header holds."""
    by_protocol = [
        name.removeprefix(prefix)
        for name in scope.get("subprotocols", [])
        for prefix in BEARER_PROTOCOLS
        if name.startswith(prefix)
    ]
    return _bearer(headers) or next(iter(by_protocol), "")


def _bearer(headers: Headers) -> str:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _taken_ticket(scope: Scope) -> str:
    """The query's ticket, taken out of it: what logs the scope later does not see it. A key is no ticket."""
    fields = scope.get("query_string", b"").split(b"&")
    tickets = [field for field in fields if field.startswith(b"ticket=")]
    if tickets:
        scope["query_string"] = b"&".join(field for field in fields if field not in tickets)
    ticket = unquote(tickets[0].removeprefix(b"ticket=").decode("latin-1")) if tickets else ""
    return ticket if ticket.startswith(PREFIX) else ""


def _checked_user(user: str) -> str:
    if len(user) > MAX_USER_CHARS:
        message = f"{USER_HEADER}: expected up to {MAX_USER_CHARS} characters"
        raise Refused(invalid(message, code="invalid_value", param=USER_HEADER))
    return user


def _forbidden(what: str, value: str) -> Refused:
    message = f"{what} {value[:80]!r} is not allowed here; the server may allow it by --allow-{what}"
    return Refused(invalid(message, code=f"{what}_not_allowed", status=403))


def _unauthorized(message: str) -> Refused:
    return Refused(invalid(message, code="invalid_api_key", status=401))
