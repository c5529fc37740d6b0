"""Weights of 8 and 4 bits under the names of compressed-tensors, as vLLM and TensorRT-LLM read them.

`int8` and `fp8`: `….weight` with `….weight_scale` [out, 1]. `int4`: `….weight_packed`, eight columns in each int32,
the lowest bits first, each plus 8; `….weight_scale` [out, groups].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..errors import ModelError
from .safetensors_weights import Place
from .source import Listed, Weights

if TYPE_CHECKING:
    import torch

SCALE = ".weight_scale"
PACKED = ".weight_packed"
_NOT_WEIGHTS = (SCALE, ".weight_shape", ".k_scale", ".v_scale")


class StoredTensors(Weights, Protocol):
    """Tensors as a file has them."""

    def dtype(self, name: str) -> str: ...

    def place(self, name: str) -> Place | None:
        """Where the bytes lie; None where they lie in no file as they are meant."""
        ...


class QuantizedWeights(Listed[tuple[int, ...]]):
    """`Weights`: `get` gives a narrowed matrix back as float32. `rounded` gives one of 8 bits as it is stored."""

    def __init__(self, stored: StoredTensors) -> None:
        """Raises `ModelError` where a narrowed matrix and its scales do not fit each other."""
        shapes: dict[str, tuple[int, ...]] = {}
        super().__init__(stored.source, shapes)
        self._stored = stored
        self._scaled: set[str] = set()
        names = set(stored.names())
        for name in stored.names():
            if name.endswith(_NOT_WEIGHTS):
                continue
            base = name.removesuffix(PACKED).removesuffix(".weight")
            narrow = stored.dtype(name) not in ("F32", "F16", "BF16")
            if narrow and base + SCALE not in names:
                raise ModelError(f"{self.source}: tensor {name}: expected {base + SCALE} beside it")
            if narrow:
                shapes[base + ".weight"] = self._checked(name, base + SCALE)
                self._scaled.add(base + ".weight")
            else:
                shapes[name] = stored.shape(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.known(name)

    def get(self, name: str) -> torch.Tensor:
        self.shape(name)
        if name not in self._scaled:
            return self._stored.get(name)
        base = name.removesuffix(".weight")
        scale = self._stored.get(base + SCALE).float()
        if base + PACKED in self._stored.names():
            values = unpacked(self._stored.get(base + PACKED))
            return (values.view(*scale.shape, -1).float() * scale[:, :, None]).flatten(1)
        return self._stored.get(name).float() * scale

    def place(self, name: str) -> Place | None:
        self.shape(name)
        return None if name in self._scaled else self._stored.place(name)

    def rounded(self, name: str, kind: str = "I8") -> tuple[torch.Tensor, torch.Tensor] | None:
        """The matrix [out, in] of `kind` (I8 or F8_E4M3) and its scales [out], float32; None where it is stored
        otherwise."""
        if name not in self._scaled or name not in self._stored.names() or self._stored.dtype(name) != kind:
            return None
        scale = self._stored.get(name.removesuffix(".weight") + SCALE)
        return self._stored.get(name), scale.float().flatten()

    def kv_scales(self, num_layers: int) -> tuple[tuple[float, float], ...]:
        """By layer, of keys and values in 8 bits; empty where not all are stored."""
        layers = [f"model.layers.{i}.self_attn." for i in range(num_layers)]
        found = set(self._stored.names())
        if not all(f"{layer}{kv}_scale" in found for layer in layers for kv in "kv"):
            return ()
        keys, values = (
            [float(self._stored.get(f"{layer}{kv}_scale").flatten()[0]) for layer in layers] for kv in "kv"
        )
        return tuple(zip(keys, values, strict=True))

    def _checked(self, name: str, scale: str) -> tuple[int, ...]:
        """The shape of the matrix that is meant."""
        kind, shape, scales = self._stored.dtype(name), self._stored.shape(name), self._stored.shape(scale)
        expected = "I32" if name.endswith(PACKED) else "I8 or F8_E4M3"
        if kind not in expected.split(" or ") or len(shape) != 2:
            raise ModelError(
                f"{self.source}: tensor {name}: expected a matrix of {expected}, found {kind} {shape}"
            )
        shape = (shape[0], shape[1] * 8) if name.endswith(PACKED) else shape
        groups = scales[1] if len(scales) == 2 else 0
        fits = groups and scales[0] == shape[0] and shape[1] % groups == 0
        if not fits or (groups != 1 and not name.endswith(PACKED)):
            raise ModelError(
                f"{self.source}: tensor {scale}: expected scales for a matrix of {shape}, found {scales}"
            )
        return shape


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """int32 [out, in / 8] to int8 [out, in], from -8 to 7."""
    import torch

    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    nibbles = (packed[:, :, None] >> shifts) & 15
    return (nibbles - 8).to(torch.int8).flatten(1)
