"""The step on an NVIDIA card: `Step` as staged changes, one graph a pass, and a ring of results.

Opened, used and closed by one thread, the worker's; it alone touches the card. `launch` enqueues and returns: changes
of the batch go through pinned blocks, tokens go from pass to pass on the device. `collect` waits for one event. A
fault of the device shows in either, as an exception, and is final: the state on it is not to be trusted any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import torch

from ..batch import Batch, Capacity, Chunk, RowOutcome, RowSampling, Seat, Ticket
from ..errors import DeviceLost
from ..kernels import row_words
from .arena import Arena, Patch
from .forward import Forward
from .graphs import Graphs
from .ladder import Ladder
from .outbox import Outbox, Posting
from .sampling_state import SamplingState, is_cut, needs_full, refusal
from .sizes import CHUNK_ROWS
from .staging import Staging
from .state import SlotState

GREEDY = RowSampling(seed=0, temperature=0.0)
FAULTS = {
    row_words.NAN: "the model's logits hold a NaN",
    row_words.ALL_BANNED: "every token is banned",
    row_words.INFINITE: "the model's logits hold an infinity",
}


class _Part(msgspec.Struct, frozen=True):
    """One pass of a launch: the slots whose token it samples, by row of its results."""

    posting: Posting
    slots: tuple[tuple[int, int], ...]


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

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Ticket:
        with self._faults():
            return self._launch(batch)

    def _launch(self, batch: Batch) -> list[_Part]:
        patch = Patch(self._arena)
        for seat in batch.seats:
            self._seat(patch, seat)
        for slot, pages in batch.grown:
            self._state.grow(patch, slot, pages)
        parts: list[_Part] = []
        for chunks, decodes in _passes(batch):
            parts.append(self._run(patch, chunks, decodes))
            patch = Patch(self._arena)
        self._staging.apply(patch)
        return parts

    def _run(self, patch: Patch, chunks: tuple[Chunk, ...], decodes: tuple[int, ...]) -> _Part:
        sampled = [*enumerate(decodes)]
        sampled += [(-1 - i, chunk.slot) for i, chunk in enumerate(chunks) if chunk.samples]
        cuts, full = self._kinds(slot for _, slot in sampled)
        num_tokens = sum(chunk.count for chunk in chunks)
        size = self._ladder.size(len(decodes), num_tokens, len(chunks), cuts=cuts, full=full)
        if size.rows:
            self._state.decode(patch, decodes, size.rows)
        if chunks:
            tokens = [self._seats[c.slot].tokens[c.start : c.start + c.count] for c in chunks]
            self._state.prefill(patch, chunks, tokens)
        self._staging.apply(patch)
        self._graphs.run(size)
        rows = tuple((row if row >= 0 else size.rows - 1 - row, slot) for row, slot in sampled)
        return _Part(self._outbox.posted(size.num_samples), rows)

    def _seat(self, patch: Patch, seat: Seat) -> None:
        refused = refusal(seat.sampling)
        self._refused.pop(seat.slot, None)
        if refused is not None:
            self._refused[seat.slot] = refused
            seat = msgspec.structs.replace(seat, sampling=GREEDY)
        self._seats[seat.slot] = seat
        self._state.seat(patch, seat)
        self._sampling.seat(patch, seat)

    def _kinds(self, slots: Iterable[int]) -> tuple[bool, bool]:
        samplings = [self._seats[slot].sampling for slot in slots]
        return any(map(is_cut, samplings)), any(map(needs_full, samplings))

    def collect(self, ticket: Ticket) -> list[RowOutcome]:
        assert isinstance(ticket, list)
        with self._faults():
            return [outcome for part in ticket for outcome in self._outcomes(part)]

    def _outcomes(self, part: _Part) -> Iterator[RowOutcome]:
        tokens, flags = part.posting.read().tolist()
        for row, slot in part.slots:
            error = self._refused.get(slot) or FAULTS.get(flags[row])
            yield RowOutcome(slot, error=error) if error else RowOutcome(slot, (tokens[row],))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """A fault of the device is final. After any other (no memory for something that a pass wanted) the ring is
        read from where the device is, which may have stopped anywhere in a pass."""
        try:
            yield
        except torch.AcceleratorError as error:
            raise DeviceLost(f"the card failed: {str(error).strip().splitlines()[0]}") from error
        except Exception:
            self._outbox.restart(int(self._state.counter))
            raise

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Capture one more graph; called while nothing is in flight."""
        return self._graphs.capture_next()

    def close(self) -> None:
        """Give all device memory back. The step must not be used again."""
        self._graphs.clear()


def _passes(batch: Batch) -> Iterator[tuple[tuple[Chunk, ...], tuple[int, ...]]]:
    """The decodes go with the first chunks; a pass holds only so many of these."""
    if batch.chunks or batch.decodes:
        yield batch.chunks[:CHUNK_ROWS], batch.decodes
    for at in range(CHUNK_ROWS, len(batch.chunks), CHUNK_ROWS):
        yield batch.chunks[at : at + CHUNK_ROWS], ()
