"""The trap of one process: a step that gives up the interpreter lock often waits a switch interval each time to get it
back from a busy event loop. Coarse on purpose: with Python's default interval and an eager step the factor is in the
hundreds; `benchmarks/cpu_step.py` has the figure."""

from __future__ import annotations

import threading
import time

from step_driver import Driver, Row
from tiny_models import random_weights, small_llama

from jitney.runtime.config import EngineConfig
from jitney.runtime.process import SwitchInterval
from jitney.runtime.steps.cpu import open_cpu_step

NUM_STEPS = 20


def test_a_step_is_not_starved_by_a_busy_thread() -> None:
    model = small_llama(num_layers=12)
    step = open_cpu_step(model, random_weights(model), EngineConfig(num_threads=1, max_context=256))
    interval, stop = SwitchInterval(), threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(100))

    interval.acquire()
    busy = threading.Thread(target=spin)
    try:
        driver = Driver(step)
        driver.generate([Row(prompt=range(8))], 1)
        alone = fastest_step(driver)
        busy.start()
        beside = fastest_step(driver)
    finally:
        stop.set()
        busy.join()
        interval.release()
        step.close()
    assert beside < 10 * alone + 0.002, (
        f"{alone * 1e3:.2f} ms alone, {beside * 1e3:.2f} ms beside a busy thread"
    )


def fastest_step(driver: Driver) -> float:
    """Seconds of the fastest of some decode steps of slot 0: what the machine can do between disturbances."""
    times = []
    for _ in range(NUM_STEPS):
        began = time.perf_counter()
        driver.run(decodes=[0])
        times.append(time.perf_counter() - began)
    return min(times)
