"""Which linear layers a machine computes with, and how many rows at a time keep them independent."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import msgspec
import torch
from torch import Tensor

from ..config import EngineConfig
from ..errors import InvalidField
from ..model import linear_int8, linear_onednn, linear_plain
from ..model.config import ModelConfig
from ..model.layers import PackRounded
from ..model.program import Program
from .layout import Tile

OUTPUTS, WEIGHTS = 4096, 1 << 25
"""So much of a matrix is tried out at most, and of outputs what its last block of 64 has: that may have a kernel apart.
Kernels were seen to change with the number of outputs only below 1,000 (oneDNN for AVX, from 512 to 576)."""


class Kernels(msgspec.Struct, frozen=True):
    """`floor`: the fewest query rows of an attention product for which rows are independent."""

    dtype: torch.dtype
    linears: ModuleType
    linear_bytes: int
    floor: int
    pack_rounded: PackRounded | None = None
    """For matrices that the checkpoint stores as int8."""


def choose_kernels(model: ModelConfig, config: EngineConfig) -> Kernels:
    """`auto` is bfloat16 where oneDNN computes it natively, else float32; bfloat16 that is asked for elsewhere is
    computed by torch's own products, slowly. A checkpoint of int8 is computed as such where the machine can, in `dtype`
    elsewhere; so are the narrower ones. Raises `InvalidField` for int8 that is asked for without a machine for it."""
    onednn = torch._C._has_mkldnn
    native = onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    automatic = "bfloat16" if native and model.dtype != "float32" else "float32"
    dtype: torch.dtype = getattr(torch, automatic if config.dtype == "auto" else config.dtype)
    floor = 1 if dtype == torch.bfloat16 else 16
    if config.quantize == "fp8" or config.kv_dtype == "fp8":
        field = "quantize" if config.quantize == "fp8" else "kv_dtype"
        raise InvalidField(field, "what the CPU computes in; fp8 needs an NVIDIA card", "fp8")
    vnni = onednn and torch.cpu._is_vnni_supported()
    if config.quantize == "int8" and not vnni:
        raise InvalidField("quantize", "None: int8 needs oneDNN and a CPU with VNNI", config.quantize)
    if vnni and "int8" in (config.quantize, model.quantization):
        return Kernels(dtype, linear_int8, 1, floor, linear_int8.pack_rounded)
    by_onednn = native or (onednn and dtype == torch.float32)
    return Kernels(dtype, linear_onednn if by_onednn else linear_plain, dtype.itemsize, floor)


def find_tile(program: Program, model: ModelConfig, kernels: Kernels, most: int) -> Tile:
    """The largest tile for which a row's product is the same to the last bit with any number of others, in batches of
    up to `most` tokens.

    A library picks its kernel by shape: with AMX, 33 rows sum in another order than 32; without, a single row does
    than two. So each distinct layer's shape is tried out here, once: what is independent in a large tile is so in a
    smaller one, whose products it has been compared with. The last resort is one fixed size.
    """
    tiles = [Tile(2, max(most, 64)), Tile(2, 32)]
    for inputs, weights in _drawn(model, kernels):
        while tiles and not _independent(program, weights, inputs, tiles[0], kernels.dtype):
            del tiles[0]
        del weights  # before the next ones are packed
    return tiles[0] if tiles else Tile(32, 32)


def _drawn(model: ModelConfig, kernels: Kernels) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The matrices of a layer and the output layer (inputs, packed weights), each made when it is asked for."""
    hidden, inner, queries = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
    shapes = (
        (hidden, queries + 2 * model.num_kv_heads * model.head_dim, model.qkv_bias),
        (queries, hidden, model.attention_out_bias),
        (hidden, inner * (2 if model.gated_mlp else 1), model.mlp_bias),
        (inner, hidden, model.mlp_bias),
        (hidden, model.vocab_size, False),
    )
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=kernels.dtype)
    for inputs, outputs, biased in shapes:
        size = min(outputs, min(OUTPUTS, WEIGHTS // inputs) + outputs % 64)
        yield inputs, kernels.linears.pack(draw(size, inputs), draw(size) if biased else None)


def _independent(
    program: Program, weights: dict[str, Tensor], inputs: int, tile: Tile, dtype: torch.dtype
) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tile.most, inputs, generator=generator).to(dtype)
    whole = program.linear(x, weights, tile.most)
    for size in sorted(
        {tile.least, 3, 8, 16, 31, 32, 33, 48, 64, 96, 128, 256, tile.most // 2, tile.most - 1}
    ):
        if size < tile.most:
            for at in range(0, max(size, min(16, tile.most - size)), size):
                if not torch.equal(
                    program.linear(x[at : at + size], weights, tile.most), whole[at : at + size]
                ):
                    return False
    return True
