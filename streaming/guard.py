"""Who may come in: a bearer key, and for browsers the page's origin and the host it asked for.

A page cannot know the key, so with one only the Origin is checked. Without one a page of another site could still
reach a server on this machine under a name that it controls, so there the Host must be a loopback name too.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .http import http_response
from .protocols.errors import Refusal, invalid

OPEN_PATHS = ("/live",)


class Guard:
    """ASGI middleware: HTTP requests and handshakes that may not come in end here, with 401 or 403."""

    def __init__(
        self, app: ASGIApp, api_key: str | None, allow_origins: Iterable[str], allow_hosts: Iterable[str]
    ) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._origins = frozenset(allow_origins)
        self._hosts = frozenset(allow_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._check(scope) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await http_response(refused)(scope, receive, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await receive()
            await http_response(refused)(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refused.code})

    def _check(self, scope: Scope) -> Refusal | None:
        if scope["path"].removeprefix(scope.get("root_path", "")) in OPEN_PATHS:
            return None
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._key is None and not self._is_own_host(host, scope.get("server")):
            message = f"host {host[:80]!r} is not allowed here; the server may allow it by allow_hosts"
            return invalid(message, code="host_not_allowed", status=403)
        if origin is not None and not self._may_come_from(origin, host):
            message = f"origin {origin[:80]!r} is not allowed here; the server may allow it by allow_origins"
            return invalid(message, code="origin_not_allowed", status=403)
        if self._key is not None and not self._has_key(headers.get("authorization", "")):
            message = "a valid API key is required: Authorization: Bearer KEY"
            return invalid(message, code="invalid_api_key", status=401)
        return None

    def _has_key(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("latin-1", errors="replace")
        return self._key is not None and hmac.compare_digest(given, self._key) and scheme.lower() == "bearer"

    def _may_come_from(self, origin: str, host: str) -> bool:
        page = _netloc(origin)
        return origin in self._origins or (page != "" and page == host.lower()) or _is_loopback(page)

    def _is_own_host(self, host: str, server: tuple[str, int | None] | None) -> bool:
        address = server[0] if server else ""
        listens_on_loopback = _is_loopback(f"[{address}]" if ":" in address else address)
        return not listens_on_loopback or _is_loopback(host) or host in self._hosts


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_loopback(netloc: str) -> bool:
    """Of a host with or without a port."""
    try:
        name = urlsplit(f"//{netloc}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
