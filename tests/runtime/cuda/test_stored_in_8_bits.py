"""What a checkpoint stores in 8 bits lies on the card as it was stored, with the scales that its export measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

pytest.importorskip("triton")

from exporting import silent, tiny_engine

from jitney.export.hf_directory import export_huggingface
from jitney.export.open import open_source
from jitney.export.options import ExportOptions
from jitney.runtime.config import EngineConfig
from jitney.runtime.cuda.open import build_step
from jitney.runtime.cuda.plan import plan_device
from jitney.runtime.weights.checkpoint import Checkpoint
from jitney.runtime.weights.locate import open_backend
from jitney.runtime.weights.manifest import Narrowing, read_manifest

SHAPE = {"hidden_size": 128, "intermediate_size": 128}
SETTINGS = EngineConfig(max_rows=2, max_context=64, max_batch_tokens=64, tune_process=False)


def checkpoints(directory: Path, narrowing: Narrowing) -> list[Checkpoint]:
    """An engine, and a Hugging Face directory of the same source."""
    engine = tiny_engine(directory, "Qwen3", SHAPE, quantize=narrowing, accept_quality=True)
    options = ExportOptions(source="source", quantize=narrowing, accept_quality=True)
    export_huggingface(open_source(directory / "source"), directory / "hf", options, silent)
    opened = [open_backend(engine), open_backend(directory / "hf")]
    assert all(isinstance(each, Checkpoint) for each in opened)
    return opened  # type: ignore[return-value]


@pytest.mark.parametrize(
    "narrowing, kind, kv_dtype", [("fp8", torch.float8_e4m3fn, "fp8"), ("int8", torch.int8, "auto")]
)
def test_weights_and_scales_are_the_stored_ones(
    tmp_path: Path, narrowing: Narrowing, kind: torch.dtype, kv_dtype: str
) -> None:
    for checkpoint in checkpoints(tmp_path, narrowing):
        config = checkpoint.as_stored(SETTINGS)
        assert (config.quantize, config.kv_dtype) == (narrowing, kv_dtype)
        model = checkpoint.config
        plan = plan_device(model, config, 2**30)
        plan = msgspec.structs.replace(plan, sizes=msgspec.structs.replace(plan.sizes, num_pages=4))
        step = build_step(
            model, checkpoint.weights, config, plan, torch.bfloat16, torch.device("cpu"),
            kv_scales=checkpoint.kv_scales,
        )  # fmt: skip
        down = step._forward._layers.layers[1]["down"]
        stored = {"fp8": "F8_E4M3", "int8": "I8"}[narrowing]
        values, scale = checkpoint.weights.rounded("model.layers.1.mlp.down_proj.weight", stored)  # type: ignore[attr-defined]
        assert down["weight"].dtype == kind
        assert down["weight"].view(torch.uint8).equal(values.view(torch.uint8)) and down["scale"].equal(scale)
        caches = step._forward._ops._caches  # type: ignore[attr-defined]
        scales = [scale for cache in caches for scale in (cache.k_scale, cache.v_scale)]
        measured = [s for pair in read_manifest(tmp_path / "engine").kv_scales for s in pair]
        assert scales == pytest.approx(measured if kv_dtype == "fp8" else [1.0] * len(measured))
        step.close()


def test_a_card_without_fp8_takes_them_as_floats_again(tmp_path: Path) -> None:
    for checkpoint in checkpoints(tmp_path, "fp8"):
        assert checkpoint.as_stored(SETTINGS, fp8=False) == SETTINGS


def test_what_the_settings_say_goes_first(tmp_path: Path) -> None:
    plain = open_backend(tiny_engine(tmp_path, "Qwen3", SHAPE))
    assert isinstance(plain, Checkpoint)
    assert plain.as_stored(SETTINGS) == SETTINGS
    narrow = msgspec.structs.replace(SETTINGS, quantize="fp8")
    assert plain.as_stored(narrow) == narrow
