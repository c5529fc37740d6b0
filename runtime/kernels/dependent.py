"""Programmatic dependent launches: a kernel that starts while the one before it still runs, and waits where it must.

Every kernel launched so calls `gdc_launch_dependents` first, so that its own follower may start, and `gdc_wait` before
it reads or writes anything but weights: when that returns, all kernels before it are done and their writes are there.
"""

from __future__ import annotations

from functools import cache

import torch


@cache
def can_depend(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
