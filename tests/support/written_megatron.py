"""The checkpoints that real megatron-core wrote (write_megatron.py), unpacked, with Megatron's own logits."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

WRITTEN = Path(__file__).parents[1] / "export" / "megatron" / "written"
CASES = sorted(path.name.removesuffix(".tar.xz") for path in WRITTEN.glob("*.tar.xz"))


def unpack(case: str, target: Path) -> Path:
    """The run's directory, as training left it."""
    with tarfile.open(WRITTEN / f"{case}.tar.xz") as archive:
        archive.extractall(target / case, filter="data")
    return target / case


def megatron_logits(directory: Path) -> tuple[list[int], Any]:
    """The prompt and its logits [tokens, padded vocabulary], float32."""
    import numpy as np

    arrays = np.load(directory / "logits.npz")
    return arrays["tokens"].tolist(), arrays["logits"]
