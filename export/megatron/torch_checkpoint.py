"""Megatron's `torch` format: one file for each tensor- and pipeline-parallel rank, `mp_rank_TT[_PPP]`, with the rank's
part of the model, of the optimizer, and its random states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import ModelError
from .global_tensor import GlobalTensor, Piece
from .records import shown
from .state import MegatronState, Tally
from .stored_tensor import StoredTensor
from .torch_file import fields_of, read_torch_file

MODEL_FILE = "model_optim_rng.pt"
_RANK = re.compile(r"mp_rank_(\d{2,4})(?:_(\d{3,4}))?(_\d{3,4})?")
_LAYER = re.compile(r"decoder\.layers\.(\d{1,4})\.(.+)")
_SPLIT_ROWS = (
    "word_embeddings.weight",
    "output_layer.weight",
    "linear_qkv.weight",
    "linear_qkv.bias",
    "linear_fc1.weight",
    "linear_fc1.bias",
)
_SPLIT_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
_GROUPS = {"optimizer": "optimizer", "opt_param_scheduler": "optimizer", "rng_state": "rng"}
_SETTINGS = ("args", "checkpoint_version", "iteration", "num_floating_point_operations_so_far")
_CHUNK = re.compile(r"model\d{0,3}")

Shards = dict[str, dict[int, StoredTensor]]
"""Tensors by global name, their parts by tensor-parallel rank."""


def read_torch_checkpoint(directory: Path) -> MegatronState:
    """The state in a directory of `mp_rank_*`. Raises `ModelError` naming the file and what is wrong in it."""
    paths = _rank_files(directory)
    tally = Tally()
    states = {rank: _rank_state(path, tally) for rank, path in paths.items()}
    arguments = _arguments(paths, states)
    tensor_size, stages = max(rank[0] for rank in paths) + 1, max(rank[1] for rank in paths) + 1
    shards: Shards = {}
    for rank in range(tensor_size):
        columns = [(paths[rank, stage], states[rank, stage]) for stage in range(stages)]
        _collect(shards, rank, [(path, _chunks(path, state)) for path, state in columns], tally)
    if not arguments.get("untie_embeddings_and_output_weights", True):
        for copy in shards.pop("output_layer.weight", {}).values():  # on the last pipeline stage
            tally.add("copy of the embedding", 1, copy.num_bytes)
    gated = bool(arguments.get("swiglu"))
    tensors = {name: _joined(directory, name, parts, tensor_size, gated) for name, parts in shards.items()}
    return MegatronState(directory, arguments, tensors, tally.removed())


def _rank_files(directory: Path) -> dict[tuple[int, int], Path]:
    """The model's file of each (tensor rank, pipeline rank); all of a grid."""
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(directory.iterdir()):
        match = _RANK.fullmatch(path.name)
        if match is None:
            continue
        if match[3]:
            raise ModelError(f"{path}: expert-parallel ranks are not served")
        found[int(match[1]), int(match[2] or 0)] = path / MODEL_FILE
    width, depth = (max(rank[axis] for rank in found) + 1 for axis in (0, 1))
    for rank in ((tensor, stage) for tensor in range(width) for stage in range(depth)):
        if rank not in found or not found[rank].is_file():
            raise ModelError(
                f"{directory}: tensor rank {rank[0]}, pipeline rank {rank[1]}: {MODEL_FILE} is missing"
            )
    return found


def _rank_state(path: Path, tally: Tally) -> dict[str, Any]:
    """One file's model and settings; all else is counted and dropped."""
    state = read_torch_file(path)
    if not isinstance(state, dict) or "args" not in state:
        raise ModelError(f"{path}: expected Megatron's state with `args` in it")
    kept: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(key, str) and (key in _SETTINGS or _CHUNK.fullmatch(key)):
            kept[key] = value
        else:
            tally.add_tree(_GROUPS.get(key, "training state"), value)
    for beside in sorted(path.parent.glob("distrib_optim*.pt")):
        tally.add("optimizer", 1, beside.stat().st_size)
    return kept


def _arguments(paths: Mapping[Any, Path], states: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """The first rank's, after a look that all ranks belong to one training step and one split."""
    first, *others = states
    for rank in others:
        ours, theirs = states[first].get("iteration"), states[rank].get("iteration")
        if ours is not theirs and not (type(ours) is type(theirs) is int and ours == theirs):
            raise ModelError(
                f"{paths[rank]}: expected iteration {shown(ours)} as in {paths[first]}, found {shown(theirs)}"
            )
    arguments = fields_of(states[first]["args"])
    width, depth = (max(rank[axis] for rank in paths) + 1 for axis in (0, 1))
    for field, found in (("tensor_model_parallel_size", width), ("pipeline_model_parallel_size", depth)):
        if arguments.get(field, found) != found:
            raise ModelError(
                f"{paths[first]}: args.{field} is {shown(arguments[field])}, but {found} ranks are here"
            )
    return arguments


def _chunks(path: Path, state: dict[str, Any]) -> list[dict[str, Any]]:
    """The model's parts on one rank: one, or one for each virtual pipeline stage."""
    names = sorted((key for key in state if _CHUNK.fullmatch(key)), key=lambda key: int(key[5:] or 0))
    chunks = [state[name] for name in names]
    if not chunks or not all(isinstance(chunk, dict) for chunk in chunks):
        raise ModelError(f"{path}: expected the model's tensors under `model`, found none")
    if any("language_model" in chunk for chunk in chunks):
        raise ModelError(
            f"{path}: a model of Megatron's time before its core library is not served; convert it with Megatron"
        )
    return chunks


def _collect(
    shards: Shards, rank: int, stages: list[tuple[Path, list[dict[str, Any]]]], tally: Tally
) -> None:
    """The tensors of one tensor-parallel rank, with layers numbered through all stages: virtual stage after virtual
    stage, in each of them pipeline rank after pipeline rank."""
    first_layer = 0
    for turn in range(max(len(chunks) for _, chunks in stages)):
        for path, chunks in stages:
            if turn >= len(chunks):
                continue
            num_layers = 0
            for key, value in chunks[turn].items():
                name = str(key).removeprefix("module.")
                if name.endswith("_extra_state"):
                    tally.add_tree("extra state", value)
                    tally.add("extra state", value is None, 0)
                    continue
                match = _LAYER.fullmatch(name)
                if match:
                    num_layers = max(num_layers, int(match[1]) + 1)
                    name = f"decoder.layers.{first_layer + int(match[1])}.{match[2]}"
                if not isinstance(value, StoredTensor):
                    raise ModelError(
                        f"{path}: tensor {name}: expected a tensor, found {type(value).__name__}"
                    )
                shards.setdefault(name, {}).setdefault(rank, value)
            first_layer += num_layers


def _joined(
    directory: Path, name: str, parts: dict[int, StoredTensor], size: int, gated: bool
) -> GlobalTensor:
    if len(parts) != size or len({(part.shape, part.dtype) for part in parts.values()}) != 1:
        raise ModelError(f"{directory}: tensor {name}: expected equal parts on {size} tensor-parallel ranks")
    first = parts[0]
    axis = 0 if name.endswith(_SPLIT_ROWS) else 1 if name.endswith(_SPLIT_COLUMNS) else None
    if axis is None or axis >= len(first.shape):
        return GlobalTensor(name, first.shape, (Piece((0,) * len(first.shape), first),))
    shape = (*first.shape[:axis], first.shape[axis] * size, *first.shape[axis + 1 :])
    # A rank of a gated MLP holds its part of the gate, then its part of the other half.
    halves = 2 if gated and "linear_fc1." in name else 1
    width, pieces = first.shape[axis] // halves, []
    for rank, part in sorted(parts.items()):
        for half in range(halves):
            offsets = [0] * len(first.shape)
            offsets[axis] = (half * size + rank) * width
            pieces.append(Piece(tuple(offsets), part.narrow(axis, half * width, width)))
    return GlobalTensor(name, shape, tuple(pieces))
