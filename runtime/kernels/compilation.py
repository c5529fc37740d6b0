"""Every kernel that an engine launches, compiled before the first of them is launched, on threads.

Triton compiles a kernel when it is first launched: one after the other, which is most of a cold start. Here the
launches are rehearsed: the same calls are made, nothing is launched, and what each would launch is noted. Then all is
compiled at once, outside the interpreter lock but for a tenth of the time, or read from Triton's cache, or taken from
what an engine directory brought; of that nothing gets into the cache, which other programs share.

Triton's driver and hook belong to the process. What is put in their place acts on calls of the thread that rehearses;
launches of other threads, other engines' among them, go through.
"""

from __future__ import annotations

import base64
import importlib
import json
import logging
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread, get_ident
from typing import Any

from triton import knobs
from triton.runtime import driver
from triton.runtime._async_compile import AsyncCompileMode
from triton.runtime.cache import FileCacheManager, triton_key
from triton.runtime.jit import JITFunction

from ..process import num_cores
from .choice import Choice
from .kernel_file import Binaries, KernelFile

REHEARSED = -1
"""A device on which nothing is compiled yet."""

logger = logging.getLogger("jitney")

Variants = dict[tuple[JITFunction, str], str]
"""By function and Triton's key of the variant: how Triton describes it to itself."""


class Kernels:
    """Those of one engine. Used by the thread that computes."""

    def __init__(self, brought: KernelFile | None = None) -> None:
        """`brought`: made on such a card."""
        self.choices: Mapping[str, Choice] = brought.choices if brought else {}
        """What was timed, by `Task.key`."""
        self._brought = brought.binaries if brought else {}
        self._variants: Variants = {}
        self._keyed = Thread(target=triton_key, name="jitney-triton-key", daemon=True)
        self._keyed.start()  # Triton's digest of itself, some hundred MB: ready by the time that weights are

    def compile(self, rehearse: Callable[[], object]) -> int:
        """Make ready what `rehearse` launches, which launches nothing now; gives how many were compiled for it. What
        cannot be compiled is left to the launch, which then says why."""
        start, compiled = time.perf_counter(), 0

        def count(*, cache_hit: bool, **_: Any) -> None:
            nonlocal compiled
            compiled += not cache_hit

        settle_keys()
        needed = rehearsed(rehearse)
        self._keyed.join()
        self._variants |= needed
        missing = [variant for variant in needed if variant[1] not in _ready(variant[0])]
        with ThreadPoolExecutor(num_cores(), "jitney-compile") as pool, self._at_hand():
            with knobs.compilation.scope(), AsyncCompileMode(pool, ignore_errors=True):
                knobs.compilation.listener = count
                for function, key in missing:
                    function.preload(needed[function, key])
            found = [kernel for function, key in missing if (kernel := _ready(function).get(key))]
            _make_launchers(pool, found)
        logger.info(
            "kernels: %d needed, %d compiled, %d brought by the engine, %.1f s",
            len(needed), compiled, sum(_key(kernel) in self._brought for kernel in found), time.perf_counter() - start,
        )  # fmt: skip
        return compiled

    def binaries(self) -> Binaries:
        """Of everything that was needed so far."""
        kernels = (_ready(function).get(key) for function, key in self._variants)
        return {_key(kernel): _files(kernel) for kernel in kernels if kernel is not None}

    @contextmanager
    def _at_hand(self) -> Iterator[None]:
        """Triton finds what was brought."""

        def manager(key: str, **kind: bool) -> FileCacheManager:
            found = FileCacheManager(key, **kind)
            if key in self._brought:
                found.cache_dir = str(Path(folder, key))
            return found

        with TemporaryDirectory(prefix="jitney-kernels-") as folder, knobs.cache.scope():
            for key, files in self._brought.items():
                _unpack(Path(folder, key), files)
            knobs.cache.manager_class = manager
            yield


class _Rehearsal:
    """Triton's driver, but for the thread that makes this no kernel is compiled."""

    def __init__(self, real: Any) -> None:
        self._real, self._thread = real, get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_current_device(self) -> int:
        return REHEARSED if self.is_mine() else self._real.get_current_device()

    def get_current_stream(self, device: int) -> int:
        return 0 if self.is_mine() else self._real.get_current_stream(device)

    def is_mine(self) -> bool:
        return get_ident() == self._thread


class _Silent:
    """A kernel that does nothing when it is launched again."""

    function = packed_metadata = None

    def launch_metadata(self, *_: object) -> None: ...

    def run(self, *_: object) -> None: ...


def rehearsed(run: Callable[[], object]) -> Variants:
    """The kernels that `run` launches; none is."""
    real, noted = driver.active, Variants()
    rehearsal = _Rehearsal(real)

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        if rehearsal.is_mine():
            noted[fn.jit_function, compile["key"]] = compile["specialization_data"]
            fn.jit_function.device_caches[REHEARSED][0][compile["key"]] = _Silent()
        return rehearsal.is_mine()

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = note
        driver.set_active(rehearsal)
        try:
            run()
        finally:
            driver.set_active(real)
            for function in {function for function, _ in noted}:
                del function.device_caches[REHEARSED]
    return noted


def settle_keys() -> None:
    """Triton 3.6 keys a kernel by those that were keyed before it: here all are, in one order."""
    package = importlib.import_module(__package__ or "")
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        for function in vars(importlib.import_module(f"{package.__name__}.{name}")).values():
            if isinstance(function, JITFunction):
                _ = function.cache_key


def _make_launchers(pool: ThreadPoolExecutor, kernels: list[Any]) -> None:
    """Triton before 3.7 starts each signature by a C function of its own, which a compiler makes."""
    by_signature = {str(list(kernel.src.signature.values())): kernel for kernel in kernels}
    made = [
        pool.submit(driver.active.launcher_cls, each.src, each.metadata) for each in by_signature.values()
    ]
    for launcher in made:
        launcher.exception()


def _ready(function: JITFunction) -> dict[str, Any]:
    """Of the current device, by key."""
    ready: dict[str, Any] = function.device_caches[driver.active.get_current_device()][0]
    return ready


def _key(kernel: Any) -> str:
    return base64.b32encode(bytes.fromhex(kernel.hash)).decode().rstrip("=")


def _files(kernel: Any) -> dict[str, bytes]:
    metadata = json.dumps(kernel.metadata._asdict(), default=vars, sort_keys=True)
    return {f"{kernel.src.name}.json": metadata.encode(), f"{kernel.src.name}.cubin": kernel.kernel}


def _unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """As Triton lays a kernel down, which names the files of a group by their paths."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    paths = {name: str(folder / name) for name in files}
    for name in files:
        if name.endswith(".json"):
            (folder / f"__grp__{name}").write_text(json.dumps({"child_paths": paths}))
