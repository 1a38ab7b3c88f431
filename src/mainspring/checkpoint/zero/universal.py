"""Checkpoints that DeepSpeed's `ds_to_universal` made: a folder for each parameter, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mainspring.checkpoint.lazy_torch import read_lazily
from mainspring.checkpoint.stored import InFiles
from mainspring.checkpoint.zero.partitions import from_pieces
from mainspring.errors import CheckpointError

_FILE = "fp32.pt"


def universal_parameters(folder: Path, model: dict[str, Any]) -> dict[str, InFiles]:
    """Find the parameters that the optimizer steps.

    Args:
        folder: The folder that holds one for each of them.
        model: What is said of the model, with the shapes.

    Raises:
        CheckpointError: One is missing, or of another shape.
    """
    shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}
    found = {}
    for name, shape in shapes.items():
        file = folder / name / _FILE
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{file} is missing")
        value = read_lazily(file)
        # Of what tensor parallelism had divided DeepSpeed also notes how it joined it.
        found[name] = from_pieces(shape, [value["param"] if isinstance(value, dict) else value])
    return found
