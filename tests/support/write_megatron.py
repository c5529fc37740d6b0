"""Writes the checkpoints in tests/export/megatron/written with the real megatron-core, on the CPU.

    python -m venv v && v/bin/pip install torch==2.13.0 numpy einops psutil megatron-core==0.16.1
    v/bin/python tests/support/write_megatron.py tests/export/megatron/written [CASE …]

Each case becomes CASE.tar.xz: the checkpoint as a training run leaves it (weights, Adam's state, random states,
arguments) and `logits.npz` with Megatron's own forward pass. Megatron expects a GPU in six places; they get stand-ins.
Weights lie on a coarse grid, so that the archives stay small.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import random
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

PROMPT = [(11 * i * i + 5 * i + 2) % 90 for i in range(12)]
SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 90, "seq_length": 64}
LLAMA = {
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "group_query_attention": True,
    "num_query_groups": 2,
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": True,
    "ffn_hidden_size": 48,
    "bias_gelu_fusion": False,
    "rotary_base": 50000,
}
GPT3: dict[str, Any] = {"ffn_hidden_size": 64}
NEMOTRON = LLAMA | {
    "normalization": "LayerNorm",
    "apply_layernorm_1p": True,
    "swiglu": False,
    "squared_relu": True,
    "rotary_percent": 0.5,
    "num_query_groups": 1,
}
QWEN3 = LLAMA | {"qk_layernorm": True, "kv_channels": 16, "untie_embeddings_and_output_weights": False}
QWEN2 = LLAMA | {"add_qkv_bias": True, "norm_epsilon": 1e-6}
LLAMA3 = LLAMA | {"use_rope_scaling": True, "rope_scaling_factor": 4.0, "rotary_base": 500000}
RMS1P = LLAMA | {"apply_layernorm_1p": True, "rotary_seq_len_interpolation_factor": 2.0}

DEEP = {"num_layers": 4}
DIST, TORCH = {"ckpt_format": "torch_dist"}, {"ckpt_format": "torch"}
STACKED, NUMBERED = DIST | {"layers": "stacked"}, DIST | {"layers": "numbered"}
SPLIT: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_model_parallel_size": 2},
    "tp4": {"tensor_model_parallel_size": 4},
    "pp2": {"pipeline_model_parallel_size": 2},
}
SPLIT["tp2pp2"] = SPLIT["tp2"] | SPLIT["pp2"]
SPLIT["pp2vp2"] = SPLIT["pp2"] | {"virtual_pipeline_model_parallel_size": 2} | DEEP

CASES: dict[str, dict[str, Any]] = {
    "dist-llama-tp1-stacked": LLAMA | STACKED,
    "dist-llama-tp2-numbered": LLAMA | NUMBERED | SPLIT["tp2"],
    "dist-llama-tp4-stacked": LLAMA | STACKED | SPLIT["tp4"],
    "dist-llama-pp2-stacked": LLAMA | STACKED | SPLIT["pp2"],
    "dist-llama-tp2pp2-numbered": LLAMA | NUMBERED | SPLIT["tp2pp2"],
    "dist-llama-tp2-halves": LLAMA | DIST | {"layers": "numbered", "halves": True} | SPLIT["tp2"],
    "dist-llama-tp2-inside": LLAMA | NUMBERED | {"common_inside": True} | SPLIT["tp2"],
    "dist-gpt3-tp2-stacked": GPT3 | STACKED | SPLIT["tp2"],
    "dist-nemotron-tp2-numbered": NEMOTRON | NUMBERED | SPLIT["tp2"],
    "dist-qwen3-tp2pp2-stacked": QWEN3 | STACKED | SPLIT["tp2pp2"],
    "dist-qwen2-tp4-numbered": QWEN2 | NUMBERED | SPLIT["tp4"],
    "torch-llama-tp1": LLAMA | TORCH,
    "torch-llama-tp2": LLAMA | TORCH | SPLIT["tp2"],
    "torch-llama-tp4": LLAMA | TORCH | SPLIT["tp4"],
    "torch-llama3-pp2": LLAMA3 | TORCH | SPLIT["pp2"],
    "torch-llama-pp2vp2": LLAMA | TORCH | SPLIT["pp2vp2"],
    "torch-gpt3-tp2": GPT3 | TORCH | SPLIT["tp2"],
    "torch-gpt3-tp2pp2": GPT3 | TORCH | SPLIT["tp2pp2"],
    "torch-nemotron-tp4": NEMOTRON | TORCH | SPLIT["tp4"],
    "torch-qwen3-tp2": QWEN3 | TORCH | SPLIT["tp2"],
    "torch-rms1p-tp1": RMS1P | TORCH,
}


def arguments(case: dict[str, Any]) -> argparse.Namespace:
    """What Megatron-LM's training script keeps: the fields that shape the model, and some of the many others."""
    from megatron.core.enums import ModelType
    from megatron.core.transformer.enums import AttnBackend

    plain = {
        "kv_channels": None,
        "group_query_attention": False,
        "num_query_groups": 1,
        "position_embedding_type": "learned_absolute",
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": False,
        "rope_scaling_factor": 8.0,
        "normalization": "LayerNorm",
        "norm_epsilon": 1e-5,
        "apply_layernorm_1p": False,
        "swiglu": False,
        "squared_relu": False,
        "quick_geglu": False,
        "bias_gelu_fusion": True,
        "bias_swiglu_fusion": True,
        "add_bias_linear": True,
        "add_qkv_bias": True,
        "qk_layernorm": False,
        "untie_embeddings_and_output_weights": False,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "make_vocab_size_divisible_by": 32,
        "num_experts": None,
        "multi_latent_attention": False,
        "window_size": None,
        "mtp_num_layers": None,
        "tokenizer_type": "HuggingFaceTokenizer",
        "params_dtype": torch.float32,
        "bf16": False,
        "fp16": False,
        "attention_backend": AttnBackend.auto,
        "model_type": ModelType.encoder_or_decoder,
        "data_path": None,
        "save": Path("checkpoints"),
        "lr": 1e-4,
        "iteration": 10,
    }
    args = argparse.Namespace(**(plain | SIZES | case))
    args.kv_channels = args.kv_channels or args.hidden_size // args.num_attention_heads
    args.max_position_embeddings = args.seq_length
    unit = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    args.padded_vocab_size = -(-args.vocab_size // unit) * unit
    return args


class ZeroCentredNorm(torch.nn.Module):
    """What Transformer Engine's norms compute with `zero_centered_gamma`; Megatron's CPU stand-in refuses it."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size))
        self.rms, self.eps = config.normalization == "RMSNorm", eps
        if not self.rms:
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = self.weight.shape
        if self.rms:
            return torch.nn.functional.rms_norm(x, shape, self.weight + 1, self.eps)
        return torch.nn.functional.layer_norm(x, shape, self.weight + 1, self.bias, self.eps)


def stand_ins() -> None:
    from megatron.core.tensor_parallel import random as tracked

    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()  # type: ignore[assignment]
    tracked.CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()


def build(args: argparse.Namespace, stage: int | None) -> Any:
    import torch.nn.functional as F
    from megatron.core import parallel_state as mpu
    from megatron.core.activations import squared_relu
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_block import (
        TransformerBlockSubmodules,
        get_num_layers_to_build,
    )
    from megatron.core.transformer.transformer_config import TransformerConfig

    activation = F.silu if args.swiglu else squared_relu if args.squared_relu else F.gelu
    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        kv_channels=args.kv_channels,
        normalization=args.normalization,
        layernorm_epsilon=args.norm_epsilon,
        layernorm_zero_centered_gamma=args.apply_layernorm_1p,
        gated_linear_unit=args.swiglu,
        activation_func=activation,
        bias_activation_fusion=args.bias_gelu_fusion,
        add_bias_linear=args.add_bias_linear,
        add_qkv_bias=args.add_qkv_bias,
        qk_layernorm=args.qk_layernorm,
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        gradient_accumulation_fusion=False,
    )
    spec = get_gpt_layer_local_spec(qk_layernorm=args.qk_layernorm, normalization=args.normalization)
    if args.apply_layernorm_1p:
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = ZeroCentredNorm
        layers = get_num_layers_to_build(config, vp_stage=stage)
        spec = TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=ZeroCentredNorm)
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
        seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
        parallel_output=False,
        vp_stage=stage,
    ).eval()


def randomise(model: Any) -> None:
    """Values on a grid, of a scale that makes every part of the model matter. Replicas get the same, by name."""
    import zlib

    from megatron.core import parallel_state as mpu

    tied = "embedding.word_embeddings.weight"
    for name, parameter in model.named_parameters():
        split = getattr(parameter, "tensor_model_parallel", False)
        parts, local = name.split("."), name
        if "layers" in parts:
            at = parts.index("layers") + 1
            parts[at] = str(model.decoder.layers[int(parts[at])].layer_number)
            local = ".".join(parts)
        if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            local = tied
        seed = zlib.crc32(f"{local} {mpu.get_tensor_model_parallel_rank() if split else 0}".encode())
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randint(-2, 3, parameter.shape, generator=generator) / 8
        one = name.endswith("norm.weight") and not isinstance(
            model.decoder.layers[0].input_layernorm, ZeroCentredNorm
        )
        parameter.data.copy_(
            steps + 1 if one or name.endswith(("q_layernorm.weight", "k_layernorm.weight")) else steps
        )


def logits(models: list[Any]) -> torch.Tensor | None:
    """Through all stages, in order; the last one has them [tokens, padded vocabulary]."""
    from megatron.core import parallel_state as mpu

    tokens, length = torch.tensor([PROMPT]), len(PROMPT)
    positions = torch.arange(length)[None]
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
    stages, rank = mpu.get_pipeline_model_parallel_world_size(), mpu.get_pipeline_model_parallel_rank()
    hidden, result = torch.zeros(length, 1, models[0].config.hidden_size), None
    group = mpu.get_pipeline_model_parallel_group()
    for turn in range(stages * len(models)):
        at, model = turn % stages, models[turn // stages]
        if at == rank:
            model.set_input_tensor(hidden if turn else None)
            with torch.no_grad():
                out = model(tokens, positions, mask)
            if turn == stages * len(models) - 1:
                result = out[0]
            else:
                hidden = out.contiguous()
        if stages > 1:
            dist.broadcast(hidden, dist.get_global_rank(group, at), group=group)
    return result


def optimizer_of(models: list[Any]) -> Any:
    """Adam, after one step of tiny gradients: it holds two moments of every weight."""
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.optimizer.optimizer import FP32Optimizer, MegatronOptimizer

    parameters = [parameter for model in models for parameter in model.parameters()]
    adam = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    adam.step()
    adam.zero_grad()
    adam.param_groups[0].update(wd_mult=1.0, lr_mult=1.0, is_expert_parallel=False, is_decoupled_lr=False)
    wrapped = FP32Optimizer.__new__(FP32Optimizer)  # its own start puts a scale on the GPU
    config = OptimizerConfig(optimizer="adam", lr=1e-4)
    MegatronOptimizer.__init__(wrapped, adam, config, lambda optimizer, _=None: None)
    wrapped.is_stub_optimizer = False
    return wrapped


def rng_state() -> list[dict[str, Any]]:
    return [
        {
            "random_rng_state": random.getstate(),
            "np_rng_state": np.random.get_state(),
            "torch_rng_state": torch.get_rng_state(),
            "cuda_rng_state": torch.get_rng_state(),
            "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
        }
    ]


def save_torch(root: Path, args: argparse.Namespace, models: list[Any]) -> None:
    from megatron.core import parallel_state as mpu

    state: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": 10}
    for index, model in enumerate(models):
        state["model" if len(models) == 1 else f"model{index}"] = model.state_dict_for_save_checkpoint()
    state["optimizer"] = optimizer_of(models).state_dict()
    state["opt_param_scheduler"] = {"max_lr": 1e-4, "num_steps": 160}
    state["rng_state"] = rng_state()
    state["num_floating_point_operations_so_far"] = 123456789.0
    name = f"mp_rank_{mpu.get_tensor_model_parallel_rank():02d}"
    if args.pipeline_model_parallel_size > 1:
        name += f"_{mpu.get_pipeline_model_parallel_rank():03d}"
    directory = root / "iter_0000010" / name
    directory.mkdir(parents=True)
    torch.save(state, directory / "model_optim_rng.pt")


def save_dist(root: Path, args: argparse.Namespace, models: list[Any]) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core import parallel_state as mpu
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    [model] = models
    metadata = {
        "non_homogeneous_layers": args.layers == "numbered",
        "singleton_local_shards": "halves" in args,
    }
    metadata["dp_cp_group"] = mpu.get_data_parallel_group(with_context_parallel=True)
    sharded = model.sharded_state_dict(metadata=metadata)
    tensor, stage = mpu.get_tensor_model_parallel_rank(), mpu.get_pipeline_model_parallel_rank()
    shape = (args.pipeline_model_parallel_size, args.tensor_model_parallel_size)
    state: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": 10}
    state["opt_param_scheduler"] = {"max_lr": 1e-4, "num_steps": 160}
    if "common_inside" in args:
        common = ShardedObject("common_state", state, (1,), (0,), replica_id=dist.get_rank())
        state = {"common_state": common}
    state["model"] = sharded
    optimizer = optimizer_of(models)
    state["optimizer"] = optimizer.sharded_state_dict({"model": model.sharded_state_dict(metadata=metadata)})
    state["rng_state"] = ShardedObject("rng_state", rng_state(), shape, (stage, tensor))
    directory = root / "iter_0000010"
    directory.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dist_checkpointing.save(state, str(directory), validate_access_integrity=False)
    if "common_inside" in args and dist.get_rank() == 0:
        (directory / "common.pt").unlink()  # what later versions no longer write


def rank_main(rank: int, world: int, rendezvous: str, root: Path, case: dict[str, Any]) -> None:
    from megatron.core import parallel_state as mpu

    torch.set_num_threads(1)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    stand_ins()
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    args = arguments(case)
    chunks = args.virtual_pipeline_model_parallel_size
    mpu.initialize_model_parallel(args.tensor_model_parallel_size, args.pipeline_model_parallel_size, chunks)
    models = [build(args, stage) for stage in (range(chunks) if chunks else [None])]
    for model in models:
        randomise(model)
    result = logits(models)
    if result is not None and mpu.get_tensor_model_parallel_rank() == 0:
        np.savez_compressed(root / "logits.npz", tokens=PROMPT, logits=result.numpy())
    (save_dist if args.ckpt_format == "torch_dist" else save_torch)(root, copy.copy(args), models)
    if rank == 0:
        (root / "latest_checkpointed_iteration.txt").write_text("10")
    dist.barrier()
    dist.destroy_process_group()


def write(case: dict[str, Any], root: Path) -> None:
    """The checkpoint and its logits into `root`, which exists: one process for each rank."""
    world = case.get("tensor_model_parallel_size", 1) * case.get("pipeline_model_parallel_size", 1)
    with tempfile.TemporaryDirectory() as scratch:
        arguments_ = (world, f"{scratch}/rendezvous", root, case)
        processes.start_processes(rank_main, arguments_, nprocs=world, start_method="spawn")


def main(target: Path, names: list[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as scratch:
            write(CASES[name], Path(scratch))
            with tarfile.open(target / f"{name}.tar.xz", "w:xz", preset=9) as archive:
                for path in sorted(Path(scratch).rglob("*")):
                    entry = archive.gettarinfo(path, path.relative_to(scratch).as_posix())
                    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
                    with path.open("rb") if path.is_file() else contextlib.nullcontext() as file:
                        archive.addfile(entry, file)
        sys.stdout.write(f"{name}: {(target / f'{name}.tar.xz').stat().st_size} bytes\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
