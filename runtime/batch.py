"""The plan of one step as plain data, and the protocol of what runs it.

The scheduler writes batches and reads outcomes; a step does the reverse. Neither sees the other's state: a batch
holds integers and frozen structs only, so it can be recorded, replayed, compared, or broadcast to other ranks.

All per-request state of a step lives by *slot*. A slot is filled by a `Seat`, its page table grows by `grown`, and
its position advances by itself: a decode row names nothing but its slot, because the step already knows its last
token. A plan therefore never depends on the value of a token, and may be launched before earlier ones are collected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec


class RowSampling(msgspec.Struct, frozen=True):
    """How one row turns logits into a token: every field resolved, nothing optional left to a default.

    The order is fixed: bans and bias, penalties, temperature, top_k, top_p, min_p, one draw. `seed` is 64 bits.
    A draw is keyed by (seed, choice, position, draw), never by slot or batch.
    """

    seed: int
    choice: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_p_decay: float = 1.0
    """The draw of the token that follows g generated ones uses max(top_p_bound, top_p * top_p_decay**g)."""
    top_p_bound: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_token_sequences: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    """The ids that end this row; banned until `min_tokens` tokens are out."""
    logprobs: int | None = None
    """None: none. k: the sampled token's and the k likeliest."""
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None


class Seat(msgspec.Struct, frozen=True):
    """A new occupant of a slot. `tokens` are all that is known (prompt, and what was generated before a preemption);
    positions [0, start) are already in `pages` and will not be computed again. The row never grows past `limit`
    tokens, prompt included."""

    slot: int
    tokens: tuple[int, ...]
    prompt_len: int
    limit: int
    start: int
    pages: tuple[int, ...]
    sampling: RowSampling


class Chunk(msgspec.Struct, frozen=True):
    """Prefill of positions [start, start + count) of a slot. `samples`: the last position's logits give a token."""

    slot: int
    start: int
    count: int
    samples: bool


class Batch(msgspec.Struct, frozen=True):
    """One step. Apply `seats`, then `grown` (slot, pages appended to its table), then run chunks and decodes.

    `decodes` are slots that advance one position from their own last token. A slot stands in at most one of
    `chunks` and `decodes`. A slot that is seated again has lost its former occupant.
    """

    serial: int
    seats: tuple[Seat, ...]
    grown: tuple[tuple[int, tuple[int, ...]], ...]
    chunks: tuple[Chunk, ...]
    decodes: tuple[int, ...]


class TokenLogprobs(msgspec.Struct, frozen=True, gc=False):
    """Natural-log probabilities of the model's own distribution at one position: before bias, penalties, temperature
    and cuts. `top` holds (token id, log-probability), likeliest first, then the ids asked for by name."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class RowOutcome(msgspec.Struct, frozen=True):
    """What one row of a batch gave: 0 to k tokens, and log-probabilities where its seat asked for them. A chunk that
    samples gives one token (or, at depth 0, none: its last position then runs again).

    `prompt_logprobs` covers the chunk's positions: entry i scores the prompt token at start + i (position 0 has none).
    `error` says that this row alone failed (its logits held a NaN, say); its tokens are then empty.
    """

    slot: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    error: str | None = None


class Decoded(msgspec.Struct, frozen=True):
    """Many rows of a batch at once: each gave one token, of which nothing else is to be told. A `RowOutcome` of the
    same launch counts alone for its slot. Cheapest where `slots` is the batch's own `decodes`."""

    slots: tuple[int, ...]
    tokens: Sequence[int]


Outcomes = Sequence[RowOutcome | Decoded]


class Capacity(msgspec.Struct, frozen=True):
    """What a step can hold: fixed when it opens. Page 0 is the step's own (padding writes there); the scheduler hands
    out pages [1, num_pages). `depth` is how many launches may be in flight while one more is planned. A decode row
    gives at most `tokens_per_launch` tokens a launch. `max_batch_tokens` bounds a launch, decodes included, though
    every decoding row always runs; while rows decode, chunks take about `mixed_tokens` (chunking.py), so that those
    keep their pace. `chunk_sizes`, ascending: numbers of decoding rows, and for each the prompt tokens, ascending, that
    cost no more than they are beside so many; what lies between two numbers costs as much as the larger."""

    num_pages: int
    page_size: int
    max_rows: int
    depth: int = 0
    tokens_per_launch: int = 1
    max_batch_tokens: int = 512
    mixed_tokens: int = 512
    chunk_sizes: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def beside(self, decoding: int) -> tuple[int, tuple[int, ...]]:
        """Of a launch with chunks: the decoding rows that it is paid for, and the sizes that chunks may have in all."""
        return next((sizes for sizes in self.chunk_sizes if sizes[0] >= decoding), (decoding, ()))


class Ticket(Protocol):
    """A launch in flight. Only the step that issued it reads it."""


class Step(Protocol):
    """What computes. One thread opens, launches, collects and closes it, in that order.

    `launch` returns without waiting where the device allows; tickets are collected in the order of their launches.
    Either may raise: the rows of that batch are then lost, the slots may be seated again. `DeviceLost` says that
    nothing can be computed any more.
    """

    capacity: Capacity

    def launch(self, batch: Batch) -> Ticket: ...

    def collect(self, ticket: Ticket) -> Outcomes: ...

    def prepare(self) -> bool:
        """Called while nothing is in flight and nobody waits: do a little of what makes later launches faster. False
        when there is nothing left to do. Raises `DeviceLost` where nothing can be computed any more."""
        ...

    def close(self) -> None: ...


class PaddedBatch(Protocol):
    """Plain static batching, for models that have no paged step, and as the naive twin of one that has.

    `run` seats all rows at once (their `pages` and `start` mean nothing) and yields, step by step, one outcome per
    row, finished rows included, until the caller closes it.
    """

    max_rows: int

    def run(self, seats: Sequence[Seat]) -> Iterator[list[RowOutcome]]: ...

    def close(self) -> None: ...
