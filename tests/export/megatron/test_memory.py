"""A checkpoint is read tensor by tensor: the process holds little more than the largest one, whatever lies beside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import megatron_state as made
import pytest
import torch

HIDDEN, ROWS = 512, 16384
LARGEST = HIDDEN * ROWS * 4
ARGS = {"hidden_size": HIDDEN, "ffn_hidden_size": HIDDEN, "padded_vocab_size": ROWS, "num_layers": 4}
ARGS |= {"tensor_model_parallel_size": 2, "num_attention_heads": 8, "num_query_groups": 4}

READER = """
import resource, sys, torch
from jitney.export.open import open_source
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.empty(1)
before = peak()
source = open_source(sys.argv[1])
opened = peak() - before
total = 0.0
for name in source.weights.names():
    total += source.weights.get(name)[0].sum().item()
print(opened, peak() - before)
"""


def write(directory: Path) -> int:
    """Two ranks with weights, and twice as much of the optimizer. Gives the bytes on disk."""
    for rank in range(2):
        shapes = {
            "embedding.word_embeddings.weight": (ROWS // 2, HIDDEN),
            "output_layer.weight": (ROWS // 2, HIDDEN),
            "decoder.final_layernorm.weight": (HIDDEN,),
        }
        for layer in range(4):
            shapes |= {
                f"decoder.layers.{layer}.input_layernorm.weight": (HIDDEN,),
                f"decoder.layers.{layer}.pre_mlp_layernorm.weight": (HIDDEN,),
                f"decoder.layers.{layer}.self_attention.linear_qkv.weight": (HIDDEN, HIDDEN),
                f"decoder.layers.{layer}.self_attention.linear_proj.weight": (HIDDEN, HIDDEN // 2),
                f"decoder.layers.{layer}.mlp.linear_fc1.weight": (HIDDEN, HIDDEN),
                f"decoder.layers.{layer}.mlp.linear_fc2.weight": (HIDDEN, HIDDEN // 2),
            }
        state = made.state({name: torch.ones(shape) for name, shape in shapes.items()}, **ARGS)
        state["optimizer"] = {name: torch.zeros(2, *shape) for name, shape in shapes.items()}
        made.save(directory, state, f"mp_rank_{rank:02d}")
    return sum(path.stat().st_size for path in directory.rglob("*.pt"))


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux")
def test_memory_stays_at_the_largest_tensor(tmp_path: Path) -> None:
    stored = write(tmp_path)
    assert stored > 7 * LARGEST
    run = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=True
    )
    opened, read = map(int, run.stdout.split())
    assert opened < LARGEST / 2
    assert read < 2 * LARGEST + 2**24
