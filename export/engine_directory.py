"""A source as an engine directory: fused, narrowed where asked, in the order of loading, every block's digest noted."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import msgspec

from ..runtime.weights import manifest as manifests
from ..runtime.weights.engine import EngineWeights, weights_name
from ..runtime.weights.manifest import Manifest, Narrowing, sealed
from ..runtime.weights.split_rows import GATE_UP, QKV
from .contents import Contents, Report
from .folder import Folder, whole_directory
from .machine import tiles_here
from .safetensors_file import SafetensorsFile
from .source import Source
from .stacks import Slot, Stack
from .text_side import write_text_side


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. `source` is its word for the checkpoint."""

    source: str
    quantize: Narrowing | None = None
    tp: int = 1
    max_kl: float | None = None
    accept_quality: bool = False
    text: Path | None = None
    force: bool = False

    def words(self) -> tuple[str, ...]:
        """As they are written in the manifest, to make the engine anew."""
        words: list[str] = []
        if self.quantize:
            words += ["--quantize", self.quantize]
        if self.tp != 1:
            words += ["--tp", str(self.tp)]
        if self.max_kl is not None:
            words += ["--max-kl", str(self.max_kl)]
        if self.text is not None:
            words += ["--text", str(self.text)]
        return (*words, *(["--accept-quality"] if self.accept_quality else []))


def export_engine(source: Source, target: Path, options: EngineOptions, report: Report) -> Manifest:
    """Raises `ModelError` where the source is damaged, the target is taken, or the quality is below its bound."""
    contents = Contents(source, options.quantize, narrow_head=options.quantize == "int8", text=options.text)
    with whole_directory(target, replace=options.force) as folder:
        write_text_side(folder, source)
        _write_weights(folder, contents, options.tp, report)
        contents.check_quality(options.max_kl, options.accept_quality)
        report("checking the files", 0, 1)
        manifest = Manifest(
            made_by=f"jitney {version('jitney')}",
            source=options.source,
            options=options.words(),
            config=contents.config,
            tp=options.tp,
            quantize=options.quantize,
            removed={part.group: part.num_bytes for part in source.stripped},
            weight_bytes=contents.num_bytes,
            quality=contents.quality,
            kv_scales=contents.kv_scales,
            files=folder.stored(),
        )
        if options.tp == 1:
            tiles = tiles_here(contents.config, EngineWeights(folder.path, manifest))
            manifest = msgspec.structs.replace(manifest, tiles=tiles)
        folder.write(manifests.NAME, sealed(manifest))
        report("checking the files", 1, 1)
    return manifest


def _write_weights(folder: Folder, contents: Contents, tp: int, report: Report) -> None:
    assert tp == 1
    file = SafetensorsFile(folder, weights_name(0), [fused(stack) for stack in contents.stacks])
    for tensor in contents.tensors(report):
        file.add(tensor)
    file.close()


def fused(stack: Stack) -> Slot:
    """A stack as the one tensor that its parts are when they lie one after the other."""
    first = stack[0]
    if len(stack) == 1:
        return first
    start, module, kind = first.name.rsplit(".", 2)
    name = QKV if module == "q_proj" else GATE_UP
    rows = sum(slot.shape[0] for slot in stack)
    return Slot(f"{start}.{name}.{kind}", first.dtype, (rows, *first.shape[1:]))
