"""The forward pass of a decoder over a flat list of tokens, as plain functions of tensors.

Their source is compiled as one TorchScript program (program.py), so that a step is one call that lets go of the
interpreter lock once; run as Python they are that program's naive twin. So they use only what both languages know:
no module-level names but `torch` and each other, `torch.ops.aten` for what lives in `torch.nn.functional`.

`linear` comes from one of the `linear_*` files. No reduction here depends on how many tokens, rows or pages there
are: that is what makes a row's tokens independent of its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linear_plain import linear


def norm(x: Tensor, weights: dict[str, Tensor], eps: float, rms: bool) -> Tensor:
    if rms:
        wide = x.float()
        scale = wide.square().mean(-1, True).add_(eps).rsqrt_()
        return wide.mul(scale).to(x.dtype).mul_(weights["weight"])
    return torch.layer_norm(x, [x.size(-1)], weights["weight"], weights.get("bias"), eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary positions in place: element i of a head pairs with element i + head_dim / 2; `sin` carries the sign."""
    turned = x.roll(x.size(-1) // 2, -1)
    x.mul_(cos).addcmul_(turned, sin)


def weigh(scores: Tensor, values: Tensor) -> Tensor:
    """scores [n, queries, length] x values [n, length, dim], summed in blocks of 256 in order: one order whatever the
    length, because a matrix product of a longer length may be cut elsewhere."""
    length = scores.size(2)
    if length <= 256:
        return torch.bmm(scores, values)
    total = torch.bmm(scores[:, :, :256].contiguous(), values[:, :256]).float()
    for at in range(256, length, 256):
        total.add_(torch.bmm(scores[:, :, at : at + 256].contiguous(), values[:, at : at + 256]))
    return total.to(scores.dtype)


def attend(
    q: Tensor,
    pool: Tensor,
    table: Tensor,
    mask: Tensor,
    page_size: int,
    num_kv_heads: int,
    scale: float,
    floor: int,
) -> Tensor:
    """Attention of `rows` sequences with `queries` tokens each over their pages, grouped by key-value head.

    q [rows * queries, heads, dim]; mask [rows, queries, length], added; table: the pool's page-heads, keys of all
    rows first, then values. At least `floor` query rows go into each product. Gives [rows * queries, heads * dim].
    """
    rows, queries, length = mask.size(0), mask.size(1), mask.size(2)
    heads, dim = q.size(1), q.size(2)
    group = heads // num_kv_heads
    kv = pool.view(-1, page_size * dim).index_select(0, table).view(2, rows * num_kv_heads, length, dim)
    q = q.reshape(rows, queries, num_kv_heads, group, dim).transpose(1, 2)
    q = q.reshape(rows * num_kv_heads, queries * group, dim)
    copies = 1 if queries * group >= floor else (floor + queries * group - 1) // (queries * group)
    if copies > 1:
        q, mask = q.repeat(1, copies, 1), mask.repeat(1, copies, 1)
    scores = torch.bmm(q, kv[0].transpose(1, 2)).view(rows, num_kv_heads, queries * copies, group, length)
    scores = torch.add(mask.view(rows, 1, queries * copies, 1, length), scores, alpha=scale).softmax(-1)
    out = weigh(scores.view(rows * num_kv_heads, -1, length), kv[1])[:, : queries * group]
    out = out.reshape(rows, num_kv_heads, queries, group * dim).transpose(1, 2)
    return out.reshape(rows * queries, heads * dim)


def activate(x: Tensor, activation: str) -> Tensor:
    y: Tensor = x
    if activation == "silu":
        y = torch.ops.aten.silu(x)
    elif activation == "gelu":
        y = torch.ops.aten.gelu(x)
    elif activation == "gelu_tanh":
        y = torch.ops.aten.gelu(x, approximate="tanh")
    elif activation == "relu":
        y = torch.relu(x)
    else:
        y = torch.relu(x).square()
    return y


def mlp(x: Tensor, layer: dict[str, dict[str, Tensor]], activation: str, gated: bool, tile: int) -> Tensor:
    x = linear(x, layer["up"], tile)
    if gated:
        half = x.size(1) // 2
        x = activate(x[:, :half], activation).mul_(x[:, half:])
    else:
        x = activate(x, activation)
    return linear(x, layer["down"], tile)


def forward(
    tokens: Tensor,
    positions: Tensor,
    writes: Tensor,
    chosen: Tensor,
    spans: list[tuple[int, int]],
    tables: list[Tensor],
    masks: list[Tensor],
    sliding_masks: list[Tensor],
    shared: dict[str, dict[str, Tensor]],
    layers: list[dict[str, dict[str, Tensor]]],
    pools: list[Tensor],
    slides: list[bool],
    num_heads: int,
    num_kv_heads: int,
    page_size: int,
    eps: float,
    rms: bool,
    activation: str,
    gated: bool,
    tile: int,
    floor: int,
) -> tuple[Tensor, Tensor]:
    """Run `tokens` through all layers, writing keys and values into the pools.

    tokens, positions [n]; writes [n * 2 * num_kv_heads]: rows of a pool; spans: half-open token ranges, one for each
    table and mask. Gives the normed hidden states of the `chosen` tokens, and for every token a sum over its hidden
    state, which is finite unless the token's row has failed.
    """
    x = shared["embed"]["weight"].index_select(0, tokens)
    if "positions" in shared:
        x = x + shared["positions"]["weight"].index_select(0, positions)
    cos = shared["rope"]["cos"].index_select(0, positions).unsqueeze(1)
    sin = shared["rope"]["sin"].index_select(0, positions).unsqueeze(1)
    dim = cos.size(-1)
    scale = dim**-0.5
    for i, layer in enumerate(layers):
        qkv = linear(norm(x, layer["attention_norm"], eps, rms), layer["qkv"], tile)
        qkv = qkv.view(-1, num_heads + 2 * num_kv_heads, dim)
        qk = qkv[:, : num_heads + num_kv_heads]
        if "qk_norm" in layer:
            qk.copy_(norm(qk, layer["qk_norm"], eps, rms))
        rotate(qk, cos, sin)
        pools[i].index_copy_(0, writes, qkv[:, num_heads:].reshape(-1, dim))
        parts: list[Tensor] = []
        seen = sliding_masks if slides[i] else masks
        for j, span in enumerate(spans):
            q = qkv[span[0] : span[1], :num_heads]
            parts.append(attend(q, pools[i], tables[j], seen[j], page_size, num_kv_heads, scale, floor))
        x = x + linear(parts[0] if len(parts) == 1 else torch.cat(parts), layer["out"], tile)
        x = x + mlp(norm(x, layer["mlp_norm"], eps, rms), layer, activation, gated, tile)
    return norm(x.index_select(0, chosen), shared["norm"], eps, rms), x.float().sum(-1)
