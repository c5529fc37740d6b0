"""Fused matrices under the names of their parts: query, key and value of one, gate and up of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..errors import ModelError
from ..model.config import ModelConfig
from .quantized_weights import StoredTensors
from .safetensors_weights import Place
from .source import Listed

if TYPE_CHECKING:
    import torch

QKV, GATE_UP = "qkv_proj", "gate_up_proj"


def fused_rows(config: ModelConfig) -> dict[str, dict[str, int]]:
    """For each fused matrix its parts in order, with their rows."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    fused = {QKV: {"q_proj": q, "k_proj": kv, "v_proj": kv}}
    if config.gated_mlp:
        fused[GATE_UP] = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
    return fused


class SplitRows(Listed[tuple[str, int, int]]):
    """`StoredTensors` where each part is a view of the fused tensor's rows."""

    def __init__(self, stored: StoredTensors, config: ModelConfig) -> None:
        """Raises `ModelError` where a fused tensor has another number of rows than its parts."""
        self._fused: dict[str, tuple[str, int, int]] = {}
        super().__init__(stored.source, self._fused)
        self._stored = stored
        fused = fused_rows(config)
        for name in stored.names():
            *start, module, kind = name.split(".")
            if module in fused:
                self._split(name, ".".join(start), kind, fused[module])
            else:
                self._fused[name] = (name, 0, -1)

    def _split(self, name: str, prefix: str, kind: str, parts: dict[str, int]) -> None:
        shape, row = self._stored.shape(name), 0
        if shape[:1] != (sum(parts.values()),):
            raise ModelError(
                f"{self.source}: tensor {name}: expected {sum(parts.values())} rows, found the shape {shape}"
            )
        for part, rows in parts.items():
            self._fused[f"{prefix}.{part}.{kind}"] = (name, row, rows)
            row += rows

    def shape(self, name: str) -> tuple[int, ...]:
        fused, _, rows = self.known(name)
        shape = self._stored.shape(fused)
        return shape if rows < 0 else (rows, *shape[1:])

    def dtype(self, name: str) -> str:
        return self._stored.dtype(self.known(name)[0])

    def get(self, name: str) -> torch.Tensor:
        fused, row, rows = self.known(name)
        tensor = self._stored.get(fused)
        return tensor if rows < 0 else tensor[row : row + rows]

    def place(self, name: str) -> Place | None:
        """A part's rows lie together."""
        fused, row, rows = self.known(name)
        whole = self._stored.place(fused)
        if whole is None or rows < 0:
            return whole
        row_bytes = whole.num_bytes // whole.shape[0]
        return msgspec.structs.replace(
            whole,
            start=whole.start + row * row_bytes,
            num_bytes=rows * row_bytes,
            shape=(rows, *whole.shape[1:]),
        )
