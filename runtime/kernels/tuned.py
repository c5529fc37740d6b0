"""Choices that were measured on this card, kept on disk from run to run.

A file holds one card's choices for one version of the kernels. It only saves time: a file that cannot be read or
written is said once in the log, and the built-in choices serve.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from .choice import Choice, Task, candidates

KERNEL_VERSION = 3
"""Raised when a kernel changes so that old measurements mislead."""
LEAST_GAIN = 0.03
"""Less than this is within what two measurements of one kernel differ by."""

Measure = Callable[[Task, Choice], float]
log = logging.getLogger(__name__)


def choices_file(root: Path, device_name: str) -> Path:
    """Under the cache's root, by the card's name (`torch.cuda.get_device_name()`)."""
    card = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return root / "kernels" / f"{card}-v{KERNEL_VERSION}.json"


def load_choices(path: Path) -> dict[str, Choice]:
    """By `Task.key`; none where there is no such file, or where it does not hold choices."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Choice])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s: expected choices of kernels, got %s; using the built-in ones", path, error)
        return {}


def store_choices(path: Path, choices: Mapping[str, Choice]) -> None:
    """Replace the file whole, so that a reader sees the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(choices)))
            os.replace(partial, path)
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("%s: choices of kernels cannot be kept (%s); they will be measured again", path, error)


def tune(tasks: Iterable[Task], measure: Measure, known: Mapping[str, Choice]) -> dict[str, Choice]:
    """The fastest candidate for each task's bucket, and the built-in one where no other is faster by `LEAST_GAIN`;
    `measure` gives seconds, infinity for one that cannot run."""
    choices = dict(known)
    for task in tasks:
        if task.key not in choices:
            seconds = {choice: measure(task, choice) for choice in candidates(task)}
            built_in, fastest = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
            is_slower = seconds[built_in] > (1 + LEAST_GAIN) * seconds[fastest]
            choices[task.key] = fastest if is_slower else built_in
    return choices
