"""Ten thousand random requests against one engine with a tiny pool of pages, four in ten of them cancelled."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from simulated_engine import CONTEXT, SimulatedBackend, serve

from jitney.runtime import EngineConfig
from jitney.runtime.batch import Capacity


@pytest.mark.parametrize(("depth", "count"), [(0, 10_000), (2, 5_000)])
def test_storm(depth: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(depth)
    pages = 2 * CONTEXT // 4
    backend = SimulatedBackend(rng, Capacity(num_pages=pages, page_size=4, max_rows=16, depth=depth))
    config = EngineConfig(max_batch_tokens=64, max_queued=10_000, step_timeout_s=1e6, tune_process=False)
    clients, stats = serve(rng, backend, config, count, monkeypatch, spread_s=count / 50)
    assert all(len(client.done) == 1 for client in clients), "not exactly one terminal event"
    reasons = Counter(reason for client in clients for reason in client.reasons)
    assert set(reasons) == {"stop_token", "stop_string", "length", "cancelled", "deadline"}
    assert reasons == stats.finished
    assert stats.preemptions > 100, "the pool was not tight"
    assert stats.prefix_hits > 1000
