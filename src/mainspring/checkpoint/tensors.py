"""Named tensors and a few texts beside them, in a safetensors file of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mainspring.checkpoint.deferral import write
from mainspring.errors import CheckpointError


@dataclass(frozen=True)
class NamedTensors:
    """What such a file holds.

    Attributes:
        tensors: By name; no two share memory.
        facts: Texts that say what they are.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, str] = field(default_factory=dict)


def save_tensors(named: NamedTensors, path: str | os.PathLike[str]) -> None:
    """Write a file; inside `deferred`, a copy, later.

    Raises:
        OSError: The disk is full, or refuses the write for another reason.
    """
    file = os.path.abspath(path)
    facts = {"format": "pt", **named.facts}
    tensors = {name: tensor.detach().contiguous() for name, tensor in named.tensors.items()}
    write(lambda state: save_file(state, file, metadata=facts), tensors)


def load_tensors(path: str | os.PathLike[str]) -> NamedTensors:
    """Read a file of `save_tensors` into host memory.

    Raises:
        CheckpointError: It does not exist, or is damaged.
    """
    file = Path(path)
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            facts = dict(opened.metadata() or {})
            return NamedTensors({name: opened.get_tensor(name) for name in opened.keys()}, facts)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} could not be read: {error}") from error
