"""Which pages may reach the server, and under which names: exact comparisons of the Origin and Host headers.

A page of another site could reach a server on this machine, by its address or under a name that it controls. So a
foreign origin is refused everywhere, and an unknown Host where the server listens on loopback and asks for no key.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from ipaddress import ip_address

from ...runtime.errors import InvalidField

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
NETLOC = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]/?#@:\s]+)(?::(\d{1,5}))?")
MAX_REPORTED = 256

logger = logging.getLogger("jitney.streaming")

Server = tuple[str, int | None] | None
"""The local address of a connection, as ASGI gives it."""


class Origins:
    """`allow_origins` are further pages' origins, such as "https://example.com"; `allow_hosts` further Host headers.

    What is refused is logged once, with the flag that would let it in. Raises `InvalidField`.
    """

    def __init__(self, allow_origins: Iterable[str], allow_hosts: Iterable[str]) -> None:
        self._origins = frozenset(allow_origins)
        self._hosts = frozenset(host.lower() for host in allow_hosts)
        self._reported: set[str] = set()
        for origin in self._origins:
            if not ORIGIN.fullmatch(origin):
                raise InvalidField("allow_origin", "an origin such as 'https://example.com'", origin)

    def admits_page(self, origin: str | None, host: str, server: Server) -> bool:
        """No Origin is no browser. A page of the host that it asks comes in, and on loopback any page of loopback."""
        if origin is None or origin in self._origins:
            return True
        page = origin.partition("://")[2] if ORIGIN.fullmatch(origin) else ""
        is_web = origin.startswith(("http://", "https://"))
        if is_web and page and (page == host.lower() or (is_loopback(page) and _listens_on_loopback(server))):
            return True
        self._report(f"--allow-origin {origin[:80]!r}", f"the page {origin[:80]!r}")
        return False

    def admits_host(self, host: str, server: Server) -> bool:
        """Asked where there is no key."""
        if not _listens_on_loopback(server) or is_loopback(host) or host.lower() in self._hosts:
            return True
        self._report(f"--allow-host {host[:80]!r}", f"the host name {host[:80]!r}")
        return False

    def _report(self, flag: str, what: str) -> None:
        if flag not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(flag)
            logger.warning("%s was refused; to let it in: %s", what, flag)


def is_loopback(netloc: str) -> bool:
    """Of a host with or without a port."""
    match = NETLOC.fullmatch(netloc)
    name = match[1].strip("[]").lower() if match else ""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _listens_on_loopback(server: Server) -> bool:
    address = server[0] if server else ""
    return is_loopback(f"[{address}]" if ":" in address else address)
