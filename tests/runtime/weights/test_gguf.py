"""GGUF files of every architecture: the tensors, the configuration and the text side of the model they came from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_writing import write_gguf
from tiny_checkpoints import tiny_model

from jitney.runtime.errors import ModelError
from jitney.runtime.model.config import RopeScaling
from jitney.runtime.weights.checkpoint import Checkpoint
from jitney.runtime.weights.gguf_file import GgufFile
from jitney.runtime.weights.hf_config import hf_config
from jitney.runtime.weights.locate import open_backend

ARCHITECTURES = [("llama", "Llama"), ("llama", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3")]


def opened(path: Path) -> Checkpoint:
    backend = open_backend(path)
    assert isinstance(backend, Checkpoint)
    return backend


@pytest.mark.parametrize(("arch", "family"), ARCHITECTURES)
def test_tensors_and_configuration(arch: str, family: str, tmp_path: Path) -> None:
    model = tiny_model(
        family, sliding_window=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    backend = opened(write_gguf(tmp_path / "tiny.gguf", arch, model))
    assert backend.config == hf_config(
        "", model.config.to_dict() | {"architectures": [f"{family}ForCausalLM"]}
    )
    assert set(backend.weights.names()) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(backend.weights.get(name), tensor)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_tensors(kind: str, tmp_path: Path) -> None:
    model = tiny_model("Llama", intermediate_size=64)
    weights = opened(write_gguf(tmp_path / "tiny.gguf", "llama", model, kind=kind)).weights
    tolerance = {"F16": 5e-5, "BF16": 4e-4, "Q8_0": 5e-4, "Q5_1": 4e-3}.get(kind, 1e-2)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights.get(name), tensor, rtol=0, atol=tolerance)


def test_text_side(tmp_path: Path) -> None:
    backend = opened(write_gguf(tmp_path / "tiny.gguf", "llama", tiny_model("Llama")))
    tokenizer = backend.tokenizer
    assert backend.name == "tiny"
    assert backend.defaults.end_token_ids == (93,)
    assert tokenizer.encode("ab<s>") == [
        95,
        *tokenizer.encode("<"),
        *tokenizer.encode("s"),
        *tokenizer.encode(">"),
    ]
    assert tokenizer.encode_chat([{"role": "user", "content": "ab<s><tool>"}])[:2] == [92, 95]
    assert tokenizer.decode([92, 95, 94]) == "ab<tool>"


def test_llama3_rope_is_recovered_from_its_divisors(tmp_path: Path) -> None:
    theta, factor = 500000.0, 32.0
    model = tiny_model("Llama", rope_parameters={"rope_type": "default", "rope_theta": theta})
    wavelengths = 2 * np.pi * theta ** (np.arange(0, 8, 2) / 8)
    blend = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    divisors = (1 / ((1 - blend) / factor + blend)).astype(np.float32)
    assert opened(with_divisors(tmp_path, model, divisors)).config.rope_scaling == RopeScaling(
        kind="llama3", factor=factor
    )
    with pytest.raises(ModelError, match="rope_freqs.weight"):
        opened(with_divisors(tmp_path, model, divisors[::-1].copy()))


def with_divisors(tmp_path: Path, model: Any, divisors: Any) -> Path:
    import gguf_writing

    state = model.state_dict() | {"x.rope_freqs.weight": torch.from_numpy(divisors)}
    model.state_dict = lambda: state
    gguf_writing.PARTS["rope_freqs"] = "rope_freqs"
    return write_gguf(tmp_path / "rope.gguf", "llama", model)


def test_linear_rope(tmp_path: Path) -> None:
    from gguf import RopeScalingType

    path = write_gguf(
        tmp_path / "tiny.gguf",
        "llama",
        tiny_model("Llama"),
        rope_scaling_type=RopeScalingType.LINEAR,
        rope_scaling_factor=4.0,
    )
    assert opened(path).config.rope_scaling == RopeScaling(kind="linear", factor=4.0)


@pytest.mark.parametrize(
    ("arch", "metadata", "named"),
    [
        ("gemma3", {}, "architecture 'gemma3' is not served; served: llama"),
        ("llama", {"expert_count": 8}, "llama.expert_count"),
        ("llama", {"uint16": ("split.count", 2)}, "split.count"),
        ("llama", {"head_count": 3}, "llama.attention.head_count: expected a multiple"),
        ("llama", {"key_length": 9}, "llama.attention.key_length: expected an even number"),
        ("llama", {"rope_dimension_count": 4}, "rope.dimension_count"),
        ("llama", {"vocab_size": 5, "tokenizer_pre": "tekken"}, "tokenizer.ggml.pre"),
        ("llama", {"tokenizer_model": "t5"}, "tokenizer.ggml.model"),
        ("llama", {"rope_scaling_type": "yarn"}, "rope.scaling.type"),
    ],
)
def test_what_is_not_served_is_named(arch: str, metadata: dict[str, Any], named: str, tmp_path: Path) -> None:
    from gguf import RopeScalingType

    later = {key: value for key, value in metadata.items() if key.startswith("tokenizer")}
    first = {key: value for key, value in metadata.items() if key not in later}
    if "rope_scaling_type" in first:
        first["rope_scaling_type"] = RopeScalingType(first["rope_scaling_type"])
    path = write_gguf(tmp_path / "tiny.gguf", arch, tiny_model("Llama"), **first)
    replacements = {"tokenizer_pre": (b"smollm", b"tekken"), "tokenizer_model": (b"gpt2", b"t5t5")}
    for key in later:
        path.write_bytes(path.read_bytes().replace(*replacements[key]))
    with pytest.raises(ModelError, match=f"(?s)tiny.gguf.*{named}"):
        opened(path)


def test_seeded_mutations(tmp_path: Path) -> None:
    """A mutated file is refused by name, or still opens; it never crashes, hangs or takes much memory."""
    path = write_gguf(tmp_path / "tiny.gguf", "llama", tiny_model("Llama"))
    good, random_, refused = path.read_bytes(), random.Random(4), 0
    header_end = min(tensor.start for tensor in GgufFile(path).tensors.values())
    target = tmp_path / "broken.gguf"
    for turn in range(600):
        broken = bytearray(good)
        for _ in range(random_.randint(1, 6)):
            broken[random_.randrange(64 if turn % 3 == 0 else header_end)] = random_.choice(
                [0, 1, 127, 255, 44]
            )
        target.write_bytes(broken[: random_.randrange(len(good)) if turn % 5 == 0 else None])
        try:
            backend = opened(target)
            for name in backend.weights.names():
                backend.weights.get(name)
        except ModelError as error:
            assert "broken.gguf" in str(error)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("raw", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 16, b"GGML" + b"\0" * 64])
def test_a_file_that_is_no_gguf(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match="bad.gguf"):
        GgufFile(path)
    with pytest.raises(ModelError, match="absent.gguf"):
        GgufFile(tmp_path / "absent.gguf")


def test_big_endian_and_old_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    for version in (b"\0\0\0\3", b"\1\0\0\0"):
        path.write_bytes(b"GGUF" + version + b"\0" * 16)
        with pytest.raises(ModelError, match="expected version 2 or 3, little-endian"):
            GgufFile(path)
