"""What the device sends back: a pinned ring that the passes write, and an event for each that the host waits for.

The worker sleeps while it waits, and wakes up with cold caches: what it does then costs ten times what the same costs
in a loop, so it is little, and of few kinds.
"""

from __future__ import annotations

from collections import deque

import torch

from ..kernels.rows import RING

Entry = tuple[memoryview, memoryview]
"""Of the ring: tokens, flags."""


class Posting:
    """The results of one pass: read once, after its event."""

    def __init__(self, entry: Entry, event: torch.cuda.Event | None, num_samples: int) -> None:
        self._entry, self._event, self._num_samples = entry, event, num_samples
        self._result: tuple[list[int], list[int]] | None = None

    def read(self) -> tuple[list[int], list[int]]:
        """Tokens and flags of each sample; waits for the pass, with the interpreter lock released."""
        if self._result is None:
            if self._event is not None:
                self._event.synchronize()
            tokens, flags = self._entry
            self._result = tokens[: self._num_samples].tolist(), flags[: self._num_samples].tolist()
        return self._result


class Outbox:
    """`ring` [RING, 2, samples] int32 is what passes publish into, entry by entry, in the order that `posted` is
    called. An entry is read out at the latest when its turn comes again. Made under the stream that the passes use."""

    def __init__(self, max_samples: int, device: torch.device) -> None:
        on_device = device.type == "cuda"
        self.ring = torch.zeros((RING, 2, max_samples), dtype=torch.int32, pin_memory=on_device)
        self._entries = [(memoryview(tokens), memoryview(flags)) for tokens, flags in self.ring.numpy()]
        self._events = [torch.cuda.Event(blocking=True) if on_device else None for _ in range(RING)]
        self._stream = torch.cuda.current_stream() if on_device else None
        self._count = 0
        self._unread: deque[Posting] = deque()

    def posted(self, num_samples: int) -> Posting:
        """A pass has been enqueued: call at once after it."""
        if len(self._unread) == RING - 1:
            self._unread.popleft().read()
        entry = self._count % RING
        event = self._events[entry]
        if event is not None:
            event.record(self._stream)
        posting = Posting(self._entries[entry], event, num_samples)
        self._unread.append(posting)
        self._count += 1
        return posting

    def restart(self, count: int) -> None:
        """The device has published `count` passes so far; what was not read is lost."""
        self._unread.clear()
        self._count = count
