"""Plain static batching through torch: left-padded rows, dense caches, one row of logits each, nothing shared.

The naive twin of the paged step: it has no pages, no chunks, no packing and no care for neighbours. It shares with
the paged step only the loaded weights' names, the rotary tables and the sampler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import RowOutcome, Seat, TokenLogprobs
from ..config import EngineConfig
from ..errors import CannotServe, InvalidField
from ..model import linear_plain
from ..model.config import ModelConfig
from ..model.forward import activate, norm, rotate
from ..model.layers import Layers, Packed, Weights, load_layers
from .kernels import choose_kernels
from .memory import MAX_ROWS, free_memory, weight_bytes
from .sampler import Row, sample, token_logprobs
from .threads import torch_threads


class PaddedModel:
    """Implements `PaddedBatch`. Raises `CannotServe`, before anything is read, where the weights do not fit in memory,
    `InvalidField` for int8, `ModelError` for a tensor missing or misshapen."""

    def __init__(self, model: ModelConfig, weights: Weights, config: EngineConfig) -> None:
        if config.quantize is not None:
            raise InvalidField(
                "quantize", "None: padded batches compute in the model's own precision", config.quantize
            )
        self.max_rows = config.max_rows or MAX_ROWS
        self._model = model
        context = min(model.max_position, config.max_context or model.max_position)
        dtype = choose_kernels(model, config).dtype
        needed, free = weight_bytes(model, dtype.itemsize, dtype.itemsize), free_memory()
        if free is not None and needed > free:
            raise CannotServe(f"{free:,} bytes of memory are free; weights take {needed:,}")
        with torch.inference_mode():
            self._layers = load_layers(model, weights, linear_plain.pack, dtype, context)
        self._tuned = config.tune_process
        if self._tuned:
            torch_threads.acquire(config.num_threads)

    def run(self, seats: Sequence[Seat]) -> Iterator[list[RowOutcome]]:
        batch = _PaddedRows(self._model, self._layers, seats)
        histories = [list(seat.tokens) for seat in seats]
        while True:
            with torch.inference_mode():
                logits = batch.logits()
                rows = [
                    Row(seat.sampling, tokens, seat.prompt_len)
                    for seat, tokens in zip(seats, histories, strict=True)
                ]
                drawn = sample(logits, rows)
            outcomes = []
            for slot, (tokens, pick) in enumerate(zip(histories, drawn, strict=True)):
                tokens.append(pick.token)
                logprobs = (pick.logprobs,) if pick.logprobs else ()
                given = () if pick.error else (pick.token,)
                outcomes.append(RowOutcome(slot, given, logprobs, batch.take_prompt_scores(slot), pick.error))
            yield outcomes
            batch.feed([tokens[-1] for tokens in histories])

    def close(self) -> None:
        """Give the weights and torch's threads back."""
        del self._layers
        if self._tuned:
            self._tuned = False
            torch_threads.release()


class _PaddedRows:
    """A batch on its way. Row i's first token stands in column `pad[i]`; columns before it are masked for ever."""

    def __init__(self, model: ModelConfig, weights: Layers, seats: Sequence[Seat]) -> None:
        self._model, self._weights, self._seats = model, weights, seats
        width = max(len(seat.tokens) for seat in seats)
        self._pad = torch.tensor([width - len(seat.tokens) for seat in seats])
        self._tokens = torch.tensor([[0] * (width - len(seat.tokens)) + list(seat.tokens) for seat in seats])
        self._seen = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._scores: dict[int, tuple[TokenLogprobs | None, ...]] = {}

    def feed(self, tokens: list[int]) -> None:
        self._tokens = torch.tensor(tokens)[:, None]

    def take_prompt_scores(self, slot: int) -> tuple[TokenLogprobs | None, ...]:
        return self._scores.pop(slot, ())

    def logits(self) -> Tensor:
        """Run the columns that were fed last; float32 logits [rows, vocab] of the final one."""
        hidden = self._forward()
        if self._seen == 0:
            self._score_prompts(hidden)
        self._seen += self._tokens.size(1)
        return _linear(hidden[:, -1], self._weights.head).float()

    def _score_prompts(self, hidden: Tensor) -> None:
        for slot, seat in enumerate(self._seats):
            top = seat.sampling.prompt_logprobs
            if top is not None:
                logits = _linear(hidden[slot, int(self._pad[slot]) :], self._weights.head)
                rows = logits.float().log_softmax(-1)
                scored = [token_logprobs(rows[i], token, top) for i, token in enumerate(seat.tokens[1:])]
                self._scores[slot] = (None, *scored)

    def _forward(self) -> Tensor:
        """Normed hidden states [rows, columns, hidden]."""
        model, shared = self._model, self._weights.shared
        columns = torch.arange(self._seen, self._seen + self._tokens.size(1))
        rope = shared["rope"]
        # A finished row is fed on until the batch is over, past the context too; what it computes there is dropped.
        positions = (columns - self._pad[:, None]).clamp(0, rope["cos"].size(0) - 1)
        x = F.embedding(self._tokens, shared["embed"]["weight"])
        if "positions" in shared:
            x = x + F.embedding(positions, shared["positions"]["weight"])
        cos, sin = rope["cos"][positions][:, None], rope["sin"][positions][:, None]
        for index, layer in enumerate(self._weights.layers):
            x = x + self._attend(index, layer, self._norm(x, layer["attention_norm"]), cos, sin)
            up = _linear(self._norm(x, layer["mlp_norm"]), layer["up"])
            if model.gated_mlp:
                gate, up = up.chunk(2, -1)
                up = activate(gate, model.activation) * up
            else:
                up = activate(up, model.activation)
            x = x + _linear(up, layer["down"])
        return self._norm(x, shared["norm"])

    def _attend(self, index: int, layer: Packed, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        model = self._model
        heads, kv_heads = model.num_heads, model.num_kv_heads
        qkv = _linear(x, layer["qkv"]).view(*x.shape[:2], heads + 2 * kv_heads, model.head_dim)
        qkv = qkv.transpose(1, 2).contiguous()
        qk, values = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if "qk_norm" in layer:
            qk = norm(qk, {"weight": layer["qk_norm"]["weight"][:, None]}, model.norm_eps, True)
        rotate(qk, cos, sin)
        keys, values = self._cached(index, qk[:, heads:], values)
        mask = self._mask(index, keys.size(2), x)
        out = F.scaled_dot_product_attention(qk[:, :heads], keys, values, mask, enable_gqa=heads != kv_heads)
        return _linear(out.transpose(1, 2).flatten(2), layer["out"])

    def _cached(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far of a layer, the new ones included: [rows, kv heads, columns, dim]."""
        if index == len(self._keys):
            self._keys.append(keys)
            self._values.append(values)
        else:
            self._keys[index] = torch.cat([self._keys[index], keys], 2)
            self._values[index] = torch.cat([self._values[index], values], 2)
        return self._keys[index], self._values[index]

    def _mask(self, index: int, length: int, x: Tensor) -> Tensor:
        """Added to scores: a column sees itself and earlier ones of its row, inside the window where one slides."""
        model = self._model
        to = torch.arange(length)
        at = torch.arange(length - x.size(1), length)[:, None]
        seen = to <= at
        if model.sliding_window is not None and model.slides(index):
            seen = seen & (to > at - model.sliding_window)
        seen = seen & ((to >= self._pad[:, None])[:, None] | (to == at))
        return torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, -torch.inf)[:, None]

    def _norm(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return norm(x, weights, self._model.norm_eps, self._model.norm == "rms")


def _linear(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return F.linear(x, weights["weight"], weights.get("bias"))
