"""What goes wrong in a step: one row's fault is that row's, a pass's is its rows', a device's is final."""

from __future__ import annotations

import pytest
import torch
from books import check_books

pytest.importorskip("triton")

from card import IS_CARD, make_step
from spelled import spelled
from tiny_models import random_weights, small_llama

from jitney.runtime.batch import RowSampling
from jitney.runtime.cuda.step import CudaStep
from jitney.runtime.errors import DeviceLost
from jitney.runtime.messages import Generate, Output
from jitney.runtime.scheduler import Scheduler
from jitney.runtime.worker import StepLoop

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")
MODEL = small_llama(vocab_size=96, num_layers=1)
GREEDY = RowSampling(seed=0, temperature=0.0)


def opened(**settings: object) -> CudaStep:
    options = {"max_rows": 2, "max_context": 256, "naive": not IS_CARD, **settings}
    return make_step(MODEL, random_weights(MODEL), **options)  # type: ignore[arg-type]


def job(name: str, sampling: RowSampling = GREEDY) -> Generate:
    return Generate(id=name, prompt=(1, 2, 3, 4, 5), sampling=sampling, max_tokens=3)


def play(loop: StepLoop, *jobs: Generate) -> dict[str, list[Output]]:
    for each in jobs:
        loop.obey(each)
    found: dict[str, list[Output]] = {each.id: [] for each in jobs}
    while not loop.is_idle:
        for output in spelled(loop.turn(0.0) or ()):
            found[output.id].append(output)
        check_books(loop.scheduler)
    return found


def tokens_of(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def test_a_row_without_a_token_to_choose_fails_alone_though_its_prompt_is_scored() -> None:
    step = opened()
    loop = StepLoop(step, Scheduler(step.capacity))
    nothing = RowSampling(
        seed=1, temperature=0.0, allowed_token_ids=(7,), bad_token_sequences=((7,),), prompt_logprobs=2
    )
    found = play(loop, job("banned", nothing), job("other"))
    assert found["banned"][-1].error == "every token is banned"
    assert len(tokens_of(found["other"])) == 3
    step.close()


def lose(step: CudaStep, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The next pass ends with `error`, and the device answers no more."""

    class Gone:
        def __getattr__(self, name: str) -> object:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def run(size: object) -> None:
        monkeypatch.setattr(step, "_state", Gone())
        raise error

    monkeypatch.setattr(step._graphs, "run", run)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_lost_device_is_told_of_in_whatever_words_it_came(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    step = opened()
    loop = StepLoop(step, Scheduler(step.capacity))
    lose(step, monkeypatch, error)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        play(loop, job("a"))


def test_a_lost_device_is_closed_without_another_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    step = opened()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for name in ("current_stream", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, gone)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", gone, raising=False)
    step.close()


def test_a_pass_without_memory_costs_its_rows_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    step = opened()
    loop = StepLoop(step, Scheduler(step.capacity))
    alone = tokens_of(play(loop, job("alone"))["alone"])
    with monkeypatch.context() as broken:

        def run(size: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        broken.setattr(step._graphs, "run", run)
        [failed] = play(loop, job("failed"))["failed"]
    assert failed.finish_reason == "error" and "out of memory" in (failed.error or "")
    assert tokens_of(play(loop, job("again"))["again"]) == alone
    step.close()


def test_without_memory_for_a_graph_passes_are_launched_without(monkeypatch: pytest.MonkeyPatch) -> None:
    step = opened()
    loop = StepLoop(step, Scheduler(step.capacity))
    alone = tokens_of(play(loop, job("alone"))["alone"])
    assert loop.prepare()

    def record(run: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step._graphs, "_record", record)
    assert loop.prepare()
    assert not loop.prepare()
    assert tokens_of(play(loop, job("again"))["again"]) == alone
    step.close()


def test_a_device_that_is_lost_while_nothing_is_computed_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    step = opened()
    while step.prepare():
        pass

    class Gone:
        def __int__(self) -> int:
            raise torch.AcceleratorError("CUDA error: an illegal memory access")

    monkeypatch.setattr(step._state, "counter", Gone())
    with pytest.raises(DeviceLost, match="the card failed: CUDA error"):
        step.prepare()
    monkeypatch.undo()
    step.close()
