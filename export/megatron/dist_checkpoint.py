"""Megatron's `torch_dist` format: torch's distributed checkpoint. `.metadata` says which chunk of which tensor lies
where in the `.distcp` files; each chunk is a file of its own as `torch.save` writes it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from ...runtime.errors import ModelError
from ...runtime.weights.hf_config import MAX_LAYERS
from ...runtime.weights.json_file import read_object
from .global_tensor import GlobalTensor, Piece
from .pickled import PickleReader
from .records import Name, Record, Refused, shown
from .state import MegatronState, Tally
from .stored_tensor import ELEMENT_BYTES, StoredTensor, is_counts
from .torch_file import MAX_PICKLE_BYTES, fields_of, read_torch_file
from .torch_names import builder

METADATA = "metadata.json"
_COMMON = "common_state/shard_0_1"
"""Where versions after 0.16 keep what was `common.pt`."""
_MODEL = ("embedding.", "decoder.", "output_layer.", "mtp.")
_GROUPS = {"optimizer": "optimizer", "rng_state": "rng", "rerun_state_machine_state": "training state"}
_STACKED = re.compile(r"decoder\.layers\.([a-z].+)")
_PREFIXES = ("module.", "model.")


def read_dist_checkpoint(directory: Path) -> MegatronState:
    """The state in a directory with `metadata.json`. Raises `ModelError` naming the file and what is wrong in it."""
    _check_backend(directory / METADATA)
    table = _Table(directory)
    tally = Tally()
    tensors: dict[str, GlobalTensor] = {}
    for name, entry in table.entries.items():
        plain = _without_prefix(name)
        if name == _COMMON:
            continue
        if not plain.startswith(_MODEL) or "._extra_state" in plain:
            tally.add(_group(plain), 1, table.stored_bytes(name))
        elif entry.name.endswith(".TensorStorageMetadata"):
            tensors |= _numbered(table.path, plain, table.tensor(name, entry))
        else:
            raise ModelError(f"{table.path}: {name}: expected a tensor, found {entry.name}")
    common = _common(directory, table, tally)
    if "args" not in common:
        raise ModelError(
            f"{directory}: expected Megatron's `args` in the common state, found {shown(list(common))}"
        )
    return MegatronState(directory, fields_of(common["args"]), _whole_mlps(tensors), tally.removed())


def _check_backend(path: Path) -> None:
    fields = read_object(path)
    found = fields.get("sharded_backend"), fields.get("sharded_backend_version", 1)
    if found != ("torch_dist", 1):
        raise ModelError(
            f"{path}: expected the backend torch_dist, version 1, found {found[0]!r}, {found[1]!r}"
        )


class _Table:
    """`.metadata`: the entries by name, and where each chunk's bytes lie."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".metadata"
        self._directory = directory
        self._sizes: dict[str, int] = {}
        self._bytes = Counter[str]()
        try:
            size = self.path.stat().st_size
            if size > MAX_PICKLE_BYTES:
                raise Refused(f"{size} bytes, where at most {MAX_PICKLE_BYTES} are read")
            fields = fields_of(PickleReader(self.path.read_bytes(), builder, None).read())
            self.entries = _entries(fields.get("state_dict_metadata"))
            self._places = dict(map(self._place, fields_of(fields.get("storage_data")).items()))
            for (name, _), (_, _, length) in self._places.items():
                self._bytes[name] += length
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read: {error}") from error
        except ValueError as error:  # refused, or a name that the system does not take
            raise ModelError(f"{self.path}: not metadata that can be read safely: {error}") from error

    def _place(self, item: tuple[Any, Any]) -> tuple[tuple[str, Any], tuple[Path, int, int]]:
        """An index (name, offsets) and where its bytes are: file, start, length."""
        index, info = fields_of(item[0]), fields_of(item[1])
        name, offsets, file = index.get("fqn"), index.get("offset"), info.get("relative_path")
        start, length = info.get("offset"), info.get("length")
        if not isinstance(name, str) or not isinstance(file, str) or Path(file).name != file:
            raise Refused(f"a chunk in {shown(file)}, which is no file beside it")
        if offsets is not None and not is_counts(offsets):
            raise Refused(f"{name}: a chunk at {shown(offsets)}")
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise Refused(f"{name}: a chunk at {shown(start)} of length {shown(length)}")
        if file not in self._sizes:
            self._sizes[file] = (self._directory / file).stat().st_size
        if start + length > self._sizes[file]:
            raise Refused(
                f"{name}: [{start}, {start + length}) of {file}, which has {self._sizes[file]} bytes"
            )
        if info.get("transform_descriptors"):
            raise Refused(f"{name}: it is compressed or transformed, which is not served")
        return (name, offsets), (self._directory / file, start, length)

    def stored_bytes(self, name: str) -> int:
        return self._bytes[name]

    def object(self, name: str) -> Any:
        place = self._places.get((name, None))
        if place is None:
            raise ModelError(f"{self.path}: {name}: its bytes are nowhere")
        return read_torch_file(*place)

    def tensor(self, name: str, entry: Record) -> GlobalTensor:
        fields = entry.fields()
        shape, chunks = fields.get("size"), fields.get("chunks")
        dtype = _dtype(fields.get("properties"))
        if not is_counts(shape) or not isinstance(chunks, list) or dtype not in ELEMENT_BYTES:
            raise ModelError(f"{self.path}: {name}: expected a shape, chunks, and a type that is served")
        pieces = [self._piece(name, shape, dtype, fields_of(chunk)) for chunk in chunks]
        return GlobalTensor(name, shape, tuple(pieces))

    def _piece(self, name: str, shape: tuple[int, ...], dtype: str, chunk: dict[str, Any]) -> Piece:
        offsets, sizes = chunk.get("offsets"), chunk.get("sizes")
        place = self._places.get((name, offsets)) if is_counts(offsets) else None
        if not is_counts(offsets) or not is_counts(sizes) or place is None:
            raise ModelError(f"{self.path}: {name}: a chunk at {shown(offsets)} of {shown(sizes)} is nowhere")
        stored = read_torch_file(*place)
        inside = len(offsets) == len(sizes) == len(shape) and all(
            offset + size <= whole for offset, size, whole in zip(offsets, sizes, shape, strict=True)
        )
        if (
            not isinstance(stored, StoredTensor)
            or (stored.shape, stored.dtype) != (sizes, dtype)
            or not inside
        ):
            raise ModelError(f"{place[0]}: {name}: expected {sizes} of {dtype} at {offsets} inside {shape}")
        return Piece(offsets, stored)


def _entries(table: Any) -> dict[str, Record]:
    if not isinstance(table, dict):
        raise Refused("it has no table of tensors")
    for name, entry in table.items():
        if not isinstance(name, str) or not isinstance(entry, Record):
            raise Refused(f"{shown(name)} stands for nothing")
    return table


def _dtype(properties: Any) -> str:
    """The type in torch's `TensorProperties`, whose state is a tuple that begins with it."""
    state = properties.state if isinstance(properties, Record) else None
    first = state[0] if isinstance(state, tuple) and state else None
    return first.path.removeprefix("torch.") if isinstance(first, Name) else ""


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _group(name: str) -> str:
    if "._extra_state" in name:
        return "extra state"
    chained = re.sub(r"^chained_\d+\.", "", name)
    return next((group for key, group in _GROUPS.items() if chained.startswith(key)), "training state")


def _numbered(path: Path, name: str, tensor: GlobalTensor) -> dict[str, GlobalTensor]:
    """The layers of a tensor that is stacked on a leading axis; else the tensor itself."""
    match = _STACKED.fullmatch(name)
    if match is None or not tensor.shape:
        return {name: tensor}
    if tensor.shape[0] > MAX_LAYERS:
        raise ModelError(
            f"{path}: tensor {name}: expected at most {MAX_LAYERS} layers, found {tensor.shape[0]}"
        )
    names = [f"decoder.layers.{layer}.{match[1]}" for layer in range(tensor.shape[0])]
    return {each: tensor.layer(layer, each) for layer, each in enumerate(names)}


def _whole_mlps(tensors: dict[str, GlobalTensor]) -> dict[str, GlobalTensor]:
    """A gated MLP's halves that are stored under two names, `…_w` and `…_v`, as one tensor."""
    whole = dict(tensors)
    for name, first in tensors.items():
        plain = name.removesuffix("_w")
        second = tensors.get(plain + "_v")
        if plain == name or second is None or "linear_fc1." not in name:
            continue
        rows = first.shape[0]
        moved = tuple(Piece((p.offsets[0] + rows, *p.offsets[1:]), p.tensor) for p in second.pieces)
        shape = (rows + second.shape[0], *first.shape[1:])
        del whole[name], whole[plain + "_v"]
        whole[plain] = GlobalTensor(plain, shape, first.pieces + moved)
    return whole


def _common(directory: Path, table: _Table, tally: Tally) -> dict[str, Any]:
    """What is not sharded: the arguments, and settings of the optimizer that are left behind."""
    path = directory / "common.pt"
    if path.is_file():
        state = read_torch_file(path)
    else:
        stored = table.object(_COMMON)
        state = stored[0] if isinstance(stored, list) and len(stored) == 1 else stored
    if not isinstance(state, dict):
        raise ModelError(f"{directory}: expected the common state as a mapping")
    tally.add_tree("optimizer", state.get("optimizer"))
    return state
