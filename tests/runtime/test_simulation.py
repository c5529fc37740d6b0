"""A thousand engines, each under its own seed. A failing seed is printed, and replays."""

from __future__ import annotations

import hashlib
import random

import pytest
from simulated_engine import CONTEXT, SimulatedBackend, serve
from simulated_loop import random_capacity

from jitney.runtime import EngineConfig


def simulate(seed: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """One run; returns a digest of everything that every client saw."""
    rng = random.Random(seed)
    fault_rate = rng.choice([0.0, 0.0, 0.0, 0.01, 0.05])
    backend = SimulatedBackend(rng, random_capacity(rng, CONTEXT), fault_rate)
    config = EngineConfig(
        max_batch_tokens=rng.choice([4, 16, 64]),
        max_queued=rng.choice([3, 100]),
        prefix_cache=rng.random() < 0.8,
        step_timeout_s=20.0,
        tune_process=False,
    )
    try:
        clients, _ = serve(rng, backend, config, 25, monkeypatch)
    except BaseException:
        pytest.fail(f"seed {seed} failed; simulate({seed}) replays it")
    told = repr([(c.texts, c.reasons, [event.usage for event in c.done]) for c in clients])
    return hashlib.sha256(told.encode()).hexdigest()


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_seeds(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(block * 100, block * 100 + 100):
        simulate(seed, monkeypatch)


def test_a_seed_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (3, 14, 159):
        assert simulate(seed, monkeypatch) == simulate(seed, monkeypatch)
