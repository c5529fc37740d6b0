"""Own kernels are used where they can be; where not, the reason is told and torch computes."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from tiny_models import small_llama

from jitney.runtime.native import library as module
from jitney.runtime.native.forward import why_not
from jitney.runtime.native.library import FLAGS, library

found = library.__wrapped__


def test_a_processor_without_tiles_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor_flags", lambda: FLAGS - {"amx_bf16", "amx_tile"})
    assert found() == module.Library(None, "the processor has no amx_bf16, amx_tile")


def test_an_install_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "processor_flags", lambda: FLAGS)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "library.py"))
    assert found().kernels is None and "no C compiler" in found().reason


@pytest.mark.parametrize("suffix", EXTENSION_SUFFIXES)
def test_a_broken_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    monkeypatch.setattr(module, "processor_flags", lambda: FLAGS)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "library.py"))
    path = tmp_path / f"kernels{suffix}"
    path.write_bytes(b"no library")
    assert found().kernels is None and str(path) in found().reason


def test_a_system_that_says_nothing_of_its_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PROCESSOR", tmp_path / "none")
    assert module.processor_flags() == frozenset()
    (tmp_path / "none").write_text("processor : 0\nflags\t\t: fma avx512f\n\nflags : other\n")
    assert module.processor_flags() == {"fma", "avx512f"}


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, torch.float32, "own kernels compute in bfloat16 and int8, not in float32"),
        ({"activation": "gelu"}, torch.bfloat16, "own kernels know no gelu"),
        ({"head_dim": 48}, torch.bfloat16, "head_dim 48: own kernels take multiples of 32 up to 256"),
        ({"head_dim": 288}, torch.bfloat16, "head_dim 288: own kernels take multiples of 32 up to 256"),
        ({"hidden_size": 96}, torch.bfloat16, "hidden_size 96 is no multiple of 64"),
        ({"intermediate_size": 100}, torch.bfloat16, "intermediate_size 100 is no multiple of 64"),
        ({"num_heads": 3}, torch.bfloat16, "num_heads x head_dim 96 is no multiple of 64"),
    ],
)
def test_a_model_that_is_not_covered_is_told(
    changes: dict[str, object], dtype: torch.dtype, reason: str
) -> None:
    assert why_not(small_llama(**changes), dtype) == reason
