"""Libraries of C beside the package: found by their name, declared whole or not at all."""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from jitney.runtime.extension import built, declared


def test_a_library_is_found_under_any_name_that_python_gives_it(tmp_path: Path) -> None:
    (tmp_path / "sums.c").write_text("")
    assert built(tmp_path, "sums") is None
    for suffix in reversed(EXTENSION_SUFFIXES):
        path = tmp_path / f"sums{suffix}"
        path.write_text("")
        assert built(tmp_path, "sums") == path
    assert built(tmp_path, "sum") is None


def test_functions_are_declared_by_their_prefix_and_one_that_is_missing_is_named() -> None:
    libc = ctypes.CDLL(None)
    assert declared(libc, "pthread", {"equal": (ctypes.c_int, [ctypes.c_ulong, ctypes.c_ulong])}) is libc
    assert libc.pthread_equal(7, 7) and not libc.pthread_equal(7, 8)
    with pytest.raises(ctypes.ArgumentError):
        libc.pthread_equal("7", 7)
    with pytest.raises(AttributeError, match="jitney_nowhere"):
        declared(libc, "jitney", {"nowhere": (None, [])})
