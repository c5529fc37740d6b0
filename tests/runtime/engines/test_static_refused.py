"""Where padded batches cannot serve either, the caller is told why continuous batching could not."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from scripted_padded import PagelessBackend
from tiny_checkpoints import write_checkpoint

from jitney.runtime import EngineConfig, StaticEngine
from jitney.runtime.errors import CannotServe, InvalidField


@pytest.mark.parametrize("second", [CannotServe("nor this"), InvalidField("quantize", "None", "int8")])
def test_the_first_refusal_is_raised(
    second: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(config: EngineConfig) -> Any:
        raise second

    before, made = threading.active_count(), PagelessBackend()
    monkeypatch.setattr(made, "open_padded", refuse)
    with pytest.raises(CannotServe, match="no paged attention"):
        StaticEngine(made)
    assert threading.active_count() == before and not caplog.records


def test_weights_that_do_not_fit_are_not_read_by_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_checkpoint(tmp_path / "Llama", "Llama")
    for step in ("cpu", "padded"):
        monkeypatch.setattr(f"jitney.runtime.steps.{step}.free_memory", lambda: 1000)
    with caplog.at_level(logging.WARNING, "jitney"):
        with pytest.raises(CannotServe, match="1,000 bytes .* and the KV cache"):
            StaticEngine(directory)
        with pytest.raises(CannotServe, match=r"1,000 bytes of memory are free; weights take [\d,]+$"):
            StaticEngine(directory, legacy=True)
    assert not [record for record in caplog.records if record.name == "jitney"]
