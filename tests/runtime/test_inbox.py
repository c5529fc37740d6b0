"""The way from the loop to the worker."""

from __future__ import annotations

import threading

from jitney.runtime.inbox import Inbox
from jitney.runtime.messages import Cancel, Stop


def test_everything_comes_out_once_in_order() -> None:
    inbox = Inbox()
    sent = [Cancel(str(n)) for n in range(100)]
    for command in sent:
        inbox.put(command)
    assert inbox.drain(wait=True) == sent
    assert inbox.drain(wait=False) == []


def test_a_waiting_drain_wakes_when_something_comes() -> None:
    inbox = Inbox()
    drained: list[object] = []
    reader = threading.Thread(target=lambda: drained.extend(inbox.drain(wait=True)))
    reader.start()
    inbox.put(Stop())
    reader.join(60)
    assert drained == [Stop()]


def test_a_drain_with_patience_comes_back_with_nothing() -> None:
    assert Inbox().drain(wait=True, patience_s=0.001) == []
