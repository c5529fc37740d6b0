"""`POST /v1/ws-tickets`: whoever has a key buys a page one socket, and says for whom and under which instructions.

A page's script cannot see why a handshake was refused, so what would refuse it is told here.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import InvalidField
from ..access.door import MAX_USER_CHARS, SUBPROTOCOL, Door
from ..access.origins import ORIGIN
from ..access.tickets import LIFE_S
from ..http import json_body, json_reply
from ..principal import Principal, principal_of
from ..protocols.errors import Refused, invalid
from ..protocols.fields import honoured, honours, typed

MAX_INSTRUCTIONS_CHARS = 16_384
MAX_BODY_BYTES = 256 * 2**10


class _Order(msgspec.Struct, kw_only=True):
    user: str = ""
    instructions: str | None = None
    origin: str | None = None
    """Of the page that will use it; the asking page's own if it is left out."""

    def __post_init__(self) -> None:
        for field, most in (("user", MAX_USER_CHARS), ("instructions", MAX_INSTRUCTIONS_CHARS)):
            value = getattr(self, field)
            if value is not None and len(value) > most:
                raise InvalidField(field, f"up to {most} characters", f"{len(value)} characters")
        if self.origin is not None and not ORIGIN.fullmatch(self.origin):
            raise InvalidField("origin", "an origin such as 'https://example.com'", self.origin)


class TicketOffice:
    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> list[Route]:
        return [Route("/v1/ws-tickets", self._sell, methods=["POST"])]

    async def _sell(self, request: Request) -> Response:
        order = typed(honoured(await json_body(request, MAX_BODY_BYTES), honours(_Order)), _Order)
        buyer = principal_of(request.scope)
        if order.user and buyer.user and order.user != buyer.user:
            raise InvalidField("user", f"{buyer.user!r}, whom the request comes from", order.user)
        origin = order.origin or request.headers.get("origin")
        if not self._door.origins.admits_page(
            origin, request.headers.get("host", ""), request.scope.get("server")
        ):
            message = (
                f"origin: {str(origin)[:80]!r} is not allowed here; the server may allow it by --allow-origin"
            )
            raise Refused(invalid(message, code="origin_not_allowed", param="origin", status=403))
        principal = Principal(buyer.key, order.user or buyer.user, order.instructions)
        ticket = self._door.tickets.issue(principal, origin)
        return json_reply(
            {"ticket": ticket, "expires_in_s": LIFE_S, "origin": origin, "protocol": SUBPROTOCOL}
        )
