"""Names that are no model, and the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from jitney.runtime.errors import InvalidField, ModelError
from jitney.runtime.weights import default_model
from jitney.runtime.weights.cache import cache_root
from jitney.runtime.weights.locate import open_backend
from jitney.runtime.weights.random_weights import RandomWeights


@pytest.mark.parametrize(
    "name", ["no-such-model", "", "a/b/c", "../x/y", "/no/such/directory", Path("org/name")]
)
def test_a_name_that_is_no_model(name: str | Path) -> None:
    with pytest.raises(ModelError, match="expected smollm2-135m, a directory"):
        open_backend(name)


def test_an_absent_gguf_file() -> None:
    with pytest.raises(ModelError, match="absent.gguf"):
        open_backend("absent.gguf")


def test_the_hub_offline_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="org/name: no such directory here, and the hub gave no snapshot"):
        open_backend("org/name")


def test_a_snapshot_is_opened_under_its_id(
    monkeypatch: pytest.MonkeyPatch, directories: dict[str, Path]
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(hub_id: str, **options: Any) -> str:
        asked[hub_id] = options
        return str(directories["Qwen3"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_backend("org/tiny").name == "org/tiny"
    assert not any(
        pattern.endswith((".py", ".bin", ".pt")) for pattern in asked["org/tiny"]["allow_patterns"]
    )


def test_a_directory_is_named_by_its_last_part(directories: dict[str, Path]) -> None:
    assert open_backend(directories["Llama"]).name == "tiny-llama"
    assert open_backend(str(directories["Mistral"])).name == "tiny-mistral"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("JITNEY_CACHE", "/own")
    assert cache_root() == Path("/own")
    monkeypatch.delenv("JITNEY_CACHE")
    assert cache_root() == Path.home() / ".cache" / "jitney"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_root() == Path("/shared/jitney")


def test_random_weights_are_taken_at_their_word_or_refused(
    monkeypatch: pytest.MonkeyPatch, directories: dict[str, Path], tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(directories["Qwen3"]))
    monkeypatch.setattr(default_model, "default_model", lambda: directories["Llama"])
    for name in ("org/tiny", directories["Mistral"], default_model.NAMES[0]):
        assert isinstance(open_backend(name, random_weights=True).weights, RandomWeights)  # type: ignore[attr-defined]
    (tmp_path / "engine.json").touch()
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(InvalidField, match="load_format: expected 'auto' for"):
            open_backend(path, random_weights=True)
