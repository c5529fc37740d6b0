"""The step on an NVIDIA card: `Step` as staged changes, one graph a pass, and a ring of results.

Opened, used and closed by one thread, the worker's; it alone touches the card. `launch` enqueues and returns: changes
of the batch go through pinned blocks, tokens go from pass to pass on the device. `collect` waits for one event. A
fault of the device shows in either, as an exception, and is final: the state on it is not to be trusted any more.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec
import torch
from torch import Tensor

from ..batch import (
    Batch,
    Capacity,
    Chunk,
    Decoded,
    Outcomes,
    RowOutcome,
    RowSampling,
    Seat,
    Ticket,
    TokenLogprobs,
)
from ..errors import DeviceLost
from ..kernels import row_words
from .arena import Arena, Patch
from .forward import Forward
from .graphs import Graphs
from .ladder import Ladder
from .outbox import Outbox, Posting
from .sampling_state import SamplingState, is_cut, needs_full, refusal
from .scores import ChunkScores, PromptScores, ScoreCopy
from .sizes import CHUNK_ROWS, Pass
from .staging import Staging
from .state import SlotState

Rows = tuple[tuple[int, int], ...]
"""Rows of a pass's results with their slots."""

GREEDY = RowSampling(seed=0, temperature=0.0)
FAULTS = {
    row_words.NAN: "the model's logits hold a NaN",
    row_words.ALL_BANNED: "every token is banned",
    row_words.INFINITE: "the model's logits hold an infinity",
}


NOTHING: tuple[tuple[int, ...], Pass, Rows] = ((), Pass(0, 0, 0, False, False), ())


class _Pass(msgspec.Struct, frozen=True):
    """One pass in flight: the rows of its results with their slots, first those of `decodes`, and what is scored
    beside them."""

    posting: Posting
    decodes: tuple[int, ...]
    rows: Rows
    scores: ScoreCopy | None = None
    prompts: tuple[tuple[int, ChunkScores], ...] = ()


class CudaStep:
    """`Step` over parts that `open_cuda_step` put together."""

    def __init__(
        self,
        capacity: Capacity,
        arena: Arena,
        state: SlotState,
        sampling: SamplingState,
        forward: Forward,
        ladder: Ladder,
        graphs: Graphs,
        staging: Staging,
        outbox: Outbox,
    ) -> None:
        self.capacity = capacity
        self._arena, self._state, self._sampling = arena, state, sampling
        self._forward, self._ladder, self._graphs = forward, ladder, graphs
        self._staging, self._outbox = staging, outbox
        self._seats: dict[int, Seat] = {}
        self._refused: dict[int, str] = {}
        self._cut: set[int] = set()
        self._full: set[int] = set()
        self._decodes = NOTHING
        """The last pass that only decoded: while it stays the same, its size and rows need not be found again."""
        self._prompts = PromptScores(forward.score_prompt, ladder.max_samples)

    def launch(self, batch: Batch) -> Ticket:
        try:
            return self._launch(batch)
        except Exception as error:
            self._recover(error)
            raise

    def _launch(self, batch: Batch) -> list[_Pass]:
        patch = Patch(self._arena)
        for seat in batch.seats:
            self._seat(patch, seat)
        for slot, pages in batch.grown:
            self._state.grow(patch, slot, pages)
        passes: list[_Pass] = []
        for chunks, decodes in _passes(batch):
            passes.append(self._run(patch, chunks, decodes))
            patch = Patch(self._arena)
        self._staging.apply(patch)
        return passes

    @torch.inference_mode()
    def _seat(self, patch: Patch, seat: Seat) -> None:
        refused = refusal(seat.sampling)
        self._refused.pop(seat.slot, None)
        if refused is not None:
            self._refused[seat.slot] = refused
            seat = msgspec.structs.replace(seat, sampling=GREEDY)
        self._seats[seat.slot] = seat
        self._prompts.forget(seat.slot)
        for kind, slots in ((is_cut, self._cut), (needs_full, self._full)):
            slots.discard(seat.slot)
            if kind(seat.sampling):
                slots.add(seat.slot)
        self._state.seat(patch, seat)
        self._sampling.seat(patch, seat)

    def _run(self, patch: Patch, chunks: tuple[Chunk, ...], decodes: tuple[int, ...]) -> _Pass:
        if not chunks and decodes == self._decodes[0]:
            size, rows = self._decodes[1:]
        else:
            size, rows = self._sized(chunks, decodes)
        if size.rows:
            self._state.decode(patch, decodes, size.rows)
        if chunks:
            tokens = [self._seats[c.slot].tokens[c.start : c.start + c.count] for c in chunks]
            self._state.prefill(patch, chunks, tokens)
        self._staging.apply(patch)
        scored = [chunk for chunk in chunks if self._seats[chunk.slot].sampling.prompt_logprobs is not None]
        if not scored:
            self._graphs.run(size)
            scores = self._scores(rows) if size.full else None
            return _Pass(self._outbox.posted(size.num_samples), decodes, rows, scores)
        hidden = self._forward.run(size)
        scores = self._scores(rows) if size.full else None
        prompts = tuple(self._score_prompts(size, chunks, hidden))
        return _Pass(self._outbox.posted(size.num_samples), decodes, rows, scores, prompts)

    def _sized(self, chunks: tuple[Chunk, ...], decodes: tuple[int, ...]) -> tuple[Pass, Rows]:
        slots = {*decodes, *(chunk.slot for chunk in chunks if chunk.samples)}
        cuts, full = not self._cut.isdisjoint(slots), not self._full.isdisjoint(slots)
        num_tokens = sum(chunk.count for chunk in chunks)
        fresh = all(chunk.start == 0 for chunk in chunks)
        size = self._ladder.size(len(decodes), num_tokens, len(chunks), cuts=cuts, full=full, fresh=fresh)
        sampled = [(size.rows + i, chunk.slot) for i, chunk in enumerate(chunks) if chunk.samples]
        rows = (*enumerate(decodes), *sampled)
        self._decodes = ((), size, rows) if chunks else (decodes, size, rows)
        return size, rows

    def _scores(self, rows: Rows) -> ScoreCopy | None:
        asked = [self._seats[slot].sampling for _, slot in rows]
        asked = [sampling for sampling in asked if sampling.logprobs is not None]
        if not asked:
            return None
        return ScoreCopy(self._forward.scores, named=any(sampling.logprob_token_ids for sampling in asked))

    def _score_prompts(
        self, size: Pass, chunks: tuple[Chunk, ...], hidden: Tensor
    ) -> Iterator[tuple[int, ChunkScores]]:
        at = size.rows
        for chunk in chunks:
            seat = self._seats[chunk.slot]
            if seat.sampling.prompt_logprobs is not None and chunk.start < seat.prompt_len:
                yield chunk.slot, self._prompts.score(seat, chunk, hidden[at : at + chunk.count])
            at += chunk.count

    def collect(self, ticket: Ticket) -> Outcomes:
        assert isinstance(ticket, list)
        try:
            return [outcome for part in ticket for outcome in self._outcomes(part)]
        except Exception as error:
            self._recover(error)
            raise

    def _outcomes(self, part: _Pass) -> Iterator[RowOutcome | Decoded]:
        """The tokens of all that decode at once, and by row what needs more words."""
        tokens, flags = part.posting.read()
        decoded = len(part.decodes)
        if decoded:
            yield Decoded(part.decodes, tokens[:decoded])
        prompts = dict(part.prompts)
        is_plain = part.scores is None and not (prompts or self._refused or any(flags))
        for row, slot in part.rows[decoded:] if is_plain else part.rows:
            error = self._refused.get(slot) or FAULTS.get(flags[row])
            token = tokens[row]
            logprobs = self._logprobs(part, row, slot, token)
            scored = prompts.pop(slot).read() if slot in prompts else ()
            if error:
                yield RowOutcome(slot, error=error)
            elif row >= decoded or logprobs:
                yield RowOutcome(slot, (token,), logprobs, scored)
        for slot, scores in prompts.items():
            yield RowOutcome(slot, prompt_logprobs=scores.read())

    def _logprobs(self, part: _Pass, row: int, slot: int, token: int) -> tuple[TokenLogprobs, ...]:
        sampling = self._seats[slot].sampling
        if part.scores is None or sampling.logprobs is None:
            return ()
        return (part.scores.read(row, token, sampling.logprobs, sampling.logprob_token_ids),)

    def _recover(self, error: Exception) -> None:
        """A fault of the device is final: `DeviceLost`. After any other (no memory for something that a pass wanted)
        the ring is read from where the device is, which may have stopped anywhere in a pass. That waits for the device,
        and so shows its faults where a library told of them in words of its own."""
        try:
            if isinstance(error, torch.AcceleratorError):
                raise error
            self._settle()
        except torch.AcceleratorError as fault:
            raise DeviceLost(f"the card failed: {str(fault).strip().splitlines()[0]}") from fault

    @torch.inference_mode()
    def rehearse(self, forward: Forward, sizes: Iterable[Pass]) -> None:
        """One of each kind of work, for `Kernels.compile`, under which nothing is launched."""
        for size in sizes:
            hidden = forward.run(size)
        tokens = torch.zeros(self._ladder.max_samples, dtype=torch.int32, device=hidden.device)
        for count in self._ladder.scored():
            forward.score_prompt(hidden[:1].expand(count, -1), 0, tokens[:count])
        self._sampling.forget(0)
        self._settle()

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Record one more pass; called while nothing is in flight. A device that is lost shows even if none is
        missing."""
        try:
            self._settle()
            is_recorded = self._graphs.record_next()
            self._settle()
        except Exception as error:
            self._recover(error)
            raise
        return is_recorded

    @torch.inference_mode()
    def _settle(self) -> None:
        """Forget what is staged for the next pass, and read the ring from where the device is."""
        count = int(self._state.counter)
        patch = Patch(self._arena)
        self._state.rest(patch)
        self._staging.apply(patch)
        self._decodes = NOTHING
        self._outbox.restart(count)

    def close(self) -> None:
        """Wait for what is in flight, and give all device memory back. The step must not be used again. A device that
        is lost has been told of already, or will be by whoever uses it next."""
        on_device = torch.cuda.is_initialized()
        with suppress(torch.AcceleratorError):
            if on_device:
                torch.cuda.current_stream().synchronize()
        self._graphs.clear()
        for part in (
            "_forward",
            "_graphs",
            "_sampling",
            "_state",
            "_arena",
            "_staging",
            "_outbox",
            "_prompts",
        ):
            delattr(self, part)
        gc.collect()
        with suppress(torch.AcceleratorError):
            if on_device:
                torch._C._cuda_clearCublasWorkspaces()
                torch.cuda.empty_cache()


def _passes(batch: Batch) -> Iterator[tuple[tuple[Chunk, ...], tuple[int, ...]]]:
    """The decodes go with the first chunks; a pass holds only so many of these."""
    if batch.chunks or batch.decodes:
        yield batch.chunks[:CHUNK_ROWS], batch.decodes
    for at in range(CHUNK_ROWS, len(batch.chunks), CHUNK_ROWS):
        yield batch.chunks[at : at + CHUNK_ROWS], ()
