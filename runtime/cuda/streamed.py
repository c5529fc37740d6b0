"""Weights on their way to a card: files are read in parallel into pinned blocks, which are copied behind each other.

Threads of a small pool read and touch nothing but their block. The thread that calls `get`, the worker's, alone speaks
to the device: it enqueues the copy of each block when it has been read, and hands the block to the next read when that
copy is done. What is on its way is at most the blocks, whatever the model's size; tensors that came before they were
asked for wait on the device, where they will stay.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import torch
from torch import Tensor

from ..errors import ModelError
from ..weights.safetensors_weights import Place

NUM_BLOCKS, BLOCK_BYTES = 8, 64 << 20
NUM_READERS = 4
TOLD_BYTES = 1 << 30
"""Between two lines of the log."""

logger = logging.getLogger("jitney")


@runtime_checkable
class PlacedWeights(Protocol):
    """Weights of which most lie in files as they are."""

    def names(self) -> Iterable[str]: ...

    def get(self, name: str) -> Tensor: ...

    def place(self, name: str) -> Place | None: ...


class Copies(Protocol):
    """The device's side. Copies run one after the other, behind everything that the caller does meanwhile."""

    def block(self, num_bytes: int) -> Tensor:
        """Host memory, uint8, that the device reads by itself."""
        ...

    def empty(self, num_bytes: int) -> Tensor: ...

    def start(self, target: Tensor, source: Tensor) -> object:
        """Enqueue a copy; gives what `finish` waits for."""
        ...

    def finish(self, copy: object) -> None:
        """Return when the copy is done: its source may be overwritten."""
        ...

    def join(self, tensor: Tensor) -> None:
        """What the caller enqueues from here on comes after all copies so far, which filled the tensor."""
        ...


class _Piece(msgspec.Struct, frozen=True):
    """Bytes [at, at + count) of a tensor."""

    name: str
    place: Place
    at: int
    count: int


class _Read(msgspec.Struct):
    piece: _Piece
    block: Tensor
    done: Future[None]


class StreamedWeights:
    """`Weights` whose tensors are on the device. Use it as a context: leaving it ends the threads.

    Raises `ModelError` naming the file where one cannot be read to the end.
    """

    def __init__(
        self,
        weights: PlacedWeights,
        copies: Copies,
        *,
        num_blocks: int = NUM_BLOCKS,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._weights, self._copies = weights, copies
        self._places = {name: place for name in weights.names() if (place := weights.place(name)) is not None}
        self._pieces = _pieces(self._places, block_bytes)
        self._num_blocks, self._block_bytes = num_blocks, block_bytes
        self._reads: deque[_Read] = deque()
        self._sent: deque[tuple[Tensor, object]] = deque()
        """Blocks that are being copied, the oldest first."""
        self._tensors: dict[str, Tensor] = {}
        self._missing = {name: place.num_bytes for name, place in self._places.items()}
        self._num_bytes = sum(self._missing.values())
        self._num_sent = 0

    def __enter__(self) -> StreamedWeights:
        self._pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="jitney-weights")
        for _ in range(self._num_blocks):
            self._read_next(self._copies.block(self._block_bytes))
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for _, copy in self._sent:
            self._copies.finish(copy)
        self._reads.clear()
        self._sent.clear()
        self._tensors.clear()

    def names(self) -> Iterable[str]:
        return self._weights.names()

    def get(self, name: str) -> Tensor:
        """Each tensor once."""
        place = self._places.pop(name, None)
        if place is None:
            return self._weights.get(name)
        while self._missing[name]:
            self._advance()
        tensor = self._tensors.pop(name) if name in self._tensors else self._copies.empty(0)
        self._copies.join(tensor)
        kind: torch.dtype = getattr(torch, place.dtype)
        return tensor.view(kind).view(place.shape)

    def _advance(self) -> None:
        """Send the block that was asked for first, and ask for one more."""
        read = self._reads.popleft()
        read.done.result()
        piece = read.piece
        if piece.name not in self._tensors:
            self._tensors[piece.name] = self._copies.empty(piece.place.num_bytes)
        target = self._tensors[piece.name][piece.at : piece.at + piece.count]
        self._sent.append((read.block, self._copies.start(target, read.block[: piece.count])))
        self._missing[piece.name] -= piece.count
        self._tell(piece.count)
        if len(self._sent) > self._num_blocks // 2 or not self._reads:
            block, copy = self._sent.popleft()
            self._copies.finish(copy)
            self._read_next(block)

    def _read_next(self, block: Tensor) -> None:
        piece = next(self._pieces, None)
        if piece is not None:
            view = block.numpy().data[: piece.count]
            done = self._pool.submit(_fill, piece.place.path, piece.place.start + piece.at, view)
            self._reads.append(_Read(piece, block, done))

    def _tell(self, count: int) -> None:
        before, self._num_sent = self._num_sent, self._num_sent + count
        if before // TOLD_BYTES != self._num_sent // TOLD_BYTES or self._num_sent == self._num_bytes:
            logger.info("weights: %.1f of %.1f GB read", self._num_sent / 1e9, self._num_bytes / 1e9)


def _pieces(places: dict[str, Place], most: int) -> Iterator[_Piece]:
    """Layer by layer, as they are asked for."""
    for name, place in sorted(places.items(), key=lambda item: _layer(item[0])):
        for at in range(0, place.num_bytes, most):
            yield _Piece(name, place, at, min(most, place.num_bytes - at))


def _layer(name: str) -> int:
    found = re.search(r"\.layers\.(\d+)\.", name)
    if found is not None:
        return int(found[1])
    return -1 if "embed" in name or name.startswith("model.norm") else 1 << 30


def _fill(path: Path, start: int, view: memoryview) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while view:
                count = file.readinto(view)
                if not count:
                    raise ModelError(f"{path}: ends {len(view)} bytes before what its header says")
                view = view[count:]
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


class CardCopies:
    """Pinned blocks and a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def block(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, num_bytes: int) -> Tensor:
        """The memory may be what the caller's stream gave back: copies wait for it."""
        tensor = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return tensor

    def start(self, target: Tensor, source: Tensor) -> object:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def finish(self, copy: object) -> None:
        assert isinstance(copy, torch.cuda.Event)
        copy.synchronize()

    def join(self, tensor: Tensor) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        tensor.record_stream(self._stream)
