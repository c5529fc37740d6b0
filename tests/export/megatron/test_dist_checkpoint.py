"""Megatron's `torch_dist` format beyond what the real checkpoints show: chunks cut along any axis, tables that lie."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron_state as made
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from jitney.export.open import open_source
from jitney.runtime.errors import ModelError

Chunks = dict[tuple[int, ...], torch.Tensor]


def cut(tensor: torch.Tensor, *parts: int) -> Chunks:
    """A grid of chunks by their offsets: so many along each axis, uneven where it does not divide."""
    chunks: Chunks = {(0,) * tensor.dim(): tensor}
    for axis, count in enumerate(parts):
        pieces: Chunks = {}
        for offsets, chunk in chunks.items():
            at = offsets[axis]
            for piece in chunk.tensor_split(count, axis):
                pieces[(*offsets[:axis], at, *offsets[axis + 1 :])] = piece
                at += piece.shape[axis]
        chunks = pieces
    return chunks


def write(directory: Path, tensors: dict[str, Chunks], **changes: Any) -> tuple[Metadata, Path]:
    """All chunks in one file, the table beside it; returned to be spoiled."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
    )
    torch.save({"args": made.state(**changes)["args"]}, directory / "common.pt")
    entries: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    data = io.BytesIO()
    for name, chunks in tensors.items():
        first = next(iter(chunks.values()))
        ends = [
            [o + s for o, s in zip(offsets, chunk.shape, strict=True)] for offsets, chunk in chunks.items()
        ]
        size = torch.Size(max(each[axis] for each in ends) for axis in range(first.dim()))
        table = [ChunkStorageMetadata(torch.Size(at), chunk.shape) for at, chunk in chunks.items()]
        entries[name] = TensorStorageMetadata(TensorProperties(first.dtype), size, table)
        for offsets, chunk in chunks.items():
            start = data.tell()
            torch.save(chunk.clone(), data)
            places[MetadataIndex(name, torch.Size(offsets))] = _StorageInfo(
                "__0_0.distcp", start, data.tell() - start
            )
    (directory / "__0_0.distcp").write_bytes(data.getvalue())
    metadata = Metadata(entries, storage_data=places)
    return metadata, store(directory, metadata)


def store(directory: Path, metadata: Any) -> Path:
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    return directory


@pytest.mark.parametrize("parts", [(1,), (2,), (3,), (1, 2), (2, 3), (5, 5)])
@pytest.mark.parametrize("stacked", [False, True])
def test_chunks_along_any_axis(parts: tuple[int, ...], stacked: bool, tmp_path: Path) -> None:
    tensors = made.model(fused_norms=True)
    expected = open_source(made.save(tmp_path / "plain", made.state(tensors)))
    stored: dict[str, Chunks] = {}
    for name, tensor in tensors.items():
        if stacked and ".layers.0." in name:
            both = torch.stack([tensor, tensors[name.replace(".0.", ".1.")]])
            depth = 1 if parts == (2,) else 2
            stored[name.replace(".0.", ".")] = cut(both, depth, *parts[: tensor.dim()])
        elif not stacked or ".layers." not in name:
            stored[name] = cut(tensor, *parts[: tensor.dim()])
    write(tmp_path / "dist", stored)
    found = open_source(tmp_path / "dist")
    assert found.config == expected.config
    for name in expected.weights.names():
        assert torch.equal(found.weights.get(name), expected.weights.get(name)), name


FC1 = "decoder.layers.1.mlp.linear_fc1.weight"


def spoil_place(**changes: Any) -> Callable[[Metadata], None]:
    def spoil(metadata: Metadata) -> None:
        index = MetadataIndex(FC1, torch.Size([0, 0]))
        fields = vars(metadata.storage_data[index]) | changes
        metadata.storage_data[index] = _StorageInfo(**fields)

    return spoil


def spoil_chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Callable[[Metadata], None]:
    def spoil(metadata: Metadata) -> None:
        metadata.state_dict_metadata[FC1].chunks[0] = ChunkStorageMetadata(
            torch.Size(offsets), torch.Size(sizes)
        )

    return spoil


def entry(name: str, value: Any) -> Callable[[Metadata], None]:
    return lambda metadata: metadata.state_dict_metadata.__setitem__(name, value)


def resize(size: tuple[int, ...]) -> Callable[[Metadata], None]:
    return lambda metadata: setattr(metadata.state_dict_metadata[FC1], "size", torch.Size(size))


def drop_chunk(metadata: Metadata) -> None:
    metadata.state_dict_metadata[FC1].chunks.pop()


def double_chunk(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata[FC1].chunks
    chunks[1] = chunks[0]


def many_layers(metadata: Metadata) -> None:
    properties = TensorProperties(torch.float32)
    stacked = TensorStorageMetadata(properties, torch.Size([2**40, 4]), [])
    metadata.state_dict_metadata["decoder.layers.mlp.weight"] = stacked


SPOILED: dict[str, tuple[Callable[[Metadata], None], str]] = {
    "another directory": (spoil_place(relative_path="../__0_0.distcp"), "which is no file beside it"),
    "an absolute path": (spoil_place(relative_path="/etc/passwd"), "which is no file beside it"),
    "no such file": (spoil_place(relative_path="__9_9.distcp"), "cannot be read"),
    "past the end": (spoil_place(offset=2**40), "of __0_0.distcp, which has"),
    "a negative place": (spoil_place(offset=-1), "a chunk at -1"),
    "no bytes": (spoil_place(length=0), "expected a zip archive"),
    "another chunk's bytes": (spoil_place(offset=0), "__0_0.distcp"),
    "compressed": (spoil_place(transform_descriptors=["zstd"]), "compressed or transformed"),
    "a chunk nobody has": (spoil_chunk((1, 0), (24, 16)), "is nowhere"),
    "a chunk of another size": (spoil_chunk((0, 0), (24, 15)), "expected \\(24, 15\\) of float32"),
    "a whole of another size": (resize((24, 16)), "inside \\(24, 16\\)"),
    "a whole with a gap": (resize((72, 16)), "expected \\(48, 16\\), found \\(72, 16\\)"),
    "a chunk missing": (drop_chunk, "its pieces do not cover \\(48, 16\\)"),
    "a chunk twice": (double_chunk, "its pieces do not cover \\(48, 16\\)"),
    "a million million layers": (many_layers, "at most 1024 layers"),
    "bytes for a tensor": (entry(FC1, BytesStorageMetadata()), f"{FC1}: expected a tensor"),
    "a number for a tensor": (entry(FC1, 7), "stands for nothing"),
    "a name that is no data": (entry("decoder.x", ...), "it names builtins.Ellipsis"),
}


@pytest.mark.parametrize(("spoil", "named"), SPOILED.values(), ids=SPOILED)
def test_tables_that_lie(spoil: Callable[[Metadata], None], named: str, tmp_path: Path) -> None:
    metadata, directory = write(
        tmp_path, {name: cut(t, 2) for name, t in made.model(fused_norms=True).items()}
    )
    open_source(directory)
    spoil(metadata)
    store(directory, metadata)
    with pytest.raises(ModelError, match=f"(?s){tmp_path}.*{named}"):
        source = open_source(directory)
        for name in source.weights.names():
            source.weights.get(name)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (
            "metadata.json",
            '{"sharded_backend": "zarr"}',
            "expected the backend torch_dist, version 1, found 'zarr'",
        ),
        (
            "metadata.json",
            '{"sharded_backend": "torch_dist", "sharded_backend_version": 2}',
            "found 'torch_dist', 2",
        ),
        ("metadata.json", "[]", "metadata.json"),
        (".metadata", "", ".metadata: not metadata that can be read safely"),
    ],
)
def test_files_that_are_not_megatrons(file: str, content: str, named: str, tmp_path: Path) -> None:
    write(tmp_path, {name: cut(tensor) for name, tensor in made.model(fused_norms=True).items()})
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match=named):
        open_source(tmp_path)


def test_without_arguments(tmp_path: Path) -> None:
    write(tmp_path, {name: cut(tensor) for name, tensor in made.model(fused_norms=True).items()})
    torch.save({"iteration": 3}, tmp_path / "common.pt")
    with pytest.raises(
        ModelError, match="expected Megatron's `args` in the common state, found \\['iteration'\\]"
    ):
        open_source(tmp_path)
    (tmp_path / "common.pt").unlink()
    with pytest.raises(ModelError, match="common_state/shard_0_1: its bytes are nowhere"):
        open_source(tmp_path)
