"""`engine.json`: what an engine directory holds, sealed with its own digest. The schema has a version; an engine of
another one is refused with the command that makes it anew."""

from __future__ import annotations

import hashlib
import math
import shlex
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ..errors import ModelError
from ..model.config import ModelConfig
from .blocks import num_blocks
from .json_file import decoded, read_json

NAME = "engine.json"
VERSION = 1
MAX_SIZE = 1 << 24
MAX_LAYERS = 1024

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Narrowing = Literal["int8", "int4", "fp8"]


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`sha256` has one digest for each block of 64 MiB."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
    num_bytes: Count
    sha256: tuple[Digest, ...]


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The narrowed weights against the source's over `num_tokens` of `text`: perplexities, the mean
    Kullback-Leibler divergence of the next-token distributions in nats, and how often the likeliest token agrees."""

    text: str
    num_tokens: Count
    source_perplexity: float
    perplexity: float
    kl: float
    agreement: float


class TileChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What trying out a machine's kernels gave: how many rows at a time keep them independent. It holds where
    all but `least` and `most` is the same."""

    machine: str
    num_threads: Count
    dtype: str
    linears: str
    max_batch_tokens: Count
    least: Count
    most: Count


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine is sized for, where the settings at its start say nothing. None: as for any model."""

    max_rows: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_batch_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`source` and `options` are the words of the command that made the engine. `removed` counts bytes of the
    source that serving does not need. `kv_scales`: for each layer what a key and a value of 8 bits are
    multiplied by; empty where nothing was calibrated. Two exports of one source are the same bytes, except for a file
    of kernels (`kernels-…`, with --kernels): it holds what a card's compiler made and a clock chose."""

    version: int = VERSION
    made_by: str
    source: str
    options: tuple[str, ...]
    config: ModelConfig
    rank_config: ModelConfig | None = None
    """The shape of each rank's part, where there are several."""
    tp: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    quantize: Narrowing | None = None
    removed: dict[str, Count]
    weight_bytes: Count
    limits: Limits = Limits()
    quality: Quality | None = None
    kv_scales: tuple[tuple[float, float], ...] = ()
    tiles: tuple[TileChoice, ...] = ()
    files: tuple[StoredFile, ...]


class _Sealed(msgspec.Struct, forbid_unknown_fields=True):
    sha256: str
    engine: msgspec.Raw


class _Origin(msgspec.Struct):
    version: int
    source: str = "SOURCE"
    options: tuple[str, ...] = ()


def sealed(manifest: Manifest) -> bytes:
    """The content of `engine.json`."""
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    return msgspec.json.encode(_Sealed(hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


def read_manifest(directory: Path) -> Manifest:
    """Checked against its own digest and against the sizes of the files that it names.

    Raises `ModelError` naming the file and what is wrong.
    """
    path = directory / NAME
    envelope = read_json(path, _Sealed)
    body = bytes(envelope.engine)
    found = hashlib.sha256(body).hexdigest()
    if found != envelope.sha256:
        raise ModelError(f"{path}: damaged: expected SHA-256 {envelope.sha256[:64]!r}, found {found}")
    origin = decoded(path, body, _Origin)
    if origin.version != VERSION:
        raise ModelError(
            f"{path}: an engine of version {origin.version}; this jitney serves version {VERSION}."
            f" Make it anew: {rebuild_command(directory, origin.source, origin.options)}"
        )
    manifest = decoded(path, body, Manifest)
    _check_config(path, manifest.config)
    if manifest.kv_scales and len(manifest.kv_scales) != manifest.config.num_layers:
        raise ModelError(
            f"{path}: kv_scales: expected {manifest.config.num_layers}, found {len(manifest.kv_scales)}"
        )
    for file in manifest.files:
        _check_size(path, directory / file.name, file)
    return manifest


def rebuild_command(directory: Path, source: str, options: tuple[str, ...]) -> str:
    return shlex.join(["jitney", "export", source, str(directory), *options, "--force"])


def _check_size(manifest: Path, path: Path, file: StoredFile) -> None:
    if len(file.sha256) != num_blocks(file.num_bytes):
        raise ModelError(
            f"{manifest}: {file.name}: expected {num_blocks(file.num_bytes)} digests for {file.num_bytes} bytes,"
            f" found {len(file.sha256)}"
        )
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path}: named by {NAME}, cannot be read: {error}") from error
    if found != file.num_bytes:
        raise ModelError(f"{path}: damaged: expected {file.num_bytes} bytes, found {found}")


def _check_config(path: Path, config: ModelConfig) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
    for field in (*sizes, "max_position", "num_layers"):
        limit = MAX_LAYERS if field == "num_layers" else MAX_SIZE
        if not 1 <= getattr(config, field) <= limit:
            raise ModelError(f"{path}: config.{field}: expected 1 to {limit}, found {getattr(config, field)}")
    if config.num_heads % config.num_kv_heads:
        raise ModelError(f"{path}: config.num_heads: expected a multiple of {config.num_kv_heads}")
    theta = 1.0 if config.rope_theta is None else config.rope_theta
    if not all(0 < value < math.inf for value in (config.norm_eps, theta, config.rotary_fraction)):
        raise ModelError(
            f"{path}: config: expected positive numbers for norm_eps, rope_theta, rotary_fraction"
        )
    if config.head_dim % 2 or config.rotary_fraction > 1:
        raise ModelError(f"{path}: config: expected an even head_dim and a rotary_fraction of at most 1")
    if config.sliding_layers is not None and len(config.sliding_layers) != config.num_layers:
        raise ModelError(f"{path}: config.sliding_layers: expected {config.num_layers} of them")
