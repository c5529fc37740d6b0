"""An engine directory brings the kernels of a card: named by the manifest, checked before they are used, and left alone
on any other card."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
from exporting import exported, tiny_engine
from tiny_checkpoints import write_checkpoint

pytest.importorskip("triton")

from jitney.export import card, engine_directory
from jitney.export.options import ExportOptions
from jitney.runtime.errors import InvalidField, ModelError
from jitney.runtime.kernels.choice import LIBRARY
from jitney.runtime.kernels.kernel_file import KernelFile, MadeFor
from jitney.runtime.weights import engine as engines
from jitney.runtime.weights.engine import EngineCheckpoint
from jitney.runtime.weights.manifest import read_manifest

CARD = MadeFor("NVIDIA H100 80GB HBM3", (9, 0), "3.6.0", "2.9.1+cu128")
KERNELS = KernelFile(CARD, {"task": LIBRARY}, {"A" * 52: {"gemv.json": b"{}", "gemv.cubin": b"\x7fELF"}})


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_directory, "has_card", lambda *, required: True)
    monkeypatch.setattr(card, "kernels_here", lambda model, weights, limits: KERNELS)
    monkeypatch.setattr(engines, "this_card", lambda: CARD)


@pytest.mark.usefixtures("on_card")
def test_kernels_are_brought_and_all_else_is_the_same_bytes(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, kernels=True)
    manifest = read_manifest(engine)
    assert CARD.file_name in {file.name for file in manifest.files} and manifest.options == ("--kernels",)
    assert EngineCheckpoint(engine).brought_kernels() == KERNELS
    exported(tmp_path / "source", tmp_path / "bare")
    for path in (tmp_path / "bare").iterdir():
        assert path.name == "engine.json" or path.read_bytes() == (engine / path.name).read_bytes()
    assert EngineCheckpoint(tmp_path / "bare").brought_kernels() is None


@pytest.mark.usefixtures("on_card")
@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_byte_is_found_before_they_are_used(at: int, tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, kernels=True)
    content = bytearray((engine / CARD.file_name).read_bytes())
    content[at] ^= 4
    (engine / CARD.file_name).write_bytes(content)
    checkpoint = EngineCheckpoint(engine)
    with pytest.raises(ModelError, match=rf"{CARD.file_name}: damaged: block 0"):
        checkpoint.brought_kernels()
    with pytest.raises(ModelError, match=CARD.file_name):
        checkpoint.verify()


@pytest.mark.usefixtures("on_card")
@pytest.mark.parametrize("field, value", [("card", "NVIDIA L4"), ("triton", "3.9.0"), ("torch", "2.13.0")])
def test_another_card_says_so_and_falls_back(
    field: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = tiny_engine(tmp_path, kernels=True)
    other = msgspec.structs.replace(CARD, **{field: value})
    monkeypatch.setattr(engines, "this_card", lambda: other)
    with caplog.at_level(logging.INFO):
        assert EngineCheckpoint(engine).brought_kernels() is None
    (record,) = [record for record in caplog.records if "kernels" in record.message]
    assert other.file_name in record.message and CARD.file_name in record.message


def test_without_a_card_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_directory, "has_card", lambda *, required: False)
    source = write_checkpoint(tmp_path / "source", "Llama")
    with pytest.raises(InvalidField, match="kernels: .*an NVIDIA card"):
        exported(source, tmp_path / "engine", kernels=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    with pytest.raises(InvalidField, match="kernels: .*tp"):
        ExportOptions(source="x", kernels=True, tp=2)
