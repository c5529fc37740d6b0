"""What both of Megatron's formats are read into: the training arguments, the model's tensors as they were before they
were split, and what was left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..source import Removed
from .global_tensor import GlobalTensor
from .records import Record
from .stored_tensor import StoredTensor


class MegatronState(msgspec.Struct, frozen=True):
    """`tensors` are named as Megatron's GPT model names its parameters, with layers numbered through the whole model:
    `decoder.layers.7.mlp.linear_fc1.weight`. A gated MLP's two halves lie one after the other, whatever the split."""

    path: Path
    arguments: dict[str, Any]
    tensors: dict[str, GlobalTensor]
    removed: tuple[Removed, ...]


class Tally:
    """Counts what is left behind, by group."""

    def __init__(self) -> None:
        self._groups: dict[str, tuple[int, int]] = {}

    def add(self, group: str, num_items: int, num_bytes: int) -> None:
        items, size = self._groups.get(group, (0, 0))
        self._groups[group] = (items + num_items, size + num_bytes)

    def add_tree(self, group: str, tree: Any) -> None:
        """Every tensor and byte string in a nest of plain values, each once."""
        seen: set[int] = set()
        waiting = [tree]
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, StoredTensor):
                self.add(group, 1, value.num_bytes)
            elif isinstance(value, bytes):
                self.add(group, 1, len(value))
            elif isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, (list, tuple, set, frozenset)):
                waiting += value
            elif isinstance(value, Record):
                waiting += [value.args, value.state, value.items]

    def removed(self) -> tuple[Removed, ...]:
        return tuple(Removed(group, *counts) for group, counts in sorted(self._groups.items()))
