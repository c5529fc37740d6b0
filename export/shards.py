"""A model cut for tensor-parallel ranks: which rows or columns of each tensor a rank holds, narrowed or not.

Query heads and the MLP's width are divided; key-value heads are divided too, or, where there are more ranks than of
them, each is held by several ranks. The vocabulary is padded with zero rows to a multiple of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig

if TYPE_CHECKING:
    import torch

Cut = Literal["whole", "rows", "columns", "kv_rows", "vocab_rows"]
_CUTS: dict[str, Cut] = {
    "embed_tokens.weight": "vocab_rows",
    "lm_head.weight": "vocab_rows",
    "q_proj.weight": "rows",
    "q_proj.bias": "rows",
    "k_proj.weight": "kv_rows",
    "k_proj.bias": "kv_rows",
    "v_proj.weight": "kv_rows",
    "v_proj.bias": "kv_rows",
    "o_proj.weight": "columns",
    "gate_proj.weight": "rows",
    "gate_proj.bias": "rows",
    "up_proj.weight": "rows",
    "up_proj.bias": "rows",
    "down_proj.weight": "columns",
}
"""By the end of the Hugging Face name. Norms, positions and the biases of `o_proj` and `down_proj`, which are added
once after the ranks' sums, are whole on every rank."""


class Sharding:
    """One model over `num_ranks` ranks. Raises `ModelError` naming the sizes that do not divide."""

    def __init__(self, config: ModelConfig, num_ranks: int) -> None:
        kv = config.num_kv_heads
        if num_ranks < 1:
            raise ModelError(f"expected at least 1 tensor-parallel rank, got {num_ranks}")
        for what, size in (("attention heads", config.num_heads), ("MLP columns", config.intermediate_size)):
            if size % num_ranks:
                raise ModelError(f"{size} {what} cannot be divided over {num_ranks} tensor-parallel ranks")
        if kv % num_ranks and num_ranks % kv:
            raise ModelError(
                f"{kv} key-value heads cannot be shared out over {num_ranks} tensor-parallel ranks"
            )
        self._config, self._num_ranks = config, num_ranks
        self._copies = max(1, num_ranks // kv)
        self._padded_vocab = -(-config.vocab_size // num_ranks) * num_ranks

    @property
    def rank_config(self) -> ModelConfig:
        """The shape of what one rank holds; its vocabulary is a rank's part of the padded one."""
        config, ranks = self._config, self._num_ranks
        return msgspec.structs.replace(
            config,
            vocab_size=self._padded_vocab // ranks,
            num_heads=config.num_heads // ranks,
            num_kv_heads=max(1, config.num_kv_heads // ranks),
            intermediate_size=config.intermediate_size // ranks,
        )

    def shape(self, name: str, whole: Sequence[int]) -> tuple[int, ...]:
        """Of a rank's part of a tensor of shape `whole`. Raises `ModelError` where its columns do not divide."""
        cut, ranks = _cut(name, tuple(whole)), self._num_ranks
        if cut == "whole":
            return tuple(whole)
        if cut == "columns":
            if whole[1] % ranks:
                raise ModelError(f"{name}: {whole[1]} columns cannot be cut for {ranks} ranks")
            return (whole[0], whole[1] // ranks)
        rows = {"rows": whole[0], "kv_rows": whole[0] * self._copies, "vocab_rows": self._padded_vocab}[cut]
        return (rows // ranks, *whole[1:])

    def part(self, name: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """What `rank` holds of a tensor: a view of it, but for the padded end of the vocabulary."""
        cut = _cut(name, whole.shape)
        if cut == "whole":
            return whole
        if cut == "columns":
            return whole.chunk(self._num_ranks, 1)[rank]
        if cut == "rows":
            return whole.chunk(self._num_ranks)[rank]
        if cut == "kv_rows":
            return whole.chunk(self._num_ranks // self._copies)[rank // self._copies]
        size = self._padded_vocab // self._num_ranks
        rows = whole[rank * size : (rank + 1) * size]
        return rows if len(rows) == size else _with_zero_rows(rows, size)


def _cut(name: str, shape: tuple[int, ...]) -> Cut:
    """A narrowed matrix and its scales are cut as the matrix is; one scale a row stays whole where columns are cut."""
    matrix = name.removesuffix("_packed").removesuffix("_scale")
    if shape[1:] == (1,) and matrix.endswith(("o_proj.weight", "down_proj.weight")):
        return "whole"
    return next((cut for end, cut in _CUTS.items() if matrix.endswith(end)), "whole")


def _with_zero_rows(rows: torch.Tensor, size: int) -> torch.Tensor:
    padded = rows.new_zeros((size, *rows.shape[1:]))
    padded[: len(rows)] = rows
    return padded
