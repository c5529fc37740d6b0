"""The rings between host and device: blocks of changes on their way in, results on their way out, recorded passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from jitney.runtime.cuda import staging as staging_module
from jitney.runtime.cuda.arena import Arena, Patch
from jitney.runtime.cuda.graphs import Graphs, Replay, plain_recorder
from jitney.runtime.cuda.outbox import Outbox
from jitney.runtime.cuda.sizes import Pass
from jitney.runtime.cuda.staging import Staging
from jitney.runtime.kernels.rows import RING

CPU = torch.device("cpu")


class LateDevice:
    """Reads a staging block only when its event is waited for: what was overwritten before shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pending: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        self.num_waits = 0
        monkeypatch.setattr(staging_module, "apply_patch", self.read)

    def read(self, words: torch.Tensor, block: torch.Tensor, count: int) -> None:
        self.pending.append((words, block, count))

    def synchronize(self, number: int) -> None:
        self.num_waits += 1
        while self.pending and number:
            words, block, count = self.pending.pop(0)
            words[block[0, :count].long()] = block[1, :count]
            number -= 1


class Event:
    def __init__(self, device: LateDevice) -> None:
        self._device, self._number = device, 0

    def record(self, stream: None) -> None:
        self._number = len(self._device.pending)

    def synchronize(self) -> None:
        self._device.synchronize(self._number)
        self._number = 0


@pytest.mark.parametrize("num_blocks", [1, 2, 4])
def test_no_block_is_written_before_it_was_read(monkeypatch: pytest.MonkeyPatch, num_blocks: int) -> None:
    arena = Arena()
    arena.region("values", 1, 200)
    arena.allocate(CPU)
    device = LateDevice(monkeypatch)
    staging = Staging(arena, num_blocks, capacity=16)
    staging._read = [Event(device) for _ in range(num_blocks)]  # type: ignore[misc]
    for first in range(0, 200, 50):
        patch = Patch(arena)
        patch.write("values", 0, range(first, first + 50), at=first)
        staging.apply(patch)
        assert len(device.pending) <= num_blocks
    device.synchronize(len(device.pending))
    assert arena.tensor("values")[0].tolist() == list(range(200))


def publish(outbox: Outbox, count: int, value: int) -> None:
    outbox.ring[count % RING] = value


def test_results_are_read_in_any_order_and_once_for_all() -> None:
    outbox = Outbox(3, CPU)
    postings = []
    for number in range(4):
        publish(outbox, number, number)
        postings.append(outbox.posted(2))
    assert [postings[i].read() for i in (2, 0, 3, 1)] == [([i, i], [i, i]) for i in (2, 0, 3, 1)]
    assert postings[0].read() is postings[0].read()


def test_a_result_that_nobody_read_is_kept_when_its_turn_comes_again() -> None:
    outbox = Outbox(1, CPU)
    postings = []
    for number in range(3 * RING):
        publish(outbox, number, number)
        postings.append(outbox.posted(1))
    assert [posting.read()[0] for posting in postings] == [[number] for number in range(3 * RING)]


def test_after_a_fault_it_goes_on_where_the_device_is() -> None:
    outbox = Outbox(1, CPU)
    outbox.posted(1)
    outbox.restart(5)
    publish(outbox, 5, 77)
    assert outbox.posted(1).read() == ([77], [77])


def test_passes_are_recorded_one_by_one_and_then_replayed() -> None:
    computed: list[Pass] = []
    warmed: list[Pass] = []
    large, small, other = (Pass(rows, 0, 0, False, False) for rows in (8, 1, 3))
    graphs = Graphs(computed.append, [large, small], plain_recorder, warmed.append)
    assert graphs.record_next() and warmed == [large]
    assert graphs.record_next() and warmed == [large, small] and not graphs.record_next()
    graphs.run(large)
    graphs.run(other)
    assert computed == [large, other] and warmed == [large, small]
    graphs.clear()
    assert not graphs.record_next()


def test_a_pass_that_comes_before_its_graph_is_recorded_once_it_has_run() -> None:
    story: list[str] = []

    def record(run: Callable[[], object]) -> Replay:
        story.append("recorded")
        return partial(story.append, "replayed")

    soon, never = Pass(8, 0, 0, False, False), Pass(3, 0, 0, False, False)
    graphs = Graphs(lambda size: story.append(f"run {size.rows}"), [soon], record, lambda size: None)
    for size in (never, soon, soon, never):
        graphs.run(size)
    assert story == ["run 3", "run 8", "recorded", "replayed", "run 3"]
    assert not graphs.record_next()


def test_without_memory_for_one_no_other_is_tried() -> None:
    def record(run: Callable[[], object]) -> Replay:
        raise torch.OutOfMemoryError("CUDA out of memory")

    computed: list[Pass] = []
    first, second = Pass(8, 0, 0, False, False), Pass(3, 0, 0, False, False)
    graphs = Graphs(computed.append, [first, second], record, lambda size: None)
    graphs.run(first)
    graphs.run(second)
    assert computed == [first, second] and not graphs.record_next()
