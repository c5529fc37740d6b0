"""Tensors of a GGUF file under their Hugging Face names, dequantised one at a time."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from ..errors import ModelError
from ..model.config import ModelConfig
from .gguf_file import GgufFile, GgufTensor
from .source import Listed

if TYPE_CHECKING:
    import torch

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IGNORED = {"rope_freqs.weight"}
"""Read by the configuration, not by the model."""
_CHUNK_ELEMENTS = 1 << 22
"""Dequantised at a time: the library makes several arrays of this size on the way."""
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


class GgufWeights(Listed[GgufTensor]):
    """`Weights` of a GGUF file. Architecture `llama` stores the rows of q and k interleaved for its own rotary
    kernel; they are put back into halves here."""

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        kept = {name: tensor for name, tensor in file.tensors.items() if name not in _IGNORED}
        super().__init__(str(file.path), {_hf_name(file, name): tensor for name, tensor in kept.items()})
        self._data = file.data
        for name, tensor in {tensor.kind: (name, tensor) for name, tensor in kept.items()}.values():
            if not _is_known(tensor.kind):
                raise ModelError(f"{self.source}: tensor {name}: {tensor.kind.name} is not served")
        interleaved = file.metadata["general.architecture"] == "llama"
        self._heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads} if interleaved else {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.known(name).shape

    def get(self, name: str) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.array(name))

    def array(self, name: str) -> NDArray[np.float32]:
        """As `get`, in float32 and without torch."""
        tensor = self.known(name)
        rows = np.frombuffer(self._data, np.uint8, tensor.nbytes, tensor.start)
        rows = rows.reshape(math.prod(tensor.shape[:-1]), -1)
        values = np.empty((len(rows), tensor.shape[-1]), np.float32)
        step = max(1, _CHUNK_ELEMENTS // tensor.shape[-1])
        for at in range(0, len(rows), step):
            values[at : at + step] = dequantize(rows[at : at + step], tensor.kind)
        values = values.reshape(tensor.shape)
        num_heads = self._heads.get(name.split(".")[-2])
        return values if num_heads is None else _halves(values, num_heads)


def _is_known(kind: GGMLQuantizationType) -> bool:
    """Whether the library makes numbers of this type; one block of zeros tells."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:  # the library's word for a type that it lacks
        return False
    return True


def _hf_name(file: GgufFile, name: str) -> str:
    match = _NAME.fullmatch(name)
    if match:
        layer, part, kind = match.groups()
        hf_part = (_OUTER if layer is None else _LAYER).get(part)
        if hf_part:
            return f"{hf_part}.{kind}" if layer is None else f"model.layers.{int(layer)}.{hf_part}.{kind}"
    raise ModelError(f"{file.path}: the tensor {name} belongs to no model that is served")


def _halves(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])  # head, rotary pair, half, in
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
