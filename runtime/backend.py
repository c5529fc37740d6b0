"""What an engine serves: the text side, ready at once, and the step, opened later on the worker's thread.

The engine knows models only through this protocol, so a scripted model and a real one are served by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from .batch import PaddedBatch, Step
from .config import EngineConfig

Message = dict[str, Any]
"""One chat message: `role`, and `content` (text, or a list of text parts)."""


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What the model's `generation_config.json` says; None where it is silent."""

    end_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class Detokenizer(Protocol):
    """Token ids of one sequence in, text out. The texts joined equal the whole sequence's decoding."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that is certain after these tokens; may be empty inside a character."""
        ...

    def flush(self) -> str:
        """What was held back, as the whole decoding shows it. Nothing may be pushed afterwards."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back. `encode` and `encode_chat` may be called from several threads at once, and release
    the interpreter lock on long input; the others are cheap enough for the event loop."""

    vocab_size: int

    @property
    def reasoning_markers(self) -> tuple[str, str] | None:
        """What stands before and after the model's reasoning, as its chat template writes them; None if it has none."""
        ...

    @property
    def longest_token(self) -> int:
        """The most characters of text that one token stands for."""
        ...

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Ids of plain text. Control tokens spelled in it are text; the model's BOS comes first where it has one."""
        ...

    def encode_chat(
        self, messages: Sequence[Message], *, template_options: dict[str, Any] | None = None
    ) -> list[int]:
        """Ids of a conversation rendered by the model's template, ready for the answer.

        Control tokens spelled in a message stay text. Raises `RequestError` where there is no template, or where it
        refuses the messages."""
        ...

    def word_sequences(self, word: str) -> list[tuple[int, ...]]:
        """The id sequences that spell a word, with and without a space before it."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_text(self, token_id: int) -> str:
        """The token alone, for log-probability listings; broken characters show as U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for."""
        ...

    def detokenizer(
        self, *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> Detokenizer: ...


class Backend(Protocol):
    """A model as the engine sees it."""

    name: str
    """The name it is served under unless told otherwise."""
    context_length: int
    vocab_size: int
    tokenizer: Tokenizer
    defaults: GenerationDefaults

    def open_step(self, config: EngineConfig) -> Step:
        """Load the weights and make ready to compute. Called once per engine, on the worker's thread.

        Raises `CannotServe` or `ModelError`."""
        ...

    def open_padded(self, config: EngineConfig) -> PaddedBatch:
        """The plain static batch of the same model, on the calling thread. Raises `ModelError` or `CannotServe`."""
        ...
