"""`jitney doctor`: what serves here and why, a line for each thing that matters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
import typer

from .machine import Card, Machine, this_machine

LEAST_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
MEASURED = "H100"
GIB = 2**30

Verdict = Literal["ok", "note", "FAIL"]


class Finding(msgspec.Struct, frozen=True):
    """`FAIL`: nothing can be served until this is mended; `note`: something is slower, or not to be had."""

    verdict: Verdict
    what: str
    told: str


def doctor() -> None:
    """Say what jitney would serve on here, and what is missing. Status 1 where it cannot serve."""
    found = list(findings(this_machine()))
    for finding in found:
        typer.echo(f"{finding.verdict:<4} {finding.what}: {finding.told}")
    if any(finding.verdict == "FAIL" for finding in found):
        raise typer.Exit(1)


def findings(machine: Machine) -> Iterator[Finding]:
    yield Finding("ok", "jitney", machine.jitney)
    if machine.torch is None:
        yield Finding("FAIL", "torch", "not installed; pip install torch")
        return
    yield Finding("ok", "torch", machine.torch)
    if machine.card is not None:
        yield from _on_card(machine, machine.card)
    elif machine.has_card:
        yield Finding(
            "FAIL", "triton", "not installed, and a card needs it: pip install triton; --device cpu serves"
        )
    else:
        yield from _on_cpu(machine)
    reason = machine.without_sender
    told = "a thread writes to many at a time" if reason is None else f"the event loop writes: {reason}"
    yield _ok_or_note(reason is None, "sockets", told)
    reason = machine.without_bytecode
    anew = "every start compiles Python's sources again, for seconds; `python -m compileall -q SITE-PACKAGES` ends that"
    told = "Python's, kept from start to start" if reason is None else f"{reason}: {anew}"
    yield _ok_or_note(reason is None, "bytecode", told)
    path, reason = machine.jitney_cache
    kept = "converted models and choices of kernels"
    told = f"{path}" if reason is None else f"{reason}; {kept} are not kept; set JITNEY_CACHE"
    yield _ok_or_note(reason is None, "cache", told)


def _on_card(machine: Machine, card: Card) -> Iterator[Finding]:
    capability = ".".join(map(str, card.capability))
    name = f"{card.name}, compute capability {capability}, built for CUDA {card.driver}"
    if card.capability < LEAST_CAPABILITY:
        yield Finding("FAIL", "device", f"{name}; 8.0 or newer is needed: --device cpu serves here")
    else:
        told = "measured" if MEASURED in card.name else f"by kernels that were measured on an {MEASURED}"
        yield Finding("ok", "device", f"{name}, {told}")
    yield Finding("ok", "memory", f"{card.free_bytes / GIB:.1f} of {card.total_bytes / GIB:.1f} GiB free")
    yield Finding("ok", "triton", str(machine.triton))
    yield Finding("ok", "prefill attention", card.prefill)
    chosen = f"timed on this card, {card.choices}" if card.has_choices else "built in, timed on an H100"
    yield Finding("ok", "linear layers", chosen)
    has_fp8 = card.capability >= FP8_CAPABILITY
    told = f"compiled on {machine.num_cores} threads at the first start; at none of an engine with {card.kernels}"
    yield Finding("ok", "kernels", f"{told} (jitney export --kernels)")
    told = "--quantize fp8 and --kv-dtype fp8" if has_fp8 else f"needs 8.9 or newer, this is {capability}"
    yield _ok_or_note(has_fp8, "fp8", told)
    yield from _compiling(machine)


def _compiling(machine: Machine) -> Iterator[Finding]:
    if machine.compiler is None:
        yield Finding(
            "FAIL", "C compiler", "none; Triton starts its kernels through one: install gcc, or set CC"
        )
    else:
        yield Finding("ok", "C compiler", machine.compiler)
    path, reason = machine.triton_cache
    if reason is None:
        yield Finding("ok", "kernel cache", path)
    else:
        yield Finding(
            "FAIL", "kernel cache", f"{reason}; set TRITON_CACHE_DIR to a directory that can be written"
        )


def _on_cpu(machine: Machine) -> Iterator[Finding]:
    told = f"the CPU, {machine.num_cores} cores, {machine.cpu}; torch finds no NVIDIA card"
    yield Finding("ok", "device", told)
    yield Finding("ok", "memory", f"{machine.free_bytes / GIB:.1f} GiB free")
    reason = machine.without_own_kernels
    told = "compute the whole step, in bfloat16 and int8" if reason is None else f"torch computes: {reason}"
    yield _ok_or_note(reason is None, "own kernels", told)
    computed = "bfloat16, by oneDNN" if machine.has_bfloat16 else "float32: oneDNN has no bfloat16 here"
    yield _ok_or_note(machine.has_bfloat16, "linear layers", computed)
    served = "--quantize int8" if machine.has_int8 else "needs oneDNN and a CPU with VNNI"
    yield _ok_or_note(machine.has_int8, "int8", served)


def _ok_or_note(is_ok: bool, what: str, told: str) -> Finding:
    return Finding("ok" if is_ok else "note", what, told)
