"""The workshop: turns a training checkpoint into what the runtime serves, or what other engines read.

The runtime itself reads what it serves (`jitney.runtime.weights`); this folder adds the formats, the calibration and
the packaging that happen once, before serving. It imports the runtime; only the command line imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder import EngineBuilder as EngineBuilder

__all__ = ["EngineBuilder"]


def __getattr__(name: str) -> Any:
    if name != "EngineBuilder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .builder import EngineBuilder

    return EngineBuilder
