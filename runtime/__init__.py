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
    from .errors import ContextLengthExceeded as ContextLengthExceeded
    from .errors import EngineClosed as EngineClosed
    from .errors import EngineDied as EngineDied
    from .errors import InvalidField as InvalidField
    from .errors import JitneyError as JitneyError
    from .errors import ModelError as ModelError
    from .errors import QueueFull as QueueFull
    from .errors import RequestError as RequestError
    from .events import Event as Event
    from .events import Times as Times
    from .events import Usage as Usage
    from .intake import Options as Options
    from .params import SamplingParams as SamplingParams
    from .response import Response as Response

_HOMES = {
    "AbstractEngine": ".engines.abstract",
    "ContextLengthExceeded": ".errors",
    "EngineClosed": ".errors",
    "EngineDied": ".errors",
    "InvalidField": ".errors",
    "JitneyError": ".errors",
    "ModelError": ".errors",
    "Options": ".intake",
    "QueueFull": ".errors",
    "RequestError": ".errors",
    "Response": ".response",
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
