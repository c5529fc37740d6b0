from __future__ import annotations

from triton_interpreter import repair

repair()
