"""Which finished responses are still kept: the oldest go first, by age and by bytes. Pure, owned by the loop."""

from __future__ import annotations

from collections import OrderedDict


class Retention:
    """Ids in the order in which they ended. One that is larger than the bound by itself is forgotten at once."""

    def __init__(self, *, max_age_s: float, max_bytes: int) -> None:
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, response_id: str) -> bool:
        return response_id in self._kept

    @property
    def next_expiry(self) -> float | None:
        """When the oldest will be too old."""
        return next(iter(self._kept.values()))[0] + self._max_age_s if self._kept else None

    def keep(self, response_id: str, num_bytes: int, now: float) -> None:
        self._kept[response_id] = (now, num_bytes)
        self.num_bytes += num_bytes

    def remove(self, response_id: str) -> None:
        _, num_bytes = self._kept.pop(response_id)
        self.num_bytes -= num_bytes

    def expired(self, now: float) -> list[str]:
        """Take out those that are too old or too much."""
        gone = []
        while self._kept:
            response_id, (since, _) = next(iter(self._kept.items()))
            if now - since <= self._max_age_s and self.num_bytes <= self._max_bytes:
                break
            self.remove(response_id)
            gone.append(response_id)
        return gone
