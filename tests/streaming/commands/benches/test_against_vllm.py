"""`--against vllm`, with a package of that name that takes the arguments of the real one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jitney.streaming.cli import app
from jitney.streaming.commands.benches import shapes

Jitney = Callable[..., Result]

LIBRARY = """
from types import SimpleNamespace

class SamplingParams:
    def __init__(self, *, temperature, ignore_eos, max_tokens, detokenize):
        assert ignore_eos and not detokenize
        self.max_tokens = max_tokens

class LLM:
    def __init__(self, *, model, load_format, dtype, skip_tokenizer_init, max_model_len, gpu_memory_utilization,
                 enable_prefix_caching, disable_log_stats, max_num_seqs, quantization, kv_cache_dtype):
        print("what a library says on standard output")
        assert load_format == "dummy" and not enable_prefix_caching
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 2000))

    def generate(self, prompts, params, use_tqdm):
        assert all(prompt["prompt_token_ids"] for prompt in prompts)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * p.max_tokens)]) for p in params]
"""
SERVER = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
parser.add_argument("model")
for name in ("port", "host", "served-model-name", "max-model-len", "load-format", "dtype", "kv-cache-dtype"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--no-enable-prefix-caching", action="store_true", required=True)
given = parser.parse_args()
from jitney.streaming.cli import main
sys.argv = ["jitney", "serve", given.model, "--port", given.port, "--served-model-name", given.served_model_name,
            "--load-format", "random", "--threads", "1"]
main()
"""


@pytest.fixture
def jitney(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Jitney:
    small: dict[str, Any] = {
        "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 2000,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1000, "eos_token_id": 1001,
    }  # fmt: skip
    monkeypatch.setitem(shapes.SHAPES, "tiny", shapes.SHAPES["llama-1b"] | small)
    files = {
        "vllm/__init__.py": LIBRARY,
        "vllm/entrypoints/__init__.py": "",
        "vllm/entrypoints/cli/__init__.py": "",
        "vllm/entrypoints/cli/main.py": SERVER,
        "vllm-0.99.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.99\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return lambda *arguments: CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_offline_on_the_same_list(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    workload = ("--random-shape", "tiny", "--requests", "b1", "--repeats", 1, "--threads", 1)
    result = jitney("offline", *workload, "--against", "vllm", "--json", path)
    assert result.exit_code == 0, result.stderr
    found = json.loads(path.read_text())
    assert [row["engine"] for row in found["results"]] == ["dynamic", "vllm"]
    drawn_by = {"input", "output", "seed"}
    assert found["workload"]["requests"] == "b1" and drawn_by.isdisjoint(found["workload"])
    assert {row["num_tokens"] for row in found["results"]} == {256}
    assert found["results"][1]["versions"]["vllm"] == "0.99" and "vllm 0.99" in result.stdout


def test_served_over_the_same_events(jitney: Jitney, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    workload = ("--random-shape", "tiny", "--clients", 2, "--requests", 4, "--input", 9, "--output", 5)
    result = jitney(
        "serve",
        *workload,
        "--transport",
        "sse",
        "--no-offline",
        "--threads",
        1,
        "--against",
        "vllm",
        "--json",
        path,
    )
    assert result.exit_code == 0, result.stderr
    columns = json.loads(path.read_text())["served"]
    assert {name: column["num_tokens"] for name, column in columns.items()} == {
        "jitney, sse": 20,
        "vllm, sse": 20,
    }


def test_a_server_that_ends_says_why(jitney: Jitney, tmp_path: Path) -> None:
    (tmp_path / "vllm/entrypoints/cli/main.py").write_text("raise SystemExit('loading\\nno card for this')")
    workload = ("--random-shape", "tiny", "--clients", 1, "--requests", 1, "--input", 9, "--output", 5)
    result = jitney(
        "serve", *workload, "--transport", "sse", "--no-offline", "--threads", 1, "--against", "vllm"
    )
    assert result.exit_code == 2
    assert "the server ended with status 1: no card for this\n" in result.stderr
