"""A source as an engine directory: fused, narrowed where asked, in the order of loading, every block's digest noted."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from ..runtime.errors import InvalidField
from ..runtime.model.config import ModelConfig
from ..runtime.process import has_card
from ..runtime.weights import manifest as manifests
from ..runtime.weights.engine import EngineWeights, weights_name
from ..runtime.weights.manifest import Limits, Manifest, sealed
from ..runtime.weights.split_rows import GATE_UP, QKV
from .contents import Contents, Report
from .folder import Folder, whole_directory
from .machine import tiles_here
from .options import SIZES, ExportOptions
from .safetensors_file import SafetensorsFile
from .shards import Sharding
from .source import Source
from .stacks import Slot
from .text_side import write_text_side


def export_engine(source: Source, target: Path, options: ExportOptions, report: Report) -> Manifest:
    """Raises `ModelError` where the source is damaged, the target is taken, or the quality is below its bound;
    `InvalidField` where kernels are asked for and there is no card."""
    if options.kernels and not has_card(required=False):
        raise InvalidField("kernels", "an NVIDIA card to compile for", "a machine where torch finds none")
    contents = Contents(
        source,
        options.quantize,
        narrow_head=options.quantize == "int8",
        num_ranks=options.tp,
        text=options.text,
    )
    limits = Limits(**{name: getattr(options, name) for name in SIZES})
    with whole_directory(target, source=options.source, replace=options.force) as folder:
        write_text_side(folder, source)
        _write_weights(folder, contents, options.tp, report)
        contents.check_quality(options.max_kl, options.accept_quality)
        if options.kernels:
            _write_kernels(folder, contents.config, limits)
        manifest = Manifest(
            made_by=f"jitney {version('jitney')}",
            source=options.source,
            options=options.words(),
            config=contents.config,
            tp=options.tp,
            rank_config=None if options.tp == 1 else Sharding(contents.config, options.tp).rank_config,
            quantize=options.quantize,
            removed={part.group: part.num_bytes for part in source.stripped},
            weight_bytes=contents.num_bytes,
            limits=limits,
            quality=contents.quality,
            kv_scales=contents.kv_scales,
            files=folder.stored(),
        )
        if options.tp == 1:
            manifest = msgspec.structs.replace(manifest, tiles=tiles_here(contents.config, limits))
        folder.write(manifests.NAME, sealed(manifest))
    return manifest


def _write_weights(folder: Folder, contents: Contents, tp: int, report: Report) -> None:
    """One file a rank, all written at once, so that the source is read once."""
    sharding = Sharding(contents.config, tp)
    stacks = [fused([slot.cut(sharding) for slot in stack]) for stack in contents.stacks]
    files = [SafetensorsFile(folder, weights_name(rank), stacks) for rank in range(tp)]
    for slot, tensor in zip(contents.slots, contents.tensors(report), strict=True):
        for rank, file in enumerate(files):
            file.add(sharding.part(slot.name, tensor, rank))
    for file in files:
        file.close()


def _write_kernels(folder: Folder, config: ModelConfig, limits: Limits) -> None:
    from .card import kernels_here

    kernels = kernels_here(config, EngineWeights(folder.path, config), limits)
    folder.write(kernels.made_for.file_name, kernels.encoded())


def fused(stack: Sequence[Slot]) -> Slot:
    """A stack as the one tensor that its parts are when they lie one after the other."""
    first = stack[0]
    if len(stack) == 1:
        return first
    start, module, kind = first.name.rsplit(".", 2)
    name = QKV if module == "q_proj" else GATE_UP
    rows = sum(slot.shape[0] for slot in stack)
    return Slot(f"{start}.{name}.{kind}", first.dtype, (rows, *first.shape[1:]))
