"""Every quantised type of GGUF through the reader: the values of the library, in their places; the common ones against
the format's own arithmetic, one number at a time."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from gguf_writing import write_gguf
from numpy.typing import NDArray
from tiny_checkpoints import tiny_model

from jitney.runtime.errors import ModelError
from jitney.runtime.weights import gguf_weights
from jitney.runtime.weights.checkpoint import Checkpoint
from jitney.runtime.weights.gguf_file import GgufFile
from jitney.runtime.weights.gguf_weights import GgufWeights
from jitney.runtime.weights.locate import open_backend

STORED = [
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M"),
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"),
]


def half(raw: bytes, at: int) -> float:
    (value,) = struct.unpack_from("<e", raw, at)
    return float(value)


def scale_and_least(scales: bytes, j: int) -> tuple[int, int]:
    """The 6-bit scale and minimum of the j-th of eight groups, packed in 12 bytes."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (
        scales[j + 4] & 15 | (scales[j - 4] >> 6) << 4,
        scales[j + 4] >> 4 | (scales[j] >> 6) << 4,
    )


def q4_k(raw: bytes) -> list[float]:
    d, least, scales, quants = half(raw, 0), half(raw, 2), raw[4:16], raw[16:]
    values = []
    for i in range(256):
        group, nibble = i // 32, quants[i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15
        scale, minimum = scale_and_least(scales, group)
        values.append(d * scale * nibble - least * minimum)
    return values


def q5_k(raw: bytes) -> list[float]:
    d, least, scales, high, quants = half(raw, 0), half(raw, 2), raw[4:16], raw[16:48], raw[48:]
    values = []
    for i in range(256):
        group, low = i // 32, quants[i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15
        scale, minimum = scale_and_least(scales, group)
        values.append(d * scale * (low + 16 * (high[i % 32] >> group & 1)) - least * minimum)
    return values


def q6_k(raw: bytes) -> list[float]:
    low, high, scales, d = raw[:128], raw[128:192], raw[192:208], half(raw, 208)
    values = []
    for i in range(256):
        part, quarter, at = i // 128, i % 128 // 32, i % 32
        bits = low[part * 64 + quarter % 2 * 32 + at] >> 4 * (quarter // 2) & 15
        bits |= (high[part * 32 + at] >> 2 * quarter & 3) << 4
        scale = struct.unpack_from("<b", scales, i // 16)[0]
        values.append(d * scale * (bits - 32))
    return values


def q2_k(raw: bytes) -> list[float]:
    scales, quants, d, least = raw[:16], raw[16:80], half(raw, 80), half(raw, 82)
    values = []
    for i in range(256):
        bits = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
        scale = scales[i // 16]
        values.append(d * (scale & 15) * bits - least * (scale >> 4))
    return values


def q8_0(raw: bytes) -> list[float]:
    return [half(raw, 0) * value for value in struct.unpack_from("<32b", raw, 2)]


TWINS = {"Q2_K": q2_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "Q8_0": q8_0}
HALVES = {"Q2_K": (80, 82), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q8_0": (0,)}


def random_blocks(kind: str, count: int) -> bytes:
    """Random bits, with scales that are finite where the twins read them."""
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = np.random.default_rng(3).integers(0, 256, (count, block_bytes), np.uint8)
    for at in HALVES.get(kind, ()):
        blocks[:, at : at + 2] = np.frombuffer(struct.pack("<e", 0.0123), np.uint8)
    return blocks.tobytes()


def one_tensor(path: Path, kind: str, name: str, rows: int, columns: int) -> bytes:
    """A GGUF file of one tensor with random bits."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    raw = random_blocks(kind, rows * columns // block)
    writer = GGUFWriter(path, "qwen2")
    stored = np.frombuffer(raw, np.uint8).reshape(rows, columns // block * block_bytes)
    writer.add_tensor(name, stored, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return raw


def read(path: Path) -> NDArray[np.float32]:
    return GgufWeights(GgufFile(path), None).array("model.layers.0.mlp.down_proj.weight")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", STORED)
def test_values_are_the_librarys_in_their_places(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.gguf"
    raw = one_tensor(path, kind, "blk.0.ffn_down.weight", 6, 512)
    with np.errstate(all="ignore"):
        expected = dequantize(np.frombuffer(raw, np.uint8).reshape(6, -1), GGMLQuantizationType[kind])
        assert np.array_equal(read(path), expected, equal_nan=True)
        monkeypatch.setattr(gguf_weights, "_CHUNK_ELEMENTS", 1024)
        assert np.array_equal(read(path), expected, equal_nan=True)


@pytest.mark.parametrize("kind", TWINS)
def test_values_are_the_formats(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "one.gguf"
    raw = one_tensor(path, kind, "blk.0.ffn_down.weight", 2, 512)
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = [raw[at : at + block_bytes] for at in range(0, len(raw), block_bytes)]
    expected = np.concatenate([TWINS[kind](block) for block in blocks]).reshape(2, 512)
    np.testing.assert_allclose(read(path), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q8_K", "I8", "F64"])
def test_types_that_are_no_weights_are_refused_before_anything_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "one.gguf"
    one_tensor(path, kind, "blk.0.ffn_down.weight", 2, 512)
    with pytest.raises(ModelError, match=f"one.gguf: tensor blk.0.ffn_down.weight: {kind} is not served"):
        read(path)


def test_a_whole_model_with_mixed_types(tmp_path: Path) -> None:
    """As llama.cpp writes them: embeddings in one type, norms in float32; rows of q and k put back in order."""
    model = tiny_model("Llama", hidden_size=64, intermediate_size=64)
    backend = open_backend(write_gguf(tmp_path / "tiny.gguf", "llama", model, kind="Q8_0"))
    assert isinstance(backend, Checkpoint)
    for name, tensor in model.state_dict().items():
        assert (backend.weights.get(name) - tensor).abs().max() <= tensor.abs().max() / 127
