"""Kernels are known before they are launched, compiled at once, and taken from what was brought. A card's driver alone
is imitated: the kernels are compiled for it in truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

pytest.importorskip("triton")

from jitney.runtime.errors import ModelError
from jitney.runtime.kernels.choice import LIBRARY
from jitney.runtime.kernels.kernel_file import PREFIX, KernelFile, MadeFor, read_kernels, this_card

SUPPORT = Path(__file__).parents[2] / "support"
CARD = MadeFor("NVIDIA H100 80GB HBM3", (9, 0), "3.6.0", "2.9.1+cu128")


def test_what_this_card_says_of_itself_can_be_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch's version is a class of its own, and a device's capability whatever torch makes of it."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: CARD.card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: CARD.capability)
    path = tmp_path / "kernels.bin"
    path.write_bytes(KernelFile(this_card()).encoded())
    assert read_kernels(path).made_for == this_card()
    assert this_card().torch == torch.__version__


def ran(script: str, cache: Path, *words: object) -> Any:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(SUPPORT / script), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[KernelFile, Any]:
    """Three kernels compiled, and what was told of that."""
    directory = tmp_path_factory.mktemp("made")
    told = ran("compile_ahead.py", directory / "cache", directory / "kernels.bin", "make")
    return read_kernels(directory / "kernels.bin"), told


def brought(file: KernelFile, directory: Path) -> Any:
    (directory / "kernels.bin").write_bytes(file.encoded())
    return ran("compile_ahead.py", directory / "cache", directory / "kernels.bin", "bring")


def test_what_one_process_compiles_another_need_not(made: tuple[KernelFile, Any], tmp_path: Path) -> None:
    file, told = made
    assert told["compiled"] == [3, 0] and told["cached"] > 0 and told["keys"] == sorted(file.binaries)
    assert brought(file, tmp_path) == {"compiled": [0, 0], "keys": told["keys"], "cached": 0}


def test_kernels_that_do_not_fit_are_compiled(made: tuple[KernelFile, Any], tmp_path: Path) -> None:
    """One that is not what its name says, and one that nobody asks for."""
    (key, damaged), (other, files), (third, rest) = made[0].binaries.items()
    binaries = {key: {name: b"{" for name in damaged}, "A" * 52: files, third: rest}
    told = brought(msgspec.structs.replace(made[0], binaries=binaries), tmp_path)
    assert told["compiled"] == [1, 0] and told["keys"] == sorted([other, third])


@pytest.mark.parametrize("quantize", [(), ("fp8",)])
def test_a_step_launches_nothing_that_was_not_rehearsed(quantize: tuple[str, ...], tmp_path: Path) -> None:
    found = ran("rehearsed_step.py", tmp_path, *quantize)
    assert found["rehearsed"] > 20 and found["others"] == []
    assert found["layers"] > 10 and found["untimed"] == []


def test_the_file_is_named_by_what_it_was_made_for() -> None:
    assert CARD.file_name == f"{PREFIX}nvidia-h100-80gb-hbm3-sm90-triton3.6.0-torch2.9.1-cu128-v3.bin"
    long = msgspec.structs.replace(CARD, card="NVIDIA " * 40)
    assert len(long.file_name) < 100 and long.file_name != CARD.file_name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        msgspec.msgpack.encode({"made_for": None}),
        KernelFile(CARD, {}, {"../../etc": {"a.json": b""}}).encoded(),
        KernelFile(CARD, {}, {"A" * 52: {"../a.json": b""}}).encoded(),
        KernelFile(CARD, {}, {"A" * 52: {"a.so": b""}}).encoded(),
        KernelFile(CARD, {"task": "fast"}).encoded(),  # type: ignore[dict-item]
    ],
)
def test_what_is_no_kernel_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kernels.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"kernels\.bin: not the kernels"):
        read_kernels(path)
    with pytest.raises(ModelError, match=r"missing: not the kernels"):
        read_kernels(tmp_path / "missing")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = KernelFile(CARD, {"task": LIBRARY}, {"B" * 52: {"a.json": b"{}", "a.cubin": b"\x00\xff"}})
    (tmp_path / "k").write_bytes(file.encoded())
    assert read_kernels(tmp_path / "k") == file
