"""For people who test against jitney: the engine over a script. No torch, no model; replies, delays and faults by
file or by code, through the same scheduler, worker and logs as a real model."""

from __future__ import annotations

from .byte_tokenizer import ByteTokenizer
from .script import Reply, Script, ScriptedBackend
from .scripted_step import RowView, ScriptedStep, chain

__all__ = ["ByteTokenizer", "Reply", "RowView", "Script", "ScriptedBackend", "ScriptedStep", "chain"]
