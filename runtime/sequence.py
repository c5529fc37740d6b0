"""One choice of one request, as the scheduler sees it: lengths and pages, no text and no tensors."""

from __future__ import annotations

from math import inf

import msgspec

from .batch import RowSampling, Seat, TokenLogprobs
from .events import FinishReason
from .messages import Generate

PromptScores = tuple[TokenLogprobs | None, ...]


class Sequence:
    """Positions are half-open: KV of [0, computed) is written and collected, chunks of [0, planned) are launched.

    What launches name it is for `Flight` to keep, in serials: `last` is that of the latest which does, but the latest
    of all while it is steady. All launches after `since` up to there may give it tokens. `wake` is 0 while it is not
    steady.
    """

    def __init__(
        self, request: Generate, sampling: RowSampling, root: bytes, leader: Sequence | None
    ) -> None:
        self.request = request
        self.choice = sampling.choice
        self.name = (request.id, sampling.choice)
        self.order = (request.priority, request.arrival, request.id, sampling.choice)
        """Who goes first: priority class, then arrival. Stays the same through a preemption."""
        self.sampling = sampling
        self.tokens = list(request.prompt)
        self.push = self.tokens.append  # made once, not for each row of each launch that others join
        self.prompt_len = len(request.prompt)
        self.limit = self.prompt_len + request.max_tokens
        self.deadline = inf if request.deadline is None else request.deadline
        self.leader = leader
        self.keys = [root]
        self.slot = -1
        self.pages: list[int] = []
        self.filled = self.planned = self.since = self.last = self.wake = 0
        self.decoding = self.sampled = self.preempting = self.ended = False
        self.prompt_scored = 0
        self.num_published = 0
        self.cached_tokens: int | None = None
        self.unreported_cached: int | None = None

    def seat(self) -> Seat:
        """As the step hears of it: all of its tokens, in the pages that it holds."""
        pages, tokens = tuple(self.pages), tuple(self.tokens)
        return Seat(self.slot, tokens, self.prompt_len, self.limit, self.filled, pages, self.sampling)

    @property
    def computed(self) -> int:
        """While it decodes, all but its last token; before, what its chunks have filled."""
        return len(self.tokens) - 1 if self.sampled else self.filled

    @property
    def wants_prompt_scores(self) -> bool:
        return self.sampling.prompt_logprobs is not None and self.prompt_scored < self.prompt_len

    def samples_after(self, length: int) -> bool:
        """Whether the next chunk gives a token: it does if it ends the prompt; a warm-up's never does."""
        return self.planned + length == len(self.tokens) and not self.request.pin

    def advance(
        self, length: int, samples: bool, given: tuple[int, ...]
    ) -> tuple[tuple[int, ...], FinishReason | None]:
        """What a chunk of `length` positions gave, or a decode where that is 0: the tokens up to one that ends the
        row, and why it ends."""
        self.filled += length
        if not samples:
            return (), "length" if self.request.pin and self.filled == self.prompt_len else None
        if length and not given:  # a chunk should have given a token: its last position runs again
            self.decoding = False
            self.planned = self.filled = len(self.tokens) - 1
            return (), None
        self.sampled = True
        given, reason = self._accept(given)
        self.tokens += given
        return given, reason

    def _accept(self, given: tuple[int, ...]) -> tuple[tuple[int, ...], FinishReason | None]:
        room = self.limit - len(self.tokens)
        for count, token in enumerate(given[:room], 1):
            if token in self.sampling.end_token_ids:
                return given[:count], "stop_token"
        return given[:room], "length" if len(given) >= room else None

    def take_prompt_scores(self, start: int, scores: PromptScores) -> PromptScores:
        """The part of a chunk's scores that was not reported before a preemption."""
        if not self.wants_prompt_scores:
            return ()
        fresh = scores[self.prompt_scored - start : self.prompt_len - start]
        self.prompt_scored += len(fresh)
        return fresh

    def unseat(self) -> None:
        """Forget the slot and the pages; the tokens stay."""
        self.slot = -1
        self.pages = []
        self.filled = self.planned = self.num_published = 0
        self.decoding = self.sampled = self.preempting = False


def choices(request: Generate, root: bytes = b"") -> list[Sequence]:
    """A row for each choice of a request; `root` begins the chain of its pages' names. The first alone scores the
    prompt, and the others wait for its pages."""
    first = Sequence(request, request.sampling, root, leader=None)
    others = [
        msgspec.structs.replace(request.sampling, choice=choice, prompt_logprobs=None)
        for choice in range(1, request.n)
    ]
    return [first, *(Sequence(request, sampling, root, leader=first) for sampling in others)]
