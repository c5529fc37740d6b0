"""What one tensor-parallel rank holds of a stored tensor, narrowed or not."""

from __future__ import annotations

import msgspec
from torch import Tensor

from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig
from .shards import Sharding
from .stacks import Slot


class Rank:
    """`config` is the shape of a rank's part. Raises `ModelError` where the model cannot be cut."""

    def __init__(self, config: ModelConfig, num_ranks: int, rank: int) -> None:
        self._sharding, self._rank, self._num_ranks = Sharding(config, num_ranks), rank, num_ranks
        self.config = self._sharding.rank_config

    def slot(self, slot: Slot) -> Slot:
        if _is_whole(slot):
            return slot
        shape = self._sharding.shape(_weight(slot.name), slot.shape)
        if len(shape) == 2 and shape[1] * self._num_ranks != slot.shape[1] != shape[1]:
            raise ModelError(
                f"{slot.name}: {slot.shape[1]} columns cannot be cut for {self._num_ranks} ranks"
            )
        return msgspec.structs.replace(slot, shape=shape)

    def part(self, slot: Slot, tensor: Tensor) -> Tensor:
        return tensor if _is_whole(slot) else self._sharding.part(_weight(slot.name), tensor, self._rank)


def _weight(name: str) -> str:
    """The matrix that a stored tensor belongs to, by whose name it is cut."""
    return name.removesuffix("_packed").removesuffix("_scale")


def _is_whole(slot: Slot) -> bool:
    """One scale a row stays whole where columns are cut."""
    columns_cut = slot.name.endswith(("o_proj.weight_scale", "down_proj.weight_scale"))
    return columns_cut and slot.shape[1] == 1
