"""A source as a Hugging Face directory: what transformers, vLLM, SGLang and TensorRT-LLM read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from .contents import Contents, Report
from .folder import Folder, whole_directory
from .hf_config import hf_fields, quantization_config
from .options import ExportOptions
from .safetensors_file import SafetensorsFile
from .source import Source
from .stacks import Slot
from .text_side import end_ids, write_text_side

SHARD_BYTES = 4 * 2**30


def export_huggingface(source: Source, target: Path, options: ExportOptions, report: Report) -> Contents:
    """`config.json` is written last: without it nobody takes the directory for a model.

    Raises `ModelError` where no family has the source's shape, the source is damaged, the target is taken, or the
    quality is below its bound.
    """
    contents = Contents(source, options.quantize, text=options.text)
    fields = hf_fields(contents.config) | end_ids(source)
    with whole_directory(target, source=options.source, replace=options.force) as folder:
        write_text_side(folder, source)
        _write_weights(folder, contents, report)
        contents.check_quality(options.max_kl, options.accept_quality)
        if contents.config.quantization is not None:
            fields["quantization_config"] = quantization_config(contents.config, contents.group)
        folder.write_json("config.json", fields)
    return contents


def _write_weights(folder: Folder, contents: Contents, report: Report) -> None:
    shards = _shards(contents.slots)
    extras = _extra_slots(contents)
    if extras:
        shards.append(extras)
    tensors = chain(contents.tensors(report), _extras(contents))
    total = len(shards)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if total == 1 else f"model-{number:05}-of-{total:05}.safetensors"
        file = SafetensorsFile(folder, name, shard)
        for slot in shard:
            file.add(next(tensors))
            places[slot.name] = name
        file.close()
    assert next(tensors, None) is None
    if total > 1:
        size = sum(slot.num_bytes for shard in shards for slot in shard)
        index = {"metadata": {"total_size": size}, "weight_map": places}
        folder.write_json("model.safetensors.index.json", index)


def _shards(slots: list[Slot]) -> list[list[Slot]]:
    shards: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if shards[-1] and size + slot.num_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += slot.num_bytes
    return shards


def _extra_slots(contents: Contents) -> list[Slot]:
    """Small tensors that readers expect beside the narrowed ones: of int4 the true shapes, of fp8 the scales of the
    cache, which are known when all else is written."""
    if contents.config.quantization == "fp8":
        layers = range(contents.config.num_layers)
        return [Slot(f"model.layers.{i}.self_attn.{kv}_scale", "F32", (1,)) for i in layers for kv in "kv"]
    return [Slot(f"{name}.weight_shape", "I64", (2,)) for name, _ in _packed(contents)]


def _extras(contents: Contents) -> Iterator[Tensor]:
    if contents.config.quantization == "fp8":
        yield from (torch.tensor([scale]) for pair in contents.kv_scales for scale in pair)
    yield from (torch.tensor(shape, dtype=torch.int64) for _, shape in _packed(contents))


def _packed(contents: Contents) -> Iterator[tuple[str, tuple[int, int]]]:
    for slot in contents.slots:
        if slot.name.endswith(".weight_packed"):
            yield slot.name.removesuffix(".weight_packed"), (slot.shape[0], slot.shape[1] * 8)
