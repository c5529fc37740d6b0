"""A model's tokenizer and chat template: the `Tokenizer` protocol over the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import msgspec
import tokenizers

from ..backend import Detokenizer, Message
from ..errors import InvalidField, JitneyError, ModelError, RequestError
from .chat_template import ChatTemplate
from .definition import TokenizerDefinition
from .detokenizer import ByteDetokenizer, LazyBytes, WindowDetokenizer
from .messages import checked_options, plain_messages
from .secret_spelling import SecretSpelling
from .token_bytes import TokenBytes, decoder_rule


class ModelTokenizer:
    """`vocab_size` is the model's: ids that the tokenizer lacks show as nothing.

    Decoding of byte-level and SentencePiece vocabularies is by bytes: a broken sequence shows one U+FFFD for each
    maximal broken part, as Unicode recommends. Raises `ModelError` naming the definition's source.
    """

    def __init__(self, definition: TokenizerDefinition, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._names = definition.names
        with _refusing(
            lambda error: ModelError(f"{definition.source}: not a tokenizer that can be used: {error}")
        ):
            self._spelling = SecretSpelling(definition.spec, definition.names.values())
            renamed = self._spelling.rename(definition.spec)
            self._library = tokenizers.Tokenizer.from_str(msgspec.json.encode(renamed).decode())
            self._library.no_truncation()
            self._library.no_padding()
            self._rule = decoder_rule(definition.spec)
            self._bos = self._prefix(definition)
            self._library.decode(self._library.encode("a b").ids)
        plain = str.encode if self._rule is None else self._rule.plain
        self._bytes = LazyBytes(partial(self._bytes_by, plain))
        self._visible_bytes = LazyBytes(self._bytes.__getitem__, hidden=self._spelling.spelled.keys())
        template = definition.chat_template
        self._template = None if template is None else ChatTemplate(definition.source, template, self._names)

    @cached_property
    def longest_token(self) -> int:
        return max(map(len, self._library.get_vocab()))

    @property
    def reasoning_markers(self) -> tuple[str, str] | None:
        return None if self._template is None else self._template.reasoning_markers

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens: those that the tokenizer marks as special, and its BOS, EOS and their like."""
        return frozenset(self._spelling.spelled)

    def special_id(self, name: str) -> int | None:
        """The id behind `bos_token`, `eos_token` and their like."""
        return self._id_of(self._names.get(name))

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        ids = self._ids("prompt", text)
        return self._bos + ids if add_bos else ids

    def encode_chat(
        self, messages: Sequence[Message], *, template_options: dict[str, Any] | None = None
    ) -> list[int]:
        if self._template is None:
            raise RequestError("messages: this model has no chat template", field="messages")
        spelling = self._spelling
        mark = spelling.mark()
        options = checked_options(template_options, list(self._names))
        for name, value in options.items():
            options[name] = spelling.marked(value, mark) if isinstance(value, str) else value
        plain = plain_messages(messages, lambda text: spelling.marked(text, mark))
        return self._ids("messages", spelling.seal(self._template.render(plain, options), mark))

    def word_sequences(self, word: str) -> list[tuple[int, ...]]:
        """At the start of a text, after a space, and straight after something else."""
        newline, after = self.encode("\n", add_bos=False), self.encode("\n" + word, add_bos=False)
        found = [self.encode(word, add_bos=False), self.encode(" " + word, add_bos=False)]
        if after[: len(newline)] == newline:
            found.append(after[len(newline) :])
        return list(dict.fromkeys(tuple(ids) for ids in found if ids))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if self._rule is None:
            return self._joined([i for i in token_ids if self._shows(i, skip_special_tokens)])
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return detokenizer.push(token_ids) + detokenizer.flush()

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def detokenizer(
        self, *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> Detokenizer:
        if self._rule is not None:
            table = self._visible_bytes if skip_special_tokens else self._bytes
            first = self._rule.first and partial(self._bytes_by, self._rule.first)
            return ByteDetokenizer(table, first, self._rule.strip)
        glued = {} if spaces_between_special_tokens else self._spelling.spelled
        return WindowDetokenizer(self._joined, lambda i: self._shows(i, skip_special_tokens), glued)

    def spelled(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None where there is none."""
        if token_id in self._spelling.spelled:
            return self._spelling.spelled[token_id]
        return self._library.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def _ids(self, field: str, text: str) -> list[int]:
        with _refusing(lambda error: RequestError(f"{field}: cannot be tokenised: {error}", field=field)):
            ids: list[int] = self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if max(ids, default=0) >= self.vocab_size:
            raise InvalidField(field, f"text of tokens below {self.vocab_size}", max(ids))
        return ids

    def _prefix(self, definition: TokenizerDefinition) -> list[int]:
        if definition.add_bos is None:
            return _ids_before(definition.spec.get("post_processor"))
        bos = self.special_id("bos_token")
        return [bos] if definition.add_bos and bos is not None else []

    def _id_of(self, spelling: str | None) -> int | None:
        for token_id, spelled in self._spelling.spelled.items():
            if spelled == spelling:
                return token_id
        return None if spelling is None else self._library.token_to_id(spelling)

    def _shows(self, token_id: int, skip_special_tokens: bool) -> bool:
        hidden = skip_special_tokens and token_id in self._spelling.spelled
        return not hidden and self.spelled(token_id) is not None

    def _joined(self, token_ids: list[int]) -> str:
        return self._spelling.reveal(self._library.decode(token_ids, skip_special_tokens=False))

    def _bytes_by(self, rule: TokenBytes, token_id: int) -> bytes:
        token = self.spelled(token_id)
        return b"" if token is None else rule(token)


@contextmanager
def _refusing(refusal: Callable[[BaseException], JitneyError]) -> Iterator[None]:
    """The library raises bare Exception, and panics that are not even that."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise refusal(error) from error


def _ids_before(processor: dict[str, Any] | None) -> list[int]:
    """The ids that a template post-processor puts before a single sequence."""
    ids: list[int] = []
    steps = (processor or {}).get("processors", [processor or {}])
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            for piece in step["single"]:
                if "SpecialToken" not in piece:
                    break
                ids += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return msgspec.convert(ids, list[int])
