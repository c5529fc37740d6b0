"""The front desk: protocols, one server, the client, the command line. Names load on first use; none loads torch.

Reading order: protocols/fields, protocols/chat, protocols/responses, protocols/session, http, websocket, server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client as Client
    from .client import connect as connect
    from .client_events import ConnectionLost as ConnectionLost
    from .server import create_app as create_app

_HOMES = {
    "Client": ".client",
    "ConnectionLost": ".client_events",
    "connect": ".client",
    "create_app": ".server",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
