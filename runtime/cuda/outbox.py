"""What the device sends back: a pinned ring that the passes write, and an event for each that the host waits for."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from ..kernels.rows import RING


class Posting:
    """The results of one pass: read once, after its event."""

    def __init__(self, ring: NDArray[np.int32], event: torch.cuda.Event | None, num_samples: int) -> None:
        self._ring, self._event, self._num_samples = ring, event, num_samples
        self._result: NDArray[np.int32] | None = None

    def read(self) -> NDArray[np.int32]:
        """Tokens and flags [2, samples]; waits for the pass, with the interpreter lock released."""
        if self._result is None:
            if self._event is not None:
                self._event.synchronize()
            self._result = self._ring[:, : self._num_samples].copy()
        return self._result


class Outbox:
    """`ring` [RING, 2, samples] int32 is what passes publish into, entry by entry, in the order that `posted` is
    called. An entry is read out at the latest when its turn comes again."""

    def __init__(self, max_samples: int, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self.ring = torch.zeros((RING, 2, max_samples), dtype=torch.int32, pin_memory=self._on_device)
        self._view = np.asarray(self.ring.numpy())
        self._events = [torch.cuda.Event(blocking=True) if self._on_device else None for _ in range(RING)]
        self._count = 0
        self._unread: deque[Posting] = deque()

    def posted(self, num_samples: int) -> Posting:
        """A pass has been enqueued: call at once after it."""
        if len(self._unread) == RING - 1:
            self._unread.popleft().read()
        entry = self._count % RING
        event = self._events[entry]
        if event is not None:
            event.record()
        posting = Posting(self._view[entry], event, num_samples)
        self._unread.append(posting)
        self._count += 1
        return posting

    def restart(self, count: int) -> None:
        """The device has published `count` passes so far; what was not read is lost."""
        self._unread.clear()
        self._count = count
