"""An export that dies, at any operation on the disk or any byte, leaves nothing that anybody takes for an engine."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exporting import exported
from tiny_checkpoints import write_checkpoint

from jitney.export import folder as folders
from jitney.export.hf_directory import export_huggingface
from jitney.export.open import open_source
from jitney.export.options import ExportOptions
from jitney.runtime.errors import ModelError
from jitney.runtime.weights.locate import open_backend

OPERATIONS = ("open", "write", "fsync", "close", "rename")


class Killed(BaseException):
    """The process is dead: nothing of it runs any more."""


class Disk:
    """`os` as a process sees it that dies at its operation number `at`; a write is then cut in half."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._dying(name, real) if name in OPERATIONS else real

    def _dying(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            self.count += 1
            if self.count == self.at and name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self.count >= self.at:
                raise Killed
            return real(*arguments)

        return operation


def dies(at: int, monkeypatch: pytest.MonkeyPatch, export: Callable[[], object]) -> bool:
    """Whether the export died; False where it has fewer operations."""
    with monkeypatch.context() as patched:
        patched.setattr(folders, "os", Disk(at))
        patched.setattr(folders.shutil, "rmtree", lambda *arguments, **options: None)
        patched.setattr("jitney.export.engine_directory.tiles_here", lambda *arguments: ())
        try:
            export()
        except Killed:
            return True
    return False


def left_behind(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.name != "source"]


def test_killed_at_every_operation_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    exported(source, tmp_path / "engine")
    names = {file.name for file in (tmp_path / "engine").iterdir()}
    shutil.rmtree(tmp_path / "engine")
    points = 0
    for at in itertools.count(1):
        if not dies(at, monkeypatch, lambda: exported(source, tmp_path / "engine")):
            break
        points += 1
        for path in left_behind(tmp_path):
            assert is_whole_or_refused(path, names)
            shutil.rmtree(path)
    assert points >= 50


def is_whole_or_refused(path: Path, names: set[str]) -> bool:
    """What is accepted has all files; at its own name it is accepted."""
    try:
        open_backend(path)
    except ModelError:
        return path.name.startswith(".")
    return {file.name for file in path.iterdir()} == names


def test_killed_while_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either the old engine or the new one is there, or nothing under that name."""
    source = write_checkpoint(tmp_path / "source", "Llama")
    for at in range(50, 200):
        shutil.rmtree(tmp_path / "engine", ignore_errors=True)
        exported(source, tmp_path / "engine", max_rows=5)
        died = dies(at, monkeypatch, lambda: exported(source, tmp_path / "engine", max_rows=7, force=True))
        if (tmp_path / "engine").exists():
            open_backend(tmp_path / "engine")
        for path in left_behind(tmp_path):
            shutil.rmtree(path)
        if not died:
            return
    pytest.fail("an export has fewer operations")


def test_killed_at_every_operation_of_a_hugging_face_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(write_checkpoint(tmp_path / "source", "Qwen2"))
    options = ExportOptions(source="source")
    target = tmp_path / "hf"

    def export() -> None:
        export_huggingface(source, target, options, lambda *_: None)

    export()
    names = {file.name for file in target.iterdir()}
    shutil.rmtree(target)
    for at in itertools.count(1):
        if not dies(at, monkeypatch, export):
            assert at > 15
            break
        for path in left_behind(tmp_path):
            assert is_whole_or_refused(path, names)
            shutil.rmtree(path)


CHILD = """
import os, sys
from pathlib import Path
from jitney.export import folder
from jitney.export import engine_directory
from jitney.export.open import open_source
from jitney.export.options import ExportOptions
left = int(sys.argv[3])
class Disk:
    def __getattr__(self, name):
        return getattr(os, name)
    def write(self, handle, data):
        global left
        if len(data) >= left:
            os.write(handle, data[:left])
            os.kill(os.getpid(), 9)
        left -= len(data)
        return os.write(handle, data)
folder.os = Disk()
engine_directory.tiles_here = lambda *arguments: ()
source = open_source(sys.argv[1])
engine_directory.export_engine(source, Path(sys.argv[2]), ExportOptions(source="s"), lambda *_: None)
"""


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_killed_for_good_at_a_byte(share: float, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")
    exported(source, tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    shutil.rmtree(tmp_path / "whole")
    arguments = [str(source), str(tmp_path / "engine"), str(int(size * share))]
    run = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (tmp_path / "engine").exists()
    for path in left_behind(tmp_path):
        assert path.name.startswith(".engine.partial-")
        with pytest.raises(ModelError):
            open_backend(path)


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "source", "Llama")

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    disk = Disk(10**9)
    disk.write = full  # type: ignore[attr-defined]
    monkeypatch.setattr(folders, "os", disk)
    with pytest.raises(ModelError, match="engine: cannot be written: .*No space left"):
        exported(source, tmp_path / "engine")
    assert not left_behind(tmp_path)
