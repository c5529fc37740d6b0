"""Where converted models are kept, and how a directory appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import ModelError


def cache_root() -> Path:
    """`$JITNEY_CACHE`, else `$XDG_CACHE_HOME/jitney`, else `~/.cache/jitney`."""
    own = os.environ.get("JITNEY_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "jitney"


def cached_directory(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's directory `name`, filled by `fill` where it is not there yet.

    It is filled under a temporary name and renamed: of two processes at once the second to finish discards its own.
    Raises `ModelError` where the cache cannot be written.
    """
    target = cache_root() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"{target}: the cache cannot be written ({error}); set JITNEY_CACHE") from error
    try:
        fill(partial)
        partial.chmod(0o755)
        partial.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise ModelError(f"{target}: the cache cannot be written ({error}); set JITNEY_CACHE") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
