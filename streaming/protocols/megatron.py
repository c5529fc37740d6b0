"""Megatron-LM's `PUT /api`: each of its fields honoured, or refused by name. It accepted several and ignored them, and
sent what was wrong with a request as a 200; neither happens here."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ...runtime.backend import Tokenizer
from ...runtime.batch import TokenLogprobs
from ...runtime.checks import check_fields, number
from ...runtime.errors import InvalidField
from ...runtime.events import Event
from ...runtime.params import MAX_SEED, SamplingParams
from .errors import Refusal
from .exchange import Answer, Exchange, Opened
from .fields import Harmless, Refused, Table, honoured, honours, parse, typed
from .generate import Envelope, Generate
from .logprobs import LEAST

MAX_PROMPTS = 128
DEFAULT_TOKENS = 64

_THEIRS = {
    "max_tokens": "tokens_to_generate",
    "prompt": "prompts",
    "seed": "random_seed",
    "stop_token_ids": "stop_token",
    "bad_token_sequences": "prevent_newline_after_colon",
}


class _Request(msgspec.Struct, kw_only=True):
    """Megatron's names, defaults and bounds. 0 switches `top_k`, `top_p` and their like off."""

    prompts: list[str]
    tokens_to_generate: Annotated[int, number(0, 2**31 - 1)] = DEFAULT_TOKENS
    logprobs: bool = False
    temperature: Annotated[float, number(0, 2)] = 1.0
    top_k: Annotated[int, number(0, 1000)] = 0
    top_p: Annotated[float, number(0, 1)] = 0.0
    top_p_decay: Annotated[float, number(0, 1)] = 0.0
    top_p_bound: Annotated[float, number(0, 1)] = 0.0
    add_BOS: bool = False
    stop_on_double_eol: bool = False
    stop_on_eol: bool = False
    prevent_newline_after_colon: bool = False
    random_seed: Annotated[int | None, number(0, MAX_SEED - 1)] = None
    stop_token: Annotated[int | None, number(0, 2**31 - 1)] = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.prompts) <= MAX_PROMPTS:
            raise InvalidField("prompts", f"1 to {MAX_PROMPTS} texts", len(self.prompts))
        if not self.add_BOS and not all(self.prompts):
            raise InvalidField("prompts", "no empty text unless add_BOS is true", "")
        if not self.tokens_to_generate and not self.logprobs:
            raise InvalidField("tokens_to_generate", "at least 1, or logprobs to be true", 0)
        if self.temperature == 0:
            raise InvalidField("temperature", "a number above 0; top_k 1 takes the likeliest token", 0)
        if self.top_p and self.top_k:
            raise InvalidField("top_p", "0 beside a top_k", self.top_p)
        for field in ("top_p_decay", "top_p_bound"):
            if getattr(self, field) and not self.top_p:
                raise InvalidField(field, "a top_p above 0 as well", getattr(self, field))
        if self.top_p_bound > self.top_p:
            raise InvalidField("top_p_bound", f"at most top_p ({self.top_p:g})", self.top_p_bound)

    def params(self, index: int, tokenizer: Tokenizer) -> SamplingParams:
        """Of one prompt. Prompts of one request draw differently, whatever its seed."""
        seed = None if self.random_seed is None else (self.random_seed + index) % MAX_SEED
        stops = [line for flag, line in ((self.stop_on_eol, "\n"), (self.stop_on_double_eol, "\n\n")) if flag]
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p or 1.0,
            top_p_decay=self.top_p_decay or 1.0,
            top_p_bound=self.top_p_bound,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=seed,
            max_tokens=self.tokens_to_generate or 1,
            stop=stops or None,
            include_stop_str_in_output=bool(stops) or self.stop_token is not None,
            stop_token_ids=None if self.stop_token is None else [self.stop_token],
            ignore_eos=self.stop_token is not None,
            bad_token_sequences=_newlines_after_colons(tokenizer)
            if self.prevent_newline_after_colon
            else None,
            logprobs=0 if self.logprobs else None,
            prompt_logprobs=0 if self.logprobs else None,
        )


FIELDS: Table = {
    **honours(_Request),
    "length_penalty": Harmless((1, 1.0)),
    "max_len": Refused("it is called tokens_to_generate"),
    "sentences": Refused("they are called prompts"),
    "beam_width": Refused("there is no beam search"),
}


class MegatronApi(Exchange):
    """`text` is the prompt and what follows; `segments` are its tokens as text, `tokens` their ids, and `logprobs`
    those of every token but the first."""

    id_prefix = "megatron-"
    plain_object = chunk_object = "megatron"

    def __init__(self, body: bytes, tokenizer: Tokenizer) -> None:
        asked = typed(honoured(parse(body), FIELDS), _Request)
        if asked.add_BOS and not tokenizer.encode("", add_bos=True):
            raise InvalidField("add_BOS", "false: the model has no BOS token", True)
        self._asked = asked
        self._tokens: list[list[int]] = [[] for _ in asked.prompts]
        self._scores: list[list[TokenLogprobs | None]] = [[] for _ in asked.prompts]
        self._tokenizer = tokenizer
        super().__init__(Envelope(), tuple(map(self._generate, range(len(asked.prompts)))))

    def _generate(self, index: int) -> Generate:
        try:
            params = self._asked.params(index, self._tokenizer)
        except InvalidField as error:
            raise error.renamed(_THEIRS.get(error.field or "", error.field or "")) from None
        asked = Envelope()
        generate = asked.generate(self._asked.prompts[index], asked.paced(params), _THEIRS)
        return msgspec.structs.replace(generate, add_bos=self._asked.add_BOS)

    def begin(self, opened: Opened) -> bytes:
        self._prompts = opened.prompts
        return super().begin(opened)

    def feed(self, which: int, event: Event) -> bytes:
        self._tokens[which] += event.token_ids
        self._scores[which] += event.prompt_logprobs or ()
        return super().feed(which, event)

    def result(self) -> bytes | Refusal:
        if self._failure:
            return self._failure
        wholes = [self.choice(index, answer) for index, answer in enumerate(self.answers)]
        return msgspec.json.encode({name: [whole[name] for whole in wholes] for name in wholes[0]})

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        is_scored_only = not self._asked.tokens_to_generate
        generated = [] if is_scored_only else self._tokens[index]
        tokens = [*self._prompts[index], *generated]
        whole: dict[str, Any] = {
            "text": self._asked.prompts[index] + ("" if is_scored_only else answer.text),
            "segments": [self.tokenizer.token_text(token) for token in tokens],
            "tokens": tokens,
        }
        if self._asked.logprobs:
            scores = [*self._scores[index][1:], *(() if is_scored_only else answer.logprobs)]
            whole["logprobs"] = [max(at.logprob, LEAST) for at in scores if at is not None]
        return whole


def _newlines_after_colons(tokenizer: Tokenizer) -> list[list[int]]:
    """A colon's token and a line break's, as two tokens and as one that spells both."""
    breaks = [*tokenizer.word_sequences("\n"), *tokenizer.word_sequences("\n\n")]
    pairs = {(colon[-1], *line) for colon in tokenizer.word_sequences(":") for line in breaks}
    joined = {*tokenizer.word_sequences(":\n"), *tokenizer.word_sequences(":\n\n")}
    return [list(sequence) for sequence in sorted(pairs | joined)]
