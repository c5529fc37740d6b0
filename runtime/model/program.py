"""One call per step: the forward pass's own source, compiled to TorchScript or run as Python.

Every eager operation lets go of the interpreter lock and waits to get it back; a compiled pass does so once. The
source text is compiled, not the function objects, because that way needs no compiler and no deprecated entry point.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from . import forward as source


class Program:
    """`forward` and `head` over the linear layers of one `linear_*` module."""

    def __init__(self, linears: ModuleType, *, compiled: bool = True) -> None:
        functions = [linears.linear, source.norm, source.rotate, source.weigh, source.attend]
        functions += [source.activate, source.mlp, source.forward]
        text = "\n\n".join(inspect.getsource(function) for function in functions)
        self.forward: Callable[..., Any]
        self.linear: Callable[..., Any]
        if compiled:
            unit = torch.jit.CompilationUnit(text)
            self.forward, self.linear = unit.forward, unit.linear
        else:
            names: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor}
            exec(compile(text, source.__file__, "exec"), names)
            self.forward, self.linear = names["forward"], names["linear"]
