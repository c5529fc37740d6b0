"""What is installed is what lies on disk, under the version that the changelog names."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("runtime", "streaming", "export")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


def test_every_folder_with_python_is_listed_as_a_package() -> None:
    on_disk = {path.parent.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    settings = PROJECT["tool"]["setuptools"]
    assert {"jitney." + ".".join(folder.parts) for folder in on_disk} == set(settings["packages"])
    assert settings["package-dir"] == {
        "jitney." + ".".join(folder.parts): folder.as_posix() for folder in on_disk
    }


def test_every_data_file_is_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    data = [(name, path) for name in FOLDERS for path in files(ROOT / name) if not path.endswith(".py")]
    assert not [
        path
        for name, path in data
        if Path(path).name not in patterns["*"]
        and not any(fnmatch(path, pattern) for pattern in patterns.get(f"jitney.{name}", ()))
    ]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_installed_files_are_those_of_the_checkout(name: str) -> None:
    [installed] = importlib.import_module(f"jitney.{name}").__path__
    assert files(Path(installed)) == files(ROOT / name), "run `make install` again"


@pytest.mark.parametrize("name", FOLDERS)
def test_types_are_shipped(name: str) -> None:
    assert (ROOT / name / "py.typed").is_file()


def test_no_python_but_the_build_lies_at_the_root() -> None:
    assert list(ROOT.glob("*.py")) == [ROOT / "setup.py"]


@pytest.mark.parametrize(
    ("refuses", "built"), [("-mamx-tile", {"streaming/_sender"}), ("-std=c11", set())], ids=["old", "none"]
)
def test_what_a_compiler_cannot_build_is_left_out_alone(
    refuses: str, built: set[str], tmp_path: Path
) -> None:
    """An old compiler, or one for another processor; and one that builds nothing."""
    for name in ("setup.py", "pyproject.toml", "README.md", *FOLDERS):
        (tmp_path / name).symlink_to(ROOT / name)
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *{refuses}*) exit 1;; esac\nexec gcc "$@"\n')
    compiler.chmod(0o755)
    lib = tmp_path / "lib"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", lib, "--build-temp", tmp_path / "temp"],
        cwd=tmp_path, env=os.environ | {"CC": str(compiler)}, check=True, capture_output=True,
    )  # fmt: skip
    found = {path.relative_to(lib / "jitney").as_posix().partition(".")[0] for path in lib.rglob("*.so")}
    assert found == built


def test_the_version_is_the_one_the_changelog_opens_with() -> None:
    [latest, *_] = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert PROJECT["project"]["version"] == latest == metadata.version("jitney")


def test_the_console_script_starts_the_command_line() -> None:
    [script] = metadata.entry_points(group="console_scripts", name="jitney")
    assert script.value == "jitney.streaming.cli:main"
    assert callable(script.load())


@pytest.mark.parametrize("name", FOLDERS)
def test_listed_names_can_be_imported(name: str) -> None:
    package = importlib.import_module(f"jitney.{name}")
    for public in getattr(package, "__all__", []):
        assert callable(getattr(package, public))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name
