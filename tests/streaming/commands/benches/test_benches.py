"""`jitney bench step|offline|serve`: each for real, in its own processes, on a shape of two layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jitney.runtime.config import EngineConfig
from jitney.runtime.errors import JitneyError
from jitney.runtime.weights.locate import open_backend
from jitney.streaming.cli import app
from jitney.streaming.commands.benches import lists, report, serve, shapes, step_process
from jitney.streaming.commands.benches.client_process import ClientJob, Seen
from jitney.streaming.commands.benches.clients import Limits, served
from jitney.streaming.commands.benches.device import covered
from jitney.streaming.commands.benches.load import Timed
from jitney.streaming.commands.benches.roofline import step_bytes
from jitney.streaming.commands.benches.step_process import StepJob

Jitney = Callable[..., Result]

TINY: dict[str, Any] = {
    **shapes.SHAPES["llama-1b"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2000, "bos_token_id": 1000, "eos_token_id": 1001,
}  # fmt: skip


@pytest.fixture
def jitney(monkeypatch: pytest.MonkeyPatch) -> Jitney:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda *arguments: CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_a_known_shape_is_a_model_whose_words_are_tokens(tmp_path: Path, name: str) -> None:
    shapes.write_shape(shapes.SHAPES[name], tmp_path / name)
    backend = open_backend(tmp_path / name, random_weights=True)
    ids = lists.drawn([(50, 1)], backend.vocab_size)[0]
    assert backend.tokenizer.encode(shapes.words(ids), add_bos=False) == ids
    assert backend.tokenizer.encode_chat([{"role": "user", "content": shapes.words(ids)}]) == ids
    assert backend.tokenizer.decode(ids) == shapes.words(ids)


def test_a_step_reads_weights_once_and_what_each_row_holds(tmp_path: Path) -> None:
    shapes.write_shape(shapes.SHAPES["llama-8b"], tmp_path / "m")
    model: Any = open_backend(tmp_path / "m", random_weights=True)
    plain = step_bytes(model.config, EngineConfig())
    assert plain.token == 2 * 32 * 8 * 128 * 2
    assert plain.weights == pytest.approx(2 * 7.5e9, rel=0.01)
    narrow = step_bytes(model.config, EngineConfig(quantize="fp8", kv_dtype="fp8"))
    assert narrow.weights == pytest.approx(plain.weights / 2, rel=0.01) and narrow.token == plain.token / 2
    assert plain.of(32, 1000) == plain.weights + 32000 * plain.token


def test_steps(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    result = jitney(
        "step", "--random-shape", "tiny", "--batch", "1,3", "--context", "40,80", "--steps", 6, "--bandwidth", 10,
        "--threads", 1, "--json", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(path.read_text())
    figures = found["result"]["figures"]
    assert [(f["batch"], f["context"]) for f in figures] == [(1, 40), (3, 40), (1, 80), (3, 80)]
    assert all(f["ms"] > f["floor_ms"] > 0 and f["host_us"] > 0 and f["idle"] is None for f in figures)
    assert found["result"]["bandwidth"] == 1e10
    assert set(found) >= {"command", "versions", "machine"} and "torch" in found["versions"]
    assert "% of roofline" in result.stdout


def test_a_size_that_does_not_fit_has_no_figures(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    result = jitney(
        "step", "--random-shape", "tiny", "--batch", "1,40", "--context", "600", "--steps", 2, "--json", path,
        "--max-batch-tokens", 256,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert [f["failure"] for f in json.loads(path.read_text())["result"]["figures"]][0] is None


def test_a_fixed_list_offline(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "offline.json"
    result = jitney(
        "offline", "--random-shape", "tiny", "--requests", "b1", "--repeats", 1, "--threads", 1,
        "--json", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    [row] = json.loads(path.read_text())["results"]
    assert (row["num_prompt_tokens"], row["num_tokens"], row["output_len"]) == (128, 256, 256)


def test_first_token_and_steady_state_apart(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "offline.json"
    workload = ("--requests", 3, "--input", 8, "--output", 6, "--repeats", 1, "--threads", 1)
    result = jitney("--engine", "dynamic", "--random-shape", "tiny", *workload, "--json", path)
    assert result.exit_code == 0, result.stderr
    [row] = json.loads(path.read_text())["results"]
    assert 0 < row["first_s"][0] < row["seconds"][0] and row["step_ms"] > 0
    assert "first ms" in result.stdout


def test_a_server_under_load_over_both_transports(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    result = jitney(
        "serve", "--random-shape", "tiny", "--clients", 3, "--requests", 5, "--input", 12, "--output", 7, "--lanes", 2,
        "--threads", 1, "--json", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(path.read_text())
    assert set(found["served"]) == {"jitney, ws", "jitney, sse"} and found["offline"] > 0
    assert {name: found["load"][name] for name in ("clients", "requests", "input", "output", "lanes")} == {
        "clients": 3, "requests": 5, "input": 12, "output": 7, "lanes": 2,
    }  # fmt: skip
    for column in found["served"].values():
        assert (column["num_requests"], column["num_tokens"]) == (5, 35)
        assert column["first_ms"]["p50"] <= column["first_ms"]["max"] and column["tokens_per_s"] > 0
    assert "loss against offline" in result.stdout


def test_an_open_loop(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    result = jitney(
        "serve", "--random-shape", "tiny", "--transport", "ws", "--requests", 4, "--input", 5, "--output", 3,
        "--rate", 200, "--threads", 1, "--no-offline", "--json", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(path.read_text())["served"]["jitney, ws"]["num_tokens"] == 12


def test_no_prompt_of_a_server_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[ClientJob] = []
    saw = Seen(0.0, 1.0, 0.1, [Timed(0.1, 0.1, 2, [0.1])])
    monkeypatch.setattr(serve, "run_clients", lambda asked: jobs.extend(asked) or [saw])
    load = serve.Load(20, 64, 16, 2, 1, None, 1000, Limits(1.0, 1.0))
    serve._measured(nullcontext("http://nowhere"), load, ["ws", "sse"], "jitney", "m")
    prompts = [tuple(prompt) for job in jobs for prompt in lists.drawn(job.lengths, job.vocab_size, job.seed)]
    assert len(prompts) == 2 * (20 + 64) and len(set(prompts)) == len(prompts)


def test_what_clients_saw_is_summed_up() -> None:
    seen = [
        Seen(1.0, 3.0, 0.5, [Timed(0.010, 0.9, 10, [0.1] * 9), Timed(0.500, 0.9, 10, [0.1] * 9)]),
        Seen(1.5, 5.0, 0.7, [Timed(0.020, 0.9, 4, [0.3] * 3)]),
    ]
    told = served(seen, Limits(first_ms=200, token_ms=150))
    assert (told.num_tokens, told.num_pieces, told.seconds) == (24, 24, 4.0)
    assert told.tokens_per_s == 6.0 and told.goodput == 0.25
    assert told.first_ms == {"p50": 20.0, "p90": 500.0, "p99": 500.0, "max": 500.0}
    assert told.gap_ms["max"] == 300.0 and told.client_cpu == 0.25


def test_time_under_spans() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert covered([]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("step", "--random-shape", "gpt"), "--random-shape: expected one of qwen3-0.6b"),
        (("offline", "--requests", "many"), "--requests: expected a number"),
        (("serve", "--against", "vllm", "--url", "http://127.0.0.1:1"), "--against: expected no --url"),
    ],
)
def test_what_cannot_be_measured_is_refused(jitney: Jitney, arguments: tuple[str, ...], told: str) -> None:
    result = jitney(*arguments)
    assert result.exit_code == 2 and told in result.stderr


def test_without_matplotlib_a_plot_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, jitney: Jitney, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    result = jitney("step", "--random-shape", "tiny", "--plot", tmp_path / "x.png")
    assert result.stderr == "jitney: --plot: matplotlib is not installed; it comes with the extra [bench]\n"


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra [bench]")
def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot = report.Plot("steps", "rows", "ms")
    plot.line("measured", [1, 2], [3, 4])
    plot.line("roofline", [1, 2], [1, 2], is_limit=True)
    plot.save(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_cards_bandwidth_is_measured_while_its_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes all of it; and a roofline that was given is not measured."""
    said: list[str] = []

    class Backend:
        def open_step(self, config: EngineConfig) -> None:
            said.append("open")
            raise JitneyError("far enough")

    monkeypatch.setattr(step_process, "kind_of", lambda device: "cuda")
    monkeypatch.setattr(step_process, "bandwidth", lambda kind: said.append(kind) or 1e9)
    monkeypatch.setattr(step_process, "resolve", lambda model, random_weights: Backend())
    for given in (None, 5e9):
        job = StepJob(model="x", batches=[1], contexts=[8], steps=2, settings={}, bandwidth=given)
        with pytest.raises(JitneyError, match="far enough"):
            step_process.measure(job)
    assert said == ["cuda", "open", "open"]
