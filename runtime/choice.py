"""One choice of a response: its tokens become text, of which a part is held back while a stop string may still come."""

from __future__ import annotations

from itertools import chain

from .backend import Detokenizer, Tokenizer
from .batch import TokenLogprobs
from .events import FinishReason
from .messages import Output
from .params import SamplingParams
from .text.detokenizer import ByteDetokenizer
from .text.pieces import Pieces
from .text.stops import StopMatcher


class Choice:
    """One choice's text so far: what may be shown, and what is held back."""

    __slots__ = (
        "_detokenizer", "_is_plain", "_logprobs", "_params", "_stops", "_text", "_tokenizer",
        "_tokens", "finish_reason", "index", "matched", "num_new", "num_tokens",
    )  # fmt: skip

    def __init__(self, index: int, params: SamplingParams, tokenizer: Tokenizer) -> None:
        self.index = index
        self.finish_reason: FinishReason | None = None
        self.matched: str | int | None = None
        self.num_tokens = self.num_new = 0
        """So far, and those of them of which no event tells yet."""
        self._params = params
        self._tokenizer = tokenizer
        self._detokenizer: Detokenizer | None = None
        self._stops: StopMatcher | None = None
        self._text = ""
        self._tokens: list[tuple[int, ...]] = []
        self._logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self._is_plain = params.logprobs is None and not params.stops

    def take(self, output: Output) -> None:
        """Add an output's tokens up to the one with which a stop string is complete."""
        is_plain = self._is_plain and output.matched is None and len(output.tokens) > 0
        hidden = None if self._params.include_stop_str_in_output else (output.matched,)
        for position, tokens in enumerate((output.tokens,) if is_plain else zip(output.tokens)):
            if self._logprobs is not None and position < len(output.logprobs):
                self._logprobs.append(output.logprobs[position])
            self.add(tokens, shows=tokens != hidden)
            if self.finish_reason is not None:
                return
        if output.finish_reason is not None:
            self.finish(output.finish_reason, output.matched)

    def advance(self, tokens: tuple[int, ...]) -> None:
        """Add tokens up to the one with which a stop string is complete."""
        if self._is_plain or len(tokens) == 1:
            self.add(tokens)
            return
        for token in tokens:
            self.add((token,))
            if self.finish_reason is not None:
                return

    def add(self, tokens: tuple[int, ...], *, shows: bool = True) -> None:
        """One more token, or several where no stop string is looked for. The text of a hidden end id is not shown."""
        self._tokens.append(tokens)
        self.num_tokens += len(tokens)
        self.num_new += len(tokens)
        if shows and self._params.detokenize:
            text = (self._detokenizer or self._take_out()).push(tokens)
            if self._stops is None:
                self._text += text
            else:
                self._show(text)

    @property
    def pieces(self) -> Pieces | None:
        """Tokens found there need not be added next: all that they do is to show their text."""
        detokenizer = self._detokenizer
        is_at_rest = self._is_plain and not self.num_new and self.finish_reason is None
        return detokenizer.pieces if is_at_rest and isinstance(detokenizer, ByteDetokenizer) else None

    def finish(self, reason: FinishReason, matched: str | int | None = None) -> None:
        """End the choice, with the text that was held back: the end may still complete a stop string."""
        self.finish_reason, self.matched = reason, matched
        if self._detokenizer is not None:
            self._show(self._detokenizer.flush())
            if self._stops is not None and not isinstance(self.matched, str):
                self._text += self._stops.flush()

    def collect(self) -> tuple[int, str, tuple[int, ...], tuple[TokenLogprobs, ...] | None]:
        """What is new, as an event's fields: `index`, `text`, `token_ids` and `logprobs`."""
        text, parts, logprobs = self._text, self._tokens, None
        tokens = parts[0] if len(parts) == 1 else tuple(chain.from_iterable(parts))
        self._text, self.num_new = "", 0
        parts.clear()
        if self._logprobs is not None:
            logprobs = tuple(self._logprobs)
            self._logprobs.clear()
        return self.index, text, tokens, logprobs

    def put_away(self) -> None:
        """Free what only an open choice needs; a kept response is its log."""
        self._detokenizer = self._stops = None

    def _take_out(self) -> Detokenizer:
        """With the first token and not before, so that what waits costs no more than its prompt."""
        params = self._params
        if params.stops:
            self._stops = StopMatcher(params.stops, include=params.include_stop_str_in_output)
        self._detokenizer = self._tokenizer.detokenizer(
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        return self._detokenizer

    def _show(self, text: str) -> None:
        if self._stops is None:
            self._text += text
            return
        shown, stop = self._stops.push(text, may_end=self.num_tokens >= self._params.min_tokens)
        self._text += shown
        if stop is not None:
            self.finish_reason, self.matched = "stop_string", stop
