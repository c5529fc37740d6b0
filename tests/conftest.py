"""Where there is no NVIDIA card, Triton kernels run in Triton's interpreter; it is chosen before any is imported."""

from __future__ import annotations

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
