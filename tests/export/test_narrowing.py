"""Narrowed weights: rounding and its way back, smoothing that leaves the model as it was, quality that is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exporting import exported, greedy, tiny_engine
from processors import needs_int8
from tiny_checkpoints import write_checkpoint

from jitney.export.contents import Contents
from jitney.export.divergence import Divergence
from jitney.export.open import open_source
from jitney.export.rounding import Rounding, packed
from jitney.export.smoothing import Inputs, smoothing
from jitney.export.stacks import stacks
from jitney.runtime.errors import ModelError
from jitney.runtime.model import linear_int8
from jitney.runtime.weights.locate import open_backend
from jitney.runtime.weights.manifest import Narrowing, read_manifest
from jitney.runtime.weights.quantized_weights import unpacked

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 12}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}


def test_packing_and_its_way_back() -> None:
    values = torch.randint(-8, 8, (5, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert packed(values).shape == (5, 8) and unpacked(packed(values)).equal(values)


@pytest.mark.parametrize("narrowing, error", [("int8", 0.01), ("fp8", 0.03), ("int4", 0.1)])
def test_what_is_stored_stands_for_the_matrix(narrowing: Narrowing, error: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 64)
    rounded = Rounding(narrowing, 32, torch.bfloat16).matrix(weight, torch.ones(64))
    assert float((rounded.dense - weight).norm() / weight.norm()) < error


@needs_int8
def test_inputs_are_rounded_as_the_int8_kernel_rounds_them() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 64), torch.randn(24, 64)
    rounding = Rounding("int8", 0, torch.float32)
    ours = rounding.inputs(x, 0.0) @ rounding.matrix(weight, torch.ones(64)).dense.T
    theirs = linear_int8.linear(x, linear_int8.pack(weight, None), 512)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_one_scale_for_a_whole_matrix() -> None:
    """And one for its inputs, of which what is larger than calibration saw is cut."""
    torch.manual_seed(0)
    x, weight = torch.randn(7, 64), torch.randn(24, 64)
    rounding = Rounding("fp8", 0, torch.float32, whole=True)
    rounded = rounding.matrix(weight, torch.ones(64))
    [values] = rounded.stored
    assert values.dtype == torch.float8_e4m3fn and rounded.scale == pytest.approx(
        float(weight.abs().max()) / 448
    )
    assert rounded.dense.equal(values.float() * rounded.scale)
    assert float((rounded.dense - weight).norm() / weight.norm()) < 0.03
    inputs = rounding.inputs(x, 1.0)
    assert float(inputs.max()) == pytest.approx(1.0)
    assert float((inputs - x.clamp(-1, 1)).norm() / x.norm()) < 0.03
    assert rounding.matrix(torch.zeros(2, 2), torch.ones(2)).scale == 1.0


def test_smoothing_lowers_the_error_of_an_outlier() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(256, 32), torch.randn(48, 32)
    x[:, 5] *= 50
    rounding = Rounding("int8", 0, torch.float32)
    inputs = Inputs(32, 256)
    inputs.see(x)
    scale = smoothing(inputs, weight, rounding)

    def error(by: torch.Tensor) -> float:
        dense = rounding.matrix(weight * by, inputs.mean_square).dense
        return float((rounding.inputs(x / by, 0.0) @ dense.T - x @ weight.T).norm())

    assert error(scale) < error(torch.ones(32)) / 3
    owners = torch.arange(32) // 2
    shared = smoothing(inputs, weight, rounding, owners)
    assert shared[::2].equal(shared[1::2])


def test_divergence_against_whole_logits() -> None:
    torch.manual_seed(0)
    plain, narrow, head = torch.randn(30, 8), torch.randn(30, 8), torch.randn(50, 8)
    targets = torch.randint(0, 50, (30,))
    targets[-1] = -1
    divergence = Divergence(plain, narrow, targets)
    for start in range(0, 50, 16):
        divergence.add(head[start : start + 16], head[start : start + 16])
    quality = divergence.quality("text")
    p, q = ((hidden @ head.T).log_softmax(-1) for hidden in (plain, narrow))
    assert quality.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    nll = -q[torch.arange(29), targets[:-1]].mean()
    assert quality.perplexity == pytest.approx(float(nll.exp()), rel=1e-4) and quality.num_tokens == 29
    assert quality.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantize", ["int8", "int4", "fp8"])
def test_every_family_narrowed(quantize: Narrowing, family: str, tmp_path: Path) -> None:
    """Little is lost, it is written down, and the folded norms and values cancel what the matrices were scaled by."""
    name, shape = FAMILIES[family]
    engine = tiny_engine(tmp_path, name, shape=shape, quantize=quantize)
    manifest = read_manifest(engine)
    quality = manifest.quality
    assert quality is not None and quality.kl < {"int8": 1e-4, "int4": 2e-3, "fp8": 1e-3}[quantize]
    assert quality.perplexity == pytest.approx(quality.source_perplexity, rel=0.01)
    assert len(manifest.kv_scales) == 2 and len({scale for pair in manifest.kv_scales for scale in pair}) == 4
    assert all(len(tokens) == 16 for tokens in greedy(engine))


def test_a_narrowed_engine_gives_the_measured_logits(tmp_path: Path) -> None:
    """The served engine's own perplexity over the measured windows is what the manifest says."""
    import asyncio
    import math

    from jitney.export.contents import TEXT, _windows
    from jitney.runtime import DynamicEngine, EngineConfig, SamplingParams

    engine = tiny_engine(tmp_path, "Llama", quantize="int8")
    quality = read_manifest(engine).quality
    windows = _windows(open_source(tmp_path / "source"), TEXT)[1::2, :127].tolist()

    async def surprise() -> float:
        config = EngineConfig(device="cpu", max_rows=4, kv_cache_bytes=2**22, tune_process=False)
        async with DynamicEngine(engine, config) as running:
            params = SamplingParams(max_tokens=1, prompt_logprobs=0)
            answers = await running.generate(windows, params)
        scores = [score["logprob"] for a in answers for score in a["prompt_logprobs"] if score is not None]
        return -sum(scores) / len(scores)

    assert quality is not None
    assert math.exp(asyncio.run(surprise())) == pytest.approx(quality.perplexity, rel=0.01)


def test_too_much_lost_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    with pytest.raises(
        ModelError, match=r"int4 loses too much: mean KL .* nats, bound 0.0;.*--accept-quality"
    ):
        exported(source, tmp_path / "engine", quantize="int4", max_kl=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    exported(source, tmp_path / "engine", quantize="int4", max_kl=0.0, accept_quality=True)
    assert read_manifest(tmp_path / "engine").options[-1] == "--accept-quality"


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", "Llama"))
    (tmp_path / "short").write_text("Too short.")
    with pytest.raises(ModelError, match=r"short: expected at least 256 tokens"):
        Contents(source, "int8", text=tmp_path / "short")
    with pytest.raises(ModelError, match="none: cannot be read"):
        Contents(source, "int8", text=tmp_path / "none")


def test_an_int8_engine_is_computed_in_floats_where_there_is_no_vnni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(tmp_path, "Llama", quantize="int8")
    expected = greedy(tmp_path / "source", dtype="float32")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    answers = greedy(engine, dtype="float32")
    assert [len(tokens) for tokens in answers] == [len(tokens) for tokens in expected]


def test_every_slot_of_a_narrowed_model(tmp_path: Path) -> None:
    config = open_backend(write_checkpoint(tmp_path / "source", "Qwen2")).config  # type: ignore[attr-defined]
    slots = [slot for stack in stacks(config, "int4", group=16) for slot in stack]
    assert len({slot.name for slot in slots}) == len(slots)
    assert sum(slot.name.endswith("weight_packed") for slot in slots) == 14
    assert not any("weight" in slot.name and slot.dtype == "I32" and "norm" in slot.name for slot in slots)
