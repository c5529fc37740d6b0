"""Manifests that are damaged, of another version, or made by hand with nonsense in them: all refused by name."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_models import small_llama

from jitney.runtime.errors import ModelError
from jitney.runtime.weights.manifest import Manifest, Quality, StoredFile, TileChoice, read_manifest, sealed

MANIFEST = Manifest(
    made_by="jitney 0.1.0",
    source="org/model",
    options=("--quantize", "int8"),
    config=small_llama(),
    quantize="int8",
    removed={"optimizer": 12},
    weight_bytes=3,
    quality=Quality("text", 10, 20.0, 21.0, 0.01, 0.9),
    kv_scales=((0.1, 0.2),) * 3,
    tiles=(TileChoice("a machine", 2, "bfloat16", "linear_onednn", 512, 2, 512),),
    files=(StoredFile("rank0.safetensors", 3, (hashlib.sha256(b"abc").hexdigest(),)),),
)


def written(directory: Path, body: bytes) -> Path:
    """A manifest with a true seal, whatever it says."""
    (directory / "rank0.safetensors").write_bytes(b"abc")
    envelope = {"sha256": hashlib.sha256(body).hexdigest(), "engine": msgspec.Raw(body)}
    (directory / "engine.json").write_bytes(msgspec.json.encode(envelope))
    return directory


def changed(**fields: Any) -> bytes:
    return msgspec.json.encode(msgspec.to_builtins(MANIFEST) | fields)


def test_what_is_sealed_is_read(tmp_path: Path) -> None:
    (tmp_path / "rank0.safetensors").write_bytes(b"abc")
    (tmp_path / "engine.json").write_bytes(sealed(MANIFEST))
    assert read_manifest(tmp_path) == MANIFEST


def test_another_version_says_how_to_make_it_anew(tmp_path: Path) -> None:
    body = changed(version=7, something_new=[1])
    with pytest.raises(ModelError, match="version 7; this jitney serves version 1") as refused:
        read_manifest(written(tmp_path, body))
    assert f"jitney export org/model {tmp_path} --quantize int8 --force" in str(refused.value)


CONFIG = msgspec.to_builtins(MANIFEST.config)
FILE = msgspec.to_builtins(MANIFEST.files[0])


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"config": CONFIG | {"num_heads": 0}}, "config.num_heads"),
        ({"config": CONFIG | {"num_layers": 10**9}}, "config.num_layers"),
        ({"config": CONFIG | {"num_kv_heads": 4}}, "config.num_heads"),
        ({"config": CONFIG | {"norm_eps": -1.0}}, "norm_eps"),
        ({"config": CONFIG | {"head_dim": 7}}, "head_dim"),
        ({"config": CONFIG | {"sliding_window": 4, "sliding_layers": [True]}}, "sliding_layers"),
        ({"config": CONFIG | {"dtype": "float8"}}, "dtype"),
        ({"kv_scales": [[1.0, 1.0]]}, "kv_scales"),
        ({"files": [FILE | {"num_bytes": 4}]}, "rank0.safetensors: damaged: expected 4 bytes, found 3"),
        ({"files": [FILE | {"sha256": []}]}, "expected 1 digests for 3 bytes, found 0"),
        ({"files": [FILE | {"sha256": ["zz"]}]}, "sha256"),
        ({"files": [FILE | {"name": "../rank0.safetensors"}]}, "name"),
        ({"files": [FILE | {"name": "rank1.safetensors"}]}, "rank1.safetensors: named by engine.json"),
        ({"tp": 0}, "tp"),
        ({"quantize": "int2"}, "quantize"),
        ({"unknown": 1}, "unknown"),
        ({"weight_bytes": -1}, "weight_bytes"),
        ({"limits": {"max_rows": 0}}, "max_rows"),
    ],
)
def test_nonsense_with_a_true_seal(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        read_manifest(written(tmp_path, changed(**fields)))
    assert str(tmp_path) in str(refused.value)


def test_a_thousand_broken_manifests(tmp_path: Path) -> None:
    """Bytes changed, cut, doubled, and values of other types: none is accepted, each error names the file."""
    random_source = random.Random(0)
    whole = sealed(MANIFEST)
    path = tmp_path / "engine.json"
    (tmp_path / "rank0.safetensors").write_bytes(b"abc")
    for number in range(1000):
        at, size = random_source.randrange(len(whole)), random_source.randrange(1, 40)
        kinds = (
            whole[:at] + random_source.randbytes(size) + whole[at + size :],
            whole[:at],
            whole[:at] + whole[at : at + size] + whole[at:],
            whole[:at] + whole[at + size :],
            whole[:at] + bytes([whole[at] ^ (1 << random_source.randrange(8))]) + whole[at + 1 :],
        )
        path.write_bytes(kinds[number % len(kinds)])
        if path.read_bytes() == whole:
            continue
        with pytest.raises(ModelError, match="engine.json"):
            read_manifest(tmp_path)


def test_values_of_other_types_with_a_true_seal(tmp_path: Path) -> None:
    fields = msgspec.to_builtins(MANIFEST)
    wrong: list[Any] = [None, -1, 1.5, "x", [], {}, True, [[]], 2**70]
    for name in fields:
        for value in wrong:
            try:
                read_manifest(written(tmp_path, msgspec.json.encode(fields | {name: value})))
            except ModelError as error:
                assert "engine.json" in str(error)
