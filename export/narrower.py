"""A source's tensors narrowed to 8 or 4 bits, in load order, calibrated and measured on the way.

A text goes through the model twice, layer by layer: as the source has it, which calibrates, and as narrowed so far,
which measures. One layer is in memory at a time. Calibration sees half of the windows, the measurement the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..runtime.weights.manifest import Quality
from .divergence import Divergence
from .rounding import Rounded, Rounding, as_fp8, fp8_scale
from .smoothing import Inputs, smoothing
from .source import Source
from .windows import Norm, Windows

HEAD_ROWS = 4096
"""Of the output layer at a time."""


class Narrower:
    """`tensors` gives one for each slot of `stacks`; then `quality` and `kv_scales` are known, and `whole_scales`: by
    the Hugging Face name of a fused matrix's first, what it and its inputs are multiplied by."""

    def __init__(
        self, source: Source, rounding: Rounding, tokens: Tensor, text_name: str, *,
        narrow_head: bool, own_head: bool = False,
    ) -> None:  # fmt: skip
        """tokens [windows, length], at least two windows. `own_head`: an output layer that shares the embeddings is
        given all the same."""
        self._source, self._rounding, self._narrow_head = source, rounding, narrow_head
        self._own_head = own_head or not source.config.tied_embeddings
        self._model = source.config
        self._dtype: torch.dtype = getattr(torch, source.config.dtype)
        self._windows = Windows(source.config, tokens)
        self._calibrating = range(0, len(tokens), 2)
        self._measuring = range(1, len(tokens), 2)
        self._text_name = text_name
        self.quality: Quality | None = None
        self.kv_scales: list[tuple[float, float]] = []
        self.whole_scales: dict[str, tuple[float, float]] = {}

    def tensors(self) -> Iterator[Tensor]:
        with torch.inference_mode():
            embed = self._read("model.embed_tokens.weight")
            yield embed
            x = embed[self._windows.tokens].float()  # [windows, length, hidden]
            if self._model.learned_positions:
                positions = self._read("model.embed_positions.weight")
                yield positions
                x += positions[: x.size(1)].float()
            self._plain, self._narrow = x, x[list(self._measuring)].clone()
            for layer in range(self._model.num_layers):
                yield from self._attention(layer)
                yield from self._mlp(layer)
            yield from self._head(embed)

    def _attention(self, layer: int) -> Iterator[Tensor]:
        model, prefix = self._model, f"model.layers.{layer}."
        before = self._norm(prefix + "input_layernorm")
        qkv, qkv_bias = self._matrix(*[prefix + f"self_attn.{name}_proj" for name in "qkv"])
        out, out_bias = self._matrix(prefix + "self_attn.o_proj")
        qk_norm = self._qk_norm(prefix)
        seen, given, keys, values = self._inputs(qkv), self._inputs(out), Peaks(), Peaks()
        for index, x in enumerate(self._plain):
            h = self._windows.norm(x, before)
            q, k, v = self._windows.heads(_linear(h, qkv, qkv_bias), qk_norm)
            context = self._windows.attend(q, k, v, layer)
            if index in self._calibrating:
                seen.see(h)
                given.see(context)
                keys.see(k)
                values.see(v)
            x += _linear(context, out, out_bias)
        owners = self._value_owners()
        scale = smoothing(given, out, self._rounding, owners)
        shared = torch.ones(model.num_kv_heads * model.head_dim).scatter_(0, owners, scale)
        _divide_last_rows(qkv, qkv_bias, shared)
        self.kv_scales.append((fp8_scale(keys.largest()), fp8_scale(values.largest(shared))))
        folded, first = self._folded(before, seen, qkv)
        second = self._rounding.matrix(out * scale, given.mean_square / scale.square())
        qkv_bias = None if qkv_bias is None else qkv_bias.to(self._dtype)
        yield from folded.values()
        q_rows, kv_rows = model.num_heads * model.head_dim, len(shared)
        yield from _split(first, qkv_bias, [q_rows, kv_rows, kv_rows])
        yield from (part.to(self._dtype) for part in qk_norm or ())
        yield from _split(second, out_bias, [len(out)])
        self._note(prefix + "self_attn.q_proj", first, seen)
        self._note(prefix + "self_attn.o_proj", second, given)
        for x in self._narrow:
            h = self._rounding.inputs(self._windows.norm(x, _float(folded)), seen.largest)
            q, k, v = self._windows.heads(_linear(h, first.dense, qkv_bias), qk_norm)
            k, v = (self._cached(part, scale) for part, scale in zip((k, v), self._kv_scales(), strict=True))
            context = self._rounding.inputs(self._windows.attend(q, k, v, layer), given.largest)
            x += _linear(context, second.dense, out_bias)

    def _mlp(self, layer: int) -> Iterator[Tensor]:
        model, windows, prefix = self._model, self._windows, f"model.layers.{layer}."
        before = self._norm(prefix + "post_attention_layernorm")
        names = ("gate_proj", "up_proj") if model.gated_mlp else ("up_proj",)
        up, up_bias = self._matrix(*[prefix + f"mlp.{name}" for name in names])
        down, down_bias = self._matrix(prefix + "mlp.down_proj")
        seen, given = self._inputs(up), self._inputs(down)
        for index, x in enumerate(self._plain):
            h = windows.norm(x, before)
            inner = self._inner(_linear(h, up, up_bias))
            if index in self._calibrating:
                seen.see(h)
                given.see(inner)
            x += _linear(inner, down, down_bias)
        scale = torch.ones(down.size(1))
        if model.gated_mlp:
            scale = smoothing(given, down, self._rounding)
            _divide_last_rows(up, up_bias, scale)
        folded, first = self._folded(before, seen, up)
        second = self._rounding.matrix(down * scale, given.mean_square / scale.square())
        up_bias = None if up_bias is None else up_bias.to(self._dtype)
        yield from folded.values()
        yield from _split(first, up_bias, [model.intermediate_size] * len(names))
        yield from _split(second, down_bias, [len(down)])
        self._note(prefix + "mlp." + names[0], first, seen)
        self._note(prefix + "mlp.down_proj", second, given)
        for x in self._narrow:
            h = self._rounding.inputs(windows.norm(x, _float(folded)), seen.largest)
            inner = self._inner(_linear(h, first.dense, up_bias))
            x += _linear(self._rounding.inputs(inner, given.largest), second.dense, down_bias)

    def _head(self, embed: Tensor) -> Iterator[Tensor]:
        before = self._norm("model.norm")
        head = embed if self._model.tied_embeddings else self._read("lm_head.weight")
        plain = self._windows.norm(self._plain[list(self._measuring)], before).flatten(0, 1)
        folded, scale, stored, seen = before, None, None, None
        if self._narrow_head:
            seen = self._inputs(head)
            for index in self._calibrating:
                seen.see(self._windows.norm(self._plain[index], before))
            sample = head[:: -(-len(head) // HEAD_ROWS)].float()
            folded, scale = _fold(before, smoothing(seen, sample, self._rounding), self._dtype)
            stored = self._narrow_rows(head, scale)
        narrow = self._windows.norm(self._narrow, _float(folded)).flatten(0, 1)
        tokens = self._windows.tokens[list(self._measuring)]
        targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-1).flatten()
        seen_by_head = narrow if seen is None else self._rounding.inputs(narrow, seen.largest)
        divergence = Divergence(plain, seen_by_head, targets)
        for start in range(0, len(head), HEAD_ROWS):
            rows = head[start : start + HEAD_ROWS].float()
            part = slice(start, start + HEAD_ROWS)
            divergence.add(rows, rows if stored is None else stored[0][part].float() * stored[1][part])
        self.quality = divergence.quality(self._text_name)
        yield from (part.to(self._dtype) for part in folded.values())
        if stored is not None:
            yield from stored
        elif self._own_head:
            yield head

    def _narrow_rows(self, head: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        values, scales = torch.empty(head.shape, dtype=torch.int8), torch.empty(len(head), 1)
        for start in range(0, len(head), HEAD_ROWS):
            rows = head[start : start + HEAD_ROWS].float() * scale
            part = slice(start, start + HEAD_ROWS)
            values[part], scales[part] = self._rounding.matrix(rows, scale).stored
        return values, scales

    def _folded(self, before: Norm, seen: Inputs, weight: Tensor) -> tuple[Norm, Rounded]:
        """The norm that divides, and the matrix that multiplies by the scales, in place."""
        folded, scale = _fold(before, smoothing(seen, weight, self._rounding), self._dtype)
        weight *= scale
        return folded, self._rounding.matrix(weight, seen.mean_square / scale.square())

    def _inner(self, up: Tensor) -> Tensor:
        if not self._model.gated_mlp:
            return self._windows.activate(up)
        gate, up = up.chunk(2, -1)
        return self._windows.activate(gate).mul_(up)

    def _kv_scales(self) -> tuple[float, float]:
        """Of the latest layer; where scales are whole, keys and values share theirs."""
        keys, values = self.kv_scales[-1]
        return (max(keys, values),) * 2 if self._rounding.whole else (keys, values)

    def _cached(self, x: Tensor, scale: float) -> Tensor:
        """As a cache of 8 bits would give it back."""
        return as_fp8(x, scale) if self._rounding.narrowing == "fp8" else x

    def _note(self, name: str, matrix: Rounded, inputs: Inputs) -> None:
        if self._rounding.whole:
            self.whole_scales[name] = matrix.scale, fp8_scale(inputs.largest)

    def _value_owners(self) -> Tensor:
        """Which element of the values each input of the attention's output layer is made of."""
        model = self._model
        values = torch.arange(model.num_kv_heads * model.head_dim).view(model.num_kv_heads, 1, -1)
        return values.expand(-1, model.num_heads // model.num_kv_heads, -1).flatten()

    def _inputs(self, weight: Tensor) -> Inputs:
        return Inputs(weight.size(1), len(self._calibrating) * self._windows.tokens.size(1))

    def _qk_norm(self, prefix: str) -> tuple[Tensor, Tensor] | None:
        if not self._model.qk_norm:
            return None
        q, k = (self._read(prefix + f"self_attn.{name}_norm.weight").float() for name in "qk")
        return q, k

    def _norm(self, name: str) -> Norm:
        parts = ("weight", "bias") if self._model.norm == "layer" else ("weight",)
        return {part: self._read(f"{name}.{part}").float() for part in parts}

    def _matrix(self, *names: str) -> tuple[Tensor, Tensor | None]:
        """float32, of several layers one above the other, and the biases where they have any."""
        shapes = [self._source.weights.shape(name + ".weight") for name in names]
        weight = torch.empty(sum(rows for rows, _ in shapes), shapes[0][1])
        for name, part in zip(names, weight.split([rows for rows, _ in shapes]), strict=True):
            part.copy_(self._read(name + ".weight"))
        if names[0] + ".bias" not in self._source.weights.names():
            return weight, None
        return weight, torch.cat([self._read(name + ".bias").float() for name in names])

    def _read(self, name: str) -> Tensor:
        return self._source.weights.get(name).to(self._dtype)


class Peaks:
    """The largest of what went into a layer's cache, for each element of all its heads."""

    def __init__(self) -> None:
        self._peaks: Tensor | None = None

    def see(self, heads: Tensor) -> None:
        """heads [heads, length, dim]."""
        peaks = heads.abs().amax(1).flatten()
        self._peaks = peaks if self._peaks is None else torch.maximum(self._peaks, peaks)

    def largest(self, divided_by: Tensor | float = 1.0) -> float:
        assert self._peaks is not None
        return float((self._peaks / divided_by).max())


def _divide_last_rows(matrix: Tensor, bias: Tensor | None, scale: Tensor) -> None:
    matrix[-len(scale) :] /= scale[:, None]
    if bias is not None:
        bias[-len(scale) :] /= scale


def _fold(before: Norm, scale: Tensor, dtype: torch.dtype) -> tuple[Norm, Tensor]:
    """The norm divided by the scales, in its stored type, and the scales that it then really divides by."""
    weight = (before["weight"] / scale).to(dtype)
    real = torch.where(weight == 0, scale, before["weight"] / weight.float())
    return {"weight": weight} | {k: (b / real).to(dtype) for k, b in before.items() if k == "bias"}, real


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x @ weight.T
    return out if bias is None else out.add_(bias)


def _split(matrix: Rounded, bias: Tensor | None, rows: list[int]) -> Iterator[Tensor]:
    for tensor in (*matrix.stored, *(() if bias is None else (bias,))):
        yield from tensor.split(rows)


def _float(norm: Norm) -> Norm:
    return {part: tensor.float() for part, tensor in norm.items()}
