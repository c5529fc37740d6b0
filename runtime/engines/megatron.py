"""Megatron-LM's sampling fields, each honoured or refused by name (its `SamplingParams`, core/inference)."""

from __future__ import annotations

from typing import Any

import msgspec

from ..checks import check_fields
from ..errors import InvalidField
from ..params import SamplingParams


class MegatronFields(msgspec.Struct, frozen=True, kw_only=True):
    """A field left alone takes the model's own default; `top_k` 0 and `top_p` 0 are "off", as in Megatron.

    `num_tokens_total` counts the prompt. `termination_id` -1 means that no end id ends the answer. `streaming` and
    `do_kv_handoff` are refused: `stream` streams, and there is no second engine to hand KV to.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    return_log_probs: bool = False
    skip_prompt_log_probs: bool = False
    return_segments: bool = False
    num_tokens_to_generate: int | None = None
    num_tokens_total: int | None = None
    termination_id: int | None = None
    top_n_logprobs: int = 0
    return_prompt_top_n_logprobs: bool = False
    add_BOS: bool | None = None
    stop_words: list[str] | None = None
    detokenize_stop_sequence: bool = False
    return_prompt_tokens: bool = False
    streaming: bool = False
    streaming_interval: int = 1
    do_kv_handoff: bool = False

    def __post_init__(self) -> None:
        for field, why in _REFUSED.items():
            if getattr(self, field) is not False:
                raise InvalidField(field, f"false: {why}", getattr(self, field))
        if self.num_tokens_to_generate is not None and self.num_tokens_total is not None:
            raise InvalidField(
                "num_tokens_total", "not both this and num_tokens_to_generate", self.num_tokens_total
            )
        if self.top_n_logprobs and not self.return_log_probs:
            raise InvalidField("top_n_logprobs", "return_log_probs to be set as well", self.top_n_logprobs)
        check_fields(self)
        if self.return_prompt_top_n_logprobs and (not self.return_log_probs or self.skip_prompt_log_probs):
            raise InvalidField(
                "return_prompt_top_n_logprobs",
                "return_log_probs, and no skip_prompt_log_probs, beside it",
                True,
            )

    def params(self, prompt_len: int) -> SamplingParams:
        """The same wish in our words. Raises `InvalidField`, also under Megatron's names."""
        no_end = self.termination_id is not None
        scores_prompt = self.return_log_probs and not self.skip_prompt_log_probs
        given: dict[str, Any] = dict(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=1.0 if self.top_p is not False and self.top_p == 0 else self.top_p,
            logprobs=self.top_n_logprobs if self.return_log_probs else None,
            prompt_logprobs=(self.top_n_logprobs if self.return_prompt_top_n_logprobs else 0)
            if scores_prompt
            else None,
            max_tokens=self._max_tokens(prompt_len),
            ignore_eos=no_end,
            stop_token_ids=[self.termination_id] if no_end and self.termination_id != -1 else None,
            stop=self.stop_words,
            include_stop_str_in_output=self.detokenize_stop_sequence,
            stream_interval=self.streaming_interval,
        )
        try:
            return SamplingParams(**given)
        except InvalidField as error:
            raise error.renamed(_THEIRS.get(str(error.field), str(error.field))) from None

    def _max_tokens(self, prompt_len: int) -> int | None:
        if self.num_tokens_total is None:
            return self.num_tokens_to_generate
        if not isinstance(self.num_tokens_total, int) or self.num_tokens_total <= prompt_len:
            raise InvalidField(
                "num_tokens_total", f"more than the prompt's {prompt_len}", self.num_tokens_total
            )
        return self.num_tokens_total - prompt_len


_REFUSED = {
    "streaming": "`generate` answers whole; use `stream`",
    "do_kv_handoff": "there is no second engine to hand KV to",
}

_THEIRS = {
    "max_tokens": "num_tokens_to_generate",
    "stop": "stop_words",
    "stop_token_ids": "termination_id",
    "logprobs": "top_n_logprobs",
    "prompt_logprobs": "top_n_logprobs",
    "stream_interval": "streaming_interval",
}
