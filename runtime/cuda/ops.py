"""The layer's operations by kernels: the fast twin of `NaiveOps`."""

from __future__ import annotations

from torch import Tensor

from ..kernels.decode_attention import DecodeAttention
from ..kernels.embedding import embedding
from ..kernels.linear import Linears
from ..kernels.narrow import Rows
from ..kernels.norm import Norm
from ..kernels.paging import Chunks, LayerCache, Rotary
from ..kernels.prefill_choice import PrefillAttention
from ..kernels.rope_write import rope_write
from ..kernels.rows import Gathered
from ..kernels.weight import Weight
from ..model.config import ModelConfig
from ..model.layers import Layers
from .forward import Packed
from .sizes import Pass


class KernelOps:
    """`caches`: one a layer; `buffers` by the names of `buffer_shapes`. In deterministic mode decode rows are attended
    like chunks of one token."""

    def __init__(
        self,
        model: ModelConfig,
        layers: Layers,
        caches: list[LayerCache],
        buffers: dict[str, Tensor],
        linears: Linears,
        decode: DecodeAttention | None,
        prefill: PrefillAttention,
    ) -> None:
        self._model, self._layers, self._caches, self._buffers = model, layers, caches, buffers
        self._linears, self._decode, self._prefill = linears, decode, prefill
        rope = layers.shared["rope"]
        self._rotary = [
            Rotary(rope["cos"], rope["sin"], packed.get("qk_norm", {}).get("weight"), model.norm_eps)
            for packed in layers.layers
        ]

    def begin(self, gathered: Gathered, size: Pass) -> None:
        if self._decode is not None and size.rows:
            slots, positions = gathered.slots[: size.rows], gathered.positions[: size.rows]
            self._decode.plan(slots, positions, self._caches[0].idle)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        shared, x = self._layers.shared, self._buffers["x"][: len(ids)]
        learned = shared["positions"]["weight"] if "positions" in shared else None
        embedding(ids, shared["embed"]["weight"], x, None if learned is None else positions, learned)
        return x

    def norm_linear(self, x: Tensor, norm: Packed, linear: Packed, *, rows: Tensor | None = None) -> Tensor:
        out = self._buffers["qkv"][: len(x)] if rows is None else self._buffers["logits"][: len(rows)]
        self._linears.norm_linear(x, self._norm(norm), _weight(linear), out, rows)
        return out

    def linear_add(self, x: Tensor, linear: Packed, residual: Tensor) -> None:
        self._linears.linear_add(Rows(x), _weight(linear), residual)

    def mlp(self, x: Tensor, norm: Packed, up: Packed, down: Packed) -> None:
        model = self._model
        activated = self._linears.norm_up(
            x, self._norm(norm), _weight(up), model.activation, gated=model.gated_mlp
        )
        self._linears.linear_add(activated, _weight(down), x)

    def attend(self, layer: int, qkv: Tensor, gathered: Gathered, size: Pass) -> Tensor:
        cache, rotary, window = self._caches[layer], self._rotary[layer], self._window(layer)
        out, end = self._buffers["attended"][: size.num_tokens], size.num_tokens
        rows = 0 if self._decode is None else size.rows
        if self._decode is not None and rows:
            slots, positions = gathered.slots[:rows], gathered.positions[:rows]
            self._decode(qkv[:rows], slots, positions, rotary, cache, out[:rows], window=window)
        if end > rows:
            slots, positions = gathered.slots[rows:end], gathered.positions[rows:end]
            keep_keys = self._prefill.flash and size.fresh
            rope_write(qkv[rows:], slots, positions, rotary, cache, keep_keys=keep_keys)
            chunks = Chunks(*(row[rows : size.num_samples] for row in gathered.spans))
            self._prefill(qkv, chunks, cache, out, window=window, fresh=size.fresh)
        return out

    def _norm(self, packed: Packed) -> Norm:
        return Norm(packed["weight"], packed.get("bias"), self._model.norm_eps, self._model.norm == "rms")

    def _window(self, layer: int) -> int | None:
        return self._model.sliding_window if self._model.slides(layer) else None


def _weight(packed: Packed) -> Weight:
    return Weight(packed["weight"], packed.get("scale"), packed.get("bias"))
