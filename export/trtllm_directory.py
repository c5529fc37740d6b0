"""A source as the checkpoint that `trtllm-build` reads: one file for each tensor- and pipeline-parallel rank."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from ..runtime.errors import ModelError
from ..runtime.model.config import ModelConfig
from .contents import Contents, Report
from .folder import Folder, whole_directory
from .options import ExportOptions
from .safetensors_file import SafetensorsFile
from .shards import Sharding
from .source import Source
from .stacks import Slot, Stack
from .trtllm_config import trtllm_fields

_OUTER = {
    "model.embed_tokens": "transformer.vocab_embedding",
    "model.embed_positions": "transformer.position_embedding",
    "model.norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
_LAYER = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_layernorm",
    "self_attn.q_proj": "attention.qkv",
    "self_attn.o_proj": "attention.dense",
    "mlp.gate_proj": "mlp.fc",
    "mlp.up_proj": "mlp.gate",
    "mlp.down_proj": "mlp.proj",
}
FP8_SCALES = ("weights_scaling_factor", "activation_scaling_factor")
CACHE_SCALE = "kv_cache_scaling_factor"
BUILDER = "trtllm-build"


def export_trtllm(source: Source, target: Path, options: ExportOptions, report: Report) -> Contents:
    """Raises `ModelError` where the format has no place for the model, it cannot be cut, the target is taken, or the
    quality is below its bound."""
    config = msgspec.structs.replace(source.config, quantization=options.quantize)
    fields = trtllm_fields(config, options.tp, options.pp)
    if config.num_layers % options.pp:
        raise ModelError(f"{config.num_layers} layers cannot be divided over {options.pp} pipeline stages")
    contents = Contents(source, options.quantize, own_head=True, whole=True, text=options.text)
    with whole_directory(target, source=options.source, replace=options.force) as folder:
        _Ranks(folder, contents, options).write(report)
        contents.check_quality(options.max_kl, options.accept_quality)
        folder.write_json("config.json", fields)
    return contents


def build_command(checkpoint: Path, engine: Path, options: ExportOptions) -> list[str]:
    """`trtllm-build` over a checkpoint, sized as the options say."""
    sizes = {
        "max_batch_size": options.max_rows,
        "max_seq_len": options.max_context,
        "max_num_tokens": options.max_batch_tokens,
    }
    words = [BUILDER, "--checkpoint_dir", str(checkpoint), "--output_dir", str(engine)]
    given = {name: size for name, size in sizes.items() if size is not None}
    return words + [word for name, size in given.items() for word in (f"--{name}", str(size))]


def run_builder(command: list[str]) -> bool:
    """False where TensorRT-LLM is not installed. Raises `ModelError` where the build fails."""
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run(command)
    if done.returncode:
        raise ModelError(f"{command[0]} failed with status {done.returncode}")
    return True


class _Ranks:
    """All ranks' files, written at once, so that the source is read once."""

    def __init__(self, folder: Folder, contents: Contents, options: ExportOptions) -> None:
        self._contents = contents
        self._config, self._tp, self._pp = contents.config, options.tp, options.pp
        self._sharding = Sharding(contents.config, options.tp)
        self._files = [
            SafetensorsFile(folder, f"rank{stage * options.tp + rank}.safetensors", self._slots(stage))
            for stage in range(options.pp)
            for rank in range(options.tp)
        ]

    def write(self, report: Report) -> None:
        for slot, tensor in zip(self._contents.slots, self._contents.tensors(report), strict=True):
            for rank in range(self._tp):
                file = self._files[self._stage(slot) * self._tp + rank]
                file.add(self._sharding.part(slot.name, tensor, rank))
        for number, file in enumerate(self._files):
            for scale in self._scales(number // self._tp):
                file.add(torch.tensor([scale]))
            file.close()

    def _slots(self, stage: int) -> list[Slot]:
        """Scales of fp8 come last, since they are known when all else is written."""
        named = [slot for stack in self._stacks(stage) for slot in self._named(stack)]
        scales = [f"{module}.{kind}" for module, _ in self._narrowed(stage) for kind in FP8_SCALES]
        caches = [
            f"transformer.layers.{at}.attention.{CACHE_SCALE}" for at, _ in enumerate(self._layers(stage))
        ]
        return named + [Slot(name, "F32", (1,)) for name in scales + caches]

    def _scales(self, stage: int) -> Iterator[float]:
        """Of each matrix and of what it is multiplied by; then one of each layer's keys and values."""
        for _, first in self._narrowed(stage):
            yield from self._contents.whole_scales[first]
        for layer in self._layers(stage):
            yield max(self._contents.kv_scales[layer])

    def _narrowed(self, stage: int) -> Iterator[tuple[str, str]]:
        """Each fp8 matrix of theirs, and the first of ours that were narrowed with it."""
        for stack in self._stacks(stage):
            if stack[0].dtype == "F8_E4M3":
                first = stack[0].name.removesuffix(".weight")
                names = (_name(slot.name, self._config, self._pp) for slot in stack)
                yield from ((name.removesuffix(".weight"), first) for name in dict.fromkeys(names))

    def _layers(self, stage: int) -> range:
        """Those whose cache has a scale."""
        count = self._config.num_layers // self._pp if self._config.quantization == "fp8" else 0
        return range(stage * count, (stage + 1) * count)

    def _stacks(self, stage: int) -> list[Stack]:
        return [stack for stack in self._contents.stacks if self._stage(stack[0]) == stage]

    def _named(self, stack: Stack) -> list[Slot]:
        """Query, key and value are one tensor; gate and up are two."""
        parts = [slot.cut(self._sharding) for slot in stack]
        names = [_name(slot.name, self._config, self._pp) for slot in stack]
        if not stack[0].name.rpartition(".")[0].endswith("q_proj"):
            return [msgspec.structs.replace(s, name=n) for s, n in zip(parts, names, strict=True)]
        rows = sum(slot.shape[0] for slot in parts)
        return [Slot(names[0], parts[0].dtype, (rows, *parts[0].shape[1:]))]

    def _stage(self, slot: Slot) -> int:
        if slot.name.startswith("model.layers."):
            return int(slot.name.split(".")[2]) * self._pp // self._config.num_layers
        return 0 if slot.name.startswith("model.embed") else self._pp - 1


def _name(name: str, config: ModelConfig, pp: int) -> str:
    module, _, kind = name.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    local = int(layer) % (config.num_layers // pp)
    if part in ("self_attn.k_proj", "self_attn.v_proj"):
        part = "self_attn.q_proj"
    own = "mlp.fc" if part == "mlp.up_proj" and not config.gated_mlp else _LAYER[part]
    return f"transformer.layers.{local}.{own}.{kind}"
