"""`EngineBuilder`: Megatron's way to ask for an engine, with the arguments of its TensorRT-LLM export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime.checks import expecting, is_integer
from ..runtime.errors import InvalidField
from ..runtime.steps.memory import PAGE_TOKENS
from ..runtime.weights.manifest import Manifest, Narrowing
from .engine_directory import export_engine
from .open import open_source
from .options import ExportOptions

_ONLY: dict[str, tuple[Any, str]] = {
    "config": (None, "a checkpoint says its own shape"),
    "lora_ckpt_list": (None, "adapters are not merged here"),
    "use_lora_plugin": (None, "adapters are not merged here"),
    "max_lora_rank": (64, "adapters are not merged here"),
    "lora_target_modules": (None, "adapters are not merged here"),
    "max_prompt_embedding_table_size": (0, "prompts are tokens"),
    "paged_kv_cache": (True, "the cache is always paged"),
    "remove_input_padding": (True, "input is always packed"),
    "paged_context_fmha": (True, "prompts are always computed over pages"),
    "use_refit": (False, "an engine is made anew for other weights"),
    "opt_num_tokens": (None, "kernels are not tuned to one batch"),
    "max_beam_width": (1, "there is no beam search"),
    "tokens_per_block": (PAGE_TOKENS, "pages have one size"),
    "multiple_profiles": (False, "one engine serves every batch"),
    "gpt_attention_plugin": ("auto", "the runtime chooses its kernels"),
    "gemm_plugin": ("auto", "the runtime chooses its kernels"),
    "reduce_fusion": (False, "the runtime chooses its kernels"),
}
"""What these arguments must be, and why nothing else is done."""


_COUNT = expecting("an integer of at least 1", lambda value: is_integer(value) and value >= 1)


class EngineBuilder:
    """Stateless, as Megatron's is."""

    @staticmethod
    def build_and_save_engine(
        engine_dir: str | Path,
        weights: str | Path,
        *,
        tokenizer: str | Path | None = None,
        max_input_len: int = 1024,
        max_output_len: int = 1024,
        max_batch_size: int = 4,
        max_num_tokens: int | None = None,
        max_seq_len: int | None = None,
        quantize: Narrowing | None = None,
        tensor_parallel_size: int = 1,
        max_kl: float | None = None,
        accept_quality: bool = False,
        replace: bool = False,
        **fixed: Any,
    ) -> Manifest:
        """Make an engine directory out of any checkpoint that jitney reads: `weights` names it, `tokenizer` a
        directory with `tokenizer.json` where it has none.

        The lengths, in tokens, and the batch, in sequences, are what the engine serves unless its settings at the
        start say less. `max_seq_len` None: input and output together. `fixed`: Megatron's other arguments, which
        have one value here.

        Raises `InvalidField` naming the argument that is not honoured, `ModelError` where the checkpoint is damaged,
        the directory is taken, or too much quality is lost.
        """
        for name, value in fixed.items():
            if name not in _ONLY:
                raise InvalidField(name, f"one of {', '.join(sorted(_ONLY))}", value)
            wanted, reason = _ONLY[name]
            if value != wanted:
                raise InvalidField(name, f"{wanted!r}: {reason}", value)
        counts = {
            "max_input_len": max_input_len,
            "max_output_len": max_output_len,
            "max_batch_size": max_batch_size,
            "max_num_tokens": 1 if max_num_tokens is None else max_num_tokens,
            "max_seq_len": 1 if max_seq_len is None else max_seq_len,
        }
        for name, value in counts.items():
            _COUNT(name, value)
        options = ExportOptions(
            source=str(weights),
            tokenizer=None if tokenizer is None else Path(tokenizer),
            quantize=quantize,
            tp=tensor_parallel_size,
            max_kl=max_kl,
            accept_quality=accept_quality,
            force=replace,
            max_rows=max_batch_size,
            max_context=max_seq_len or max_input_len + max_output_len,
            max_batch_tokens=max_num_tokens,
        )
        source = open_source(weights, tokenizer=tokenizer)
        return export_engine(source, Path(engine_dir), options, lambda stage, done, total: None)
