"""The dispatcher: engines, scheduler, pages, the step. Names load on first use, so importing this loads no torch.

Reading order: events, params, batch, sequence, pages, scheduler, worker, log, engines/dynamic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import EngineConfig as EngineConfig
    from .engines.abstract import AbstractEngine as AbstractEngine
    from .engines.dynamic import DynamicEngine as DynamicEngine
    from .engines.mcore import MCoreEngine as MCoreEngine
    from .engines.static import StaticEngine as StaticEngine
    from .events import Event as Event
    from .events import Times as Times
    from .events import Usage as Usage
    from .params import SamplingParams as SamplingParams

_HOMES = {
    "AbstractEngine": ".engines.abstract",
    "DynamicEngine": ".engines.dynamic",
    "EngineConfig": ".config",
    "Event": ".events",
    "MCoreEngine": ".engines.mcore",
    "SamplingParams": ".params",
    "StaticEngine": ".engines.static",
    "Times": ".events",
    "Usage": ".events",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
