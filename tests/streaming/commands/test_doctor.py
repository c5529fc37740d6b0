"""`jitney doctor`: true of this machine, and in one clear line each of machines that this is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import Result

from jitney.streaming.commands import doctor as doctor_module
from jitney.streaming.commands.doctor import findings
from jitney.streaming.commands.machine import Card, Machine, this_machine, unwritable, without_bytecode

Jitney = Callable[..., Result]

H100 = Card(
    name="NVIDIA H100 80GB HBM3", capability=(9, 0), free_bytes=78 * 2**30, total_bytes=80 * 2**30, driver="13.0",
    prefill="FlashAttention 3 (installed)", choices="/cache/kernels/h100.json", has_choices=False,
    kernels="kernels-h100.bin",
)  # fmt: skip
MACHINE = Machine(
    jitney="0.1.0", torch="2.13.0", triton="3.7.0", has_card=True, card=H100, cpu="AVX512", num_cores=16,
    has_bfloat16=True, has_int8=True,
    free_bytes=100 * 2**30, compiler="/usr/bin/cc", triton_cache=("/cache/triton", None), jitney_cache=("/cache", None),
)  # fmt: skip
CPU: dict[str, Any] = {"has_card": False, "card": None}


def told(machine: Machine = MACHINE, **changes: Any) -> dict[str, tuple[str, str]]:
    machine = msgspec.structs.replace(machine, **changes)
    return {finding.what: (finding.verdict, finding.told) for finding in findings(machine)}


def card(**changes: Any) -> Card:
    return msgspec.structs.replace(H100, **changes)


def test_a_sound_card_has_no_complaint() -> None:
    found = told()
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert "H100" in found["device"][1] and found["memory"][1] == "78.0 of 80.0 GiB free"
    assert found["prefill attention"][1].startswith("FlashAttention 3")
    assert "16 threads" in found["kernels"][1] and "kernels-h100.bin" in found["kernels"][1]


@pytest.mark.parametrize(
    ("changes", "what", "verdict", "words"),
    [
        ({"card": card(capability=(7, 5))}, "device", "FAIL", "8.0 or newer is needed"),
        ({"card": card(name="NVIDIA H200")}, "device", "ok", ", by kernels that were measured on an H100"),
        ({"card": card(capability=(8, 0))}, "fp8", "note", "needs 8.9 or newer, this is 8.0"),
        ({"card": card(has_choices=True)}, "linear layers", "ok", "timed on this card"),
        ({"compiler": None}, "C compiler", "FAIL", "install gcc"),
        ({"triton_cache": ("/r", "/r: Read-only file system")}, "kernel cache", "FAIL", "TRITON_CACHE_DIR"),
        ({"jitney_cache": ("/r", "/r: Permission denied")}, "cache", "note", "set JITNEY_CACHE"),
        ({"torch": None}, "torch", "FAIL", "not installed"),
        (CPU, "device", "ok", "the CPU, 16 cores, AVX512; torch finds no NVIDIA card"),
        ({"card": None, "triton": None}, "triton", "FAIL", "pip install triton"),
        (CPU, "own kernels", "ok", "compute the whole step"),
        (CPU | {"without_own_kernels": "no amx_tile"}, "own kernels", "note", "torch computes: no amx_tile"),
        (CPU, "sockets", "ok", "a thread writes to many at a time"),
        (CPU, "bytecode", "ok", "kept from start to start"),
        (
            {"without_bytecode": "PYTHONDONTWRITEBYTECODE is set"},
            "bytecode",
            "note",
            "is set: every start compiles",
        ),
        (
            CPU | {"without_sender": "no C compiler"},
            "sockets",
            "note",
            "the event loop writes: no C compiler",
        ),
        (CPU | {"has_bfloat16": False}, "linear layers", "note", "float32"),
        (CPU | {"has_int8": False, "compiler": None}, "int8", "note", "VNNI"),
    ],
)
def test_what_is_missing_is_one_line(changes: dict[str, Any], what: str, verdict: str, words: str) -> None:
    found = told(**changes)
    assert found[what][0] == verdict and words in found[what][1]


def test_a_machine_that_cannot_serve_gives_status_1(monkeypatch: pytest.MonkeyPatch, jitney: Jitney) -> None:
    monkeypatch.setattr(
        doctor_module, "this_machine", lambda: msgspec.structs.replace(MACHINE, compiler=None)
    )
    result = jitney("doctor")
    assert result.exit_code == 1
    assert "FAIL C compiler: none" in result.stdout


def test_this_machine_serves(jitney: Jitney) -> None:
    result = jitney("doctor")
    assert result.exit_code == 0, result.stdout
    assert "ok   device:" in result.stdout and "ok   torch:" in result.stdout
    assert this_machine().torch is not None


def test_whether_a_directory_can_be_written(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "not" / "there" / "yet") is None
    (tmp_path / "file").write_text("")
    assert "file" in (unwritable(tmp_path / "file") or "")


def test_bytecode_is_missed_where_python_may_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.pyc"
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    assert without_bytecode(str(kept)) == "PYTHONDONTWRITEBYTECODE is set"
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    (tmp_path / "file").write_text("")
    assert "file" in (without_bytecode(str(tmp_path / "file" / "kept.pyc")) or "")
    kept.write_text("")
    assert without_bytecode(str(kept)) is None
