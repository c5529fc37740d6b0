"""One look at an engine as the dashboard shows it, for one principal: counters, the last seconds, seats, pages.

The operator sees every request; anyone else sees that a seat is taken, and more only of what is their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..runtime.engines.dynamic import DynamicEngine
from ..runtime.layout import CACHED, FREE, Layout, Seated
from .access.door import OWN_KEY
from .principal import Principal
from .pulse import Pulse

MAX_CELLS = 1536
LEAVING_PAGE, CACHED_PAGE, FREE_PAGE = -1, -2, -3
"""What a cell of the map shows where no seat owns a page of it; leaving: pinned, or of a row that has ended."""
RECENT_S = 10


class Dashboard:
    """Watches an engine from when it is made. `key_of` names the key of a response."""

    def __init__(self, engine: DynamicEngine, key_of: Callable[[str], str]) -> None:
        self._engine = engine
        self._key_of = key_of
        self._pulse = Pulse()
        engine.observers.append(self._pulse)

    @property
    def is_serving(self) -> bool:
        return self._engine.state == "ready"

    def snapshot(self, principal: Principal, model: str, *, num_seconds: int) -> bytes:
        """JSON: the counters now, and each of the last `num_seconds` seconds by its Unix time."""
        at = int(time.time())
        seconds = self._pulse.seconds(num_seconds)
        fields: dict[str, Any] = {
            "model": model,
            **_counters(self._engine),
            "recent": self._pulse.recent(RECENT_S),
            "seconds": [
                {"at": at - len(seconds) + index, **msgspec.structs.asdict(second)}
                for index, second in enumerate(seconds)
            ],
            **self._places(self._engine.layout(), principal),
        }
        return msgspec.json.encode(fields)

    def _places(self, layout: Layout | None, principal: Principal) -> dict[str, Any]:
        if layout is None:
            return {"max_rows": 0, "seats": [], "pages": [], "pages_per_cell": 1}
        per_cell = -(-len(layout.pages) // MAX_CELLS)
        return {
            "max_rows": layout.max_rows,
            "seats": [self._seat(row, principal) for row in layout.seated],
            "pages": cells_of(layout, per_cell),
            "pages_per_cell": per_cell,
        }

    def _seat(self, row: Seated, principal: Principal) -> dict[str, int | str]:
        """Another's row says no more than where it sits."""
        sees_all = principal.key in ("", OWN_KEY) and not principal.user
        if not sees_all and row.user != principal.share:
            return {"slot": row.slot}
        return {
            "slot": row.slot,
            "id": row.id,
            "key": self._key_of(row.id),
            "prompt_len": row.prompt_len,
            "computed": row.computed,
            "num_tokens": row.num_tokens,
            "limit": row.limit,
        }


def _counters(engine: DynamicEngine) -> dict[str, Any]:
    stats = engine.stats()
    return {
        "state": stats.state,
        "running": stats.running,
        "waiting": stats.waiting,
        "pages_total": stats.kv_pages_total,
        "pages_used": stats.kv_pages_used,
        "prefix_queries": stats.prefix_queries,
        "prefix_hits": stats.prefix_hits,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "finished": stats.finished,
        "steps": stats.steps,
    }


def cells_of(layout: Layout, per_cell: int) -> Sequence[int]:
    """The slot that owns a page of the cell, or what else the cell holds."""
    meanings = {FREE: FREE_PAGE, CACHED: CACHED_PAGE}
    owners = [meanings.get(state, LEAVING_PAGE) for state in layout.pages]
    for row in layout.seated:
        for page in row.pages:
            owners[page] = row.slot
    del owners[:1]
    return [max(owners[at : at + per_cell]) for at in range(0, len(owners), per_cell)]
