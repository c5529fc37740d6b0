"""`POST /v1/tokenize` and `/v1/detokenize`: the fields, in vLLM's spelling."""

from __future__ import annotations

from typing import Any

import msgspec

from ...runtime.errors import InvalidField, RequestError
from ...runtime.intake import Prompt
from .fields import Harmless, Table, check_model, honoured, honours, typed
from .messages import chat_messages


class Tokenize(msgspec.Struct, kw_only=True):
    """Text, or messages as the model's template renders them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool = True
    """Whether the model's BOS comes before a text."""
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    def content(self) -> Prompt:
        """What to tokenise. Raises `RequestError`."""
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("prompt: expected either prompt or messages", field="prompt")
        return self.prompt if self.prompt is not None else chat_messages(self.messages or [])


class Detokenize(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


TOKENIZE: Table = {
    **honours(Tokenize),
    "add_generation_prompt": Harmless((True,)),
    "continue_final_message": Harmless((False,)),
}

DETOKENIZE = honours(Detokenize)


def tokenize(body: dict[str, Any], served_model: str) -> Tokenize:
    """Raises `RequestError`."""
    request = typed(honoured(body, TOKENIZE), Tokenize)
    check_model(request.model, served_model)
    return request


def detokenize(body: dict[str, Any], served_model: str, *, vocab_size: int, max_tokens: int) -> list[int]:
    """The token ids, each of the vocabulary. Raises `RequestError`."""
    request = typed(honoured(body, DETOKENIZE), Detokenize)
    check_model(request.model, served_model)
    if len(request.tokens) > max_tokens:
        raise InvalidField("tokens", f"at most {max_tokens} token ids", len(request.tokens))
    for token in request.tokens:
        if not 0 <= token < vocab_size:
            raise InvalidField("tokens", f"token ids from 0 to {vocab_size - 1}", token)
    return request.tokens
