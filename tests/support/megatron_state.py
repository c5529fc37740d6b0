"""Small Megatron checkpoints of our own making, for what the real ones do not show: names, types and faults."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

ARGS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "max_position_embeddings": 32,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "normalization": "RMSNorm",
    "norm_epsilon": 1e-5,
    "swiglu": True,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "padded_vocab_size": 40,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
}


def model(*, dtype: torch.dtype = torch.float32, fused_norms: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of `ARGS` under Megatron's names; norms named as the fused layers of Transformer Engine name them,
    or as Megatron's own layers do."""
    norms = ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")
    shapes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (40, 16)}
    for layer in range(2):
        prefix = f"decoder.layers.{layer}."
        shapes |= {
            prefix + (norms[0] if fused_norms else "input_layernorm.weight"): (16,),
            prefix + (norms[1] if fused_norms else "pre_mlp_layernorm.weight"): (16,),
            prefix + "self_attention.linear_qkv.weight": (32, 16),
            prefix + "self_attention.linear_proj.weight": (16, 16),
            prefix + "mlp.linear_fc1.weight": (48, 16),
            prefix + "mlp.linear_fc2.weight": (16, 24),
        }
    shapes |= {"decoder.final_layernorm.weight": (16,), "output_layer.weight": (40, 16)}
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def save(directory: Path, state: Any, rank: str = "mp_rank_00") -> Path:
    path = directory / rank / "model_optim_rng.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return directory


def state(tensors: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"args": Namespace(**(ARGS | changes)), "iteration": 10, "model": tensors or model()}
