"""One choice of one request, as the scheduler sees it: lengths and pages, no text and no tensors."""

from __future__ import annotations

from .batch import RowSampling, TokenLogprobs
from .events import FinishReason
from .messages import Generate

PromptScores = tuple[TokenLogprobs | None, ...]


class Sequence:
    """Positions are half-open: KV of [0, computed) is written and collected, [0, planned) is so or in flight.

    `pending` counts tokens that launches in flight may still add, so `len(tokens) + pending` bounds the length that
    the step has reached. `planned` trails that bound by one while decoding: the last token's KV is not written yet.
    """

    __slots__ = (
        "cached_tokens",
        "choice",
        "computed",
        "decoding",
        "ended",
        "in_flight",
        "keys",
        "leader",
        "limit",
        "num_published",
        "pages",
        "pending",
        "planned",
        "preempting",
        "prompt_len",
        "prompt_scored",
        "request",
        "sampling",
        "slot",
        "tokens",
        "unreported_cached",
    )

    def __init__(
        self, request: Generate, sampling: RowSampling, root: bytes, leader: Sequence | None
    ) -> None:
        self.request = request
        self.choice = sampling.choice
        self.sampling = sampling
        self.tokens = list(request.prompt)
        self.prompt_len = len(request.prompt)
        self.limit = self.prompt_len + request.max_tokens
        self.leader = leader
        self.keys = [root]
        self.slot = -1
        self.pages: list[int] = []
        self.computed = self.planned = self.pending = self.in_flight = 0
        self.decoding = self.preempting = self.ended = False
        self.prompt_scored = 0
        self.num_published = 0
        self.cached_tokens: int | None = None
        self.unreported_cached: int | None = None

    @property
    def order(self) -> tuple[int, float, str, int]:
        """Who goes first: priority class, then arrival. Stays the same through a preemption."""
        return (self.request.priority, self.request.arrival, self.request.id, self.choice)

    @property
    def exhausted(self) -> bool:
        """Whether the launches in flight may already reach the limit. A warm-up's is the end of its prompt."""
        return not self.request.pin and len(self.tokens) + self.pending >= self.limit

    def is_late(self, now: float) -> bool:
        return self.request.deadline is not None and self.request.deadline <= now

    @property
    def wants_prompt_scores(self) -> bool:
        return self.sampling.prompt_logprobs is not None and self.prompt_scored < self.prompt_len

    def bound(self, tokens_per_launch: int) -> int:
        """How many tokens one more decode launch may give."""
        return min(tokens_per_launch, self.limit - len(self.tokens) - self.pending)

    def chunk_bound(self, length: int) -> int:
        """How many tokens the next chunk gives: one if it ends the prompt, none ever for a warm-up."""
        return int(self.planned + length == len(self.tokens) and not self.request.pin)

    def launched(self, length: int, bound: int) -> None:
        """A launch names the row: a chunk of `length` positions, or a decode where that is 0. `bound`: its tokens."""
        self.in_flight += 1
        self.planned += length or bound
        self.pending += bound
        self.decoding = self.decoding or bound > 0

    def advance(
        self, length: int, bound: int, given: tuple[int, ...]
    ) -> tuple[list[int], FinishReason | None]:
        """A launch's result: the tokens up to one that ends the row, and why it ends."""
        gained = len(given[:bound])
        tokens, reason = self._accept(given[:bound])
        self.pending -= bound
        self.computed += length or gained
        self.planned -= 0 if length else bound - gained
        self.tokens += tokens
        if self.request.pin and self.computed == self.prompt_len:
            reason = "length"
        if length and bound and not gained:  # a chunk should have given a token: its last position runs again
            assert not self.in_flight, "a sampling chunk gave no token with launches in flight"
            self.decoding = False
            self.planned = self.computed = len(self.tokens) - 1
        return tokens, reason

    def _accept(self, given: tuple[int, ...]) -> tuple[list[int], FinishReason | None]:
        accepted: list[int] = []
        for token in given:
            accepted.append(token)
            if token in self.sampling.end_token_ids:
                return accepted, "stop_token"
            if len(self.tokens) + len(accepted) >= self.limit:
                return accepted, "length"
        return accepted, None

    def take_prompt_scores(
        self, start: int, scores: tuple[TokenLogprobs | None, ...]
    ) -> tuple[TokenLogprobs | None, ...]:
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
        self.computed = self.planned = self.pending = self.num_published = 0
        self.decoding = self.preempting = False
