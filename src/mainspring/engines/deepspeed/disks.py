"""Folders on disks that states or weights are to rest in: whether they can be written to, and have room."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from mainspring.arguments.deepspeed.reading import setting
from mainspring.errors import OptionError, Problem
from mainspring.measuring.estimate_divided import sizes_of
from mainspring.measuring.optimizer_state import readable_bytes

_NUMBERS = {"optimizer": 16, "param": 4}
"""Bytes for each number that is trained: a copy in full precision, two states and a gradient; of weights, at most these."""


def check_disks(model: nn.Module, config: Mapping[str, Any], processes_here: int, processes: int) -> None:
    """Refuse folders that cannot be written to or have no room, before anything is divided: later nobody would say why.

    Args:
        model: The model, as it was made.
        config: The configuration.
        processes_here: Those of this machine, which share its disks.
        processes: All of them.

    Raises:
        OptionError: Naming the folders.
    """
    problems = list(_problems(model, config, processes_here / max(1, processes)))
    if problems:
        raise OptionError(problems)


def _problems(model: nn.Module, config: Mapping[str, Any], share: float) -> Iterator[Problem]:
    for what, number in _NUMBERS.items():
        path = f"zero_optimization.offload_{what}"
        if setting(config, f"{path}.device") != "nvme":
            continue
        folder = os.fspath(setting(config, f"{path}.nvme_path"))
        name = f"deepspeed {path}.nvme_path"
        if why := _why_not_written(folder):
            yield Problem(name, folder, f"nothing can be written there ({why})", "name a folder on that disk")
            continue
        needed = sum(count for count, is_trained in sizes_of(model) if is_trained or what == "param") * number * share
        free = shutil.disk_usage(folder).free
        if needed > free:
            why = f"about {readable_bytes(round(needed))} are to rest there, and {readable_bytes(free)} are free"
            yield Problem(name, folder, why, "make room, or name a folder on a larger disk")


def read_once(model: nn.Module) -> None:
    """Let weights that rest on a disk be read ahead also where one of them is used twice.

    DeepSpeed asks for such a weight twice in one breath, tied embeddings for instance, and then refuses its own question.
    """
    for swapper in {id(s): s for p in model.parameters() if (s := getattr(p, "nvme_swapper", None))}.values():
        swapper.swap_in = functools.partial(_swap_in_once, swapper.swap_in)


def _swap_in_once(swap_in: Callable[..., Any], params: Iterable[nn.Parameter], **given: Any) -> Any:
    return swap_in(list({id(parameter): parameter for parameter in params}.values()), **given)


def _why_not_written(folder: str) -> str | None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
