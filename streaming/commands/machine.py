"""What this machine has, as plain data: gathered once, so that `jitney doctor` can be told of any machine."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.process import num_cores, short_spins
from ..sender import without_sender

COMPILERS = ("cc", "gcc", "clang")


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """`driver` is the CUDA version that it speaks; `prefill` names the kernel and why; `choices` is the file of
    kernels that were timed on this card, `kernels` the one of an engine directory that holds this card's, compiled."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int
    driver: str
    prefill: str
    choices: str
    has_choices: bool
    kernels: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Caches map a directory to why it cannot be written, or None."""

    jitney: str
    torch: str | None
    triton: str | None
    has_card: bool = False
    card: Card | None = None
    """What is known of it; needs triton."""
    cpu: str = ""
    has_bfloat16: bool = False
    """By oneDNN; else the CPU computes in float32."""
    has_int8: bool = False
    without_own_kernels: str | None = None
    """Why torch computes what they could; None: they do."""
    without_sender: str | None = None
    """Why the event loop writes to sockets; None: a thread does."""
    without_bytecode: str | None = None
    """Why Python compiles torch's sources at every start; None: it has kept what it compiled."""
    num_cores: int = 1
    free_bytes: int = 0
    compiler: str | None = None
    triton_cache: tuple[str, str | None]
    jitney_cache: tuple[str, str | None]


def this_machine() -> Machine:
    from ...runtime.weights.cache import cache_root

    torch_version, triton_version = installed("torch"), installed("triton")
    own = os.environ.get("CC")
    compiler = next(filter(None, map(shutil.which, (own,) if own else COMPILERS)), None)
    triton_cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    machine = Machine(
        jitney=installed("jitney") or "a checkout",
        torch=torch_version,
        triton=triton_version,
        num_cores=num_cores(),
        compiler=compiler,
        triton_cache=(str(triton_cache), unwritable(triton_cache)),
        jitney_cache=(str(cache_root()), unwritable(cache_root())),
    )
    return machine if torch_version is None else _with_torch(machine, cache_root())


def _with_torch(machine: Machine, root: Path) -> Machine:
    with short_spins():
        import torch

    from ...runtime.native.library import library
    from ...runtime.steps.memory import free_memory

    cpu: Any = torch.cpu
    has_onednn = torch.backends.mkldnn.is_available()
    has_card = torch.cuda.is_available()
    return msgspec.structs.replace(
        machine,
        has_card=has_card,
        card=_card(root) if has_card and machine.triton is not None else None,
        cpu=torch.backends.cpu.get_cpu_capability(),
        has_bfloat16=has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        has_int8=has_onednn and bool(cpu._is_vnni_supported()),
        without_own_kernels=library().reason or None,
        without_sender=without_sender(),
        without_bytecode=without_bytecode(torch.__spec__.cached),
        free_bytes=free_memory(),
    )


def _card(root: Path) -> Card:
    import torch

    from ...runtime.kernels.kernel_file import this_card
    from ...runtime.kernels.prefill_choice import prefill_attention_for
    from ...runtime.kernels.tuned import choices_file

    device = torch.device("cuda", torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info(device)
    prefill = prefill_attention_for(device, torch.bfloat16, torch.bfloat16, 128)
    choices = choices_file(root, torch.cuda.get_device_name(device))
    return Card(
        name=torch.cuda.get_device_name(device),
        capability=torch.cuda.get_device_capability(device),
        free_bytes=free,
        total_bytes=total,
        driver=str(torch.version.cuda),
        prefill=f"{prefill.name} ({prefill.reason})",
        choices=str(choices),
        has_choices=choices.is_file(),
        kernels=this_card().file_name,
    )


def without_bytecode(cached: str | None) -> str | None:
    """Why a module that was imported is not at `cached`, its spec's place for bytecode, or None."""
    if cached is None or Path(cached).is_file():
        return None
    return "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else unwritable(Path(cached).parent)


def unwritable(directory: Path) -> str | None:
    """Why no file can be made in it, or None. A directory that is missing is made by whoever needs it first."""
    while not directory.exists() and directory.parent != directory:
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return f"{directory}: {error.strerror or error}"


def installed(package: str) -> str | None:
    """Its version; None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
