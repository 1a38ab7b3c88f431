"""One batch of an evaluation: what this process has of it, and what all have."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from mainspring.evaluation.kept import Outputs, Rows
from mainspring.metrics import PADDING, Tree, children_of, map_tree

if TYPE_CHECKING:
    from mainspring.trainer import Trainer


class Batch:
    """The outputs of one batch.

    Args:
        trainer: Gathers.
        outputs: Of this process, filling included.
        held: Rows that this process put through the model.
        counted: How many of these are no filling.
    """

    def __init__(self, trainer: Trainer, outputs: Outputs, held: int, counted: int) -> None:
        self._trainer = trainer
        self._outputs = outputs
        self._held = held
        self.counted = counted

    @property
    def has_both(self) -> bool:
        """Whether there are predictions and labels, which metrics need."""
        return self._outputs.predictions is not None and self._outputs.labels is not None

    @cached_property
    def own(self) -> Outputs:
        """This process's rows."""
        if self.counted == self._held:
            return self._outputs
        return Outputs(*(None if value is None else map_tree(self._cut, value) for value in self._outputs))

    def _cut(self, leaf: Any) -> Any:
        has_rows = (not isinstance(leaf, torch.Tensor) or leaf.ndim) and len(leaf) == self._held
        return leaf[: self.counted] if has_rows else leaf

    @cached_property
    def gathered(self) -> Outputs:
        """The rows of all processes, in order. All must ask."""
        # Losses are one number a row already.
        return Outputs(*(None if value is None else gathered(self._trainer, value) for value in self._outputs))


def gathered(trainer: Trainer, value: Tree) -> Tree:
    """A tree with the rows of all processes, in order, without filling. All must ask."""
    gather = trainer.gather_function
    if not trainer.args.eval_use_gather_object:
        return gather(value)
    return map_tree(lambda leaf: _restored(leaf, gather(leaf.items if isinstance(leaf, Rows) else leaf)), value)


def _restored(leaf: Any, gathered: Any) -> Any:
    """What gathering objects made of a leaf, as the leaf's kind: several processes make a list of rows of it."""
    if isinstance(leaf, Rows):
        return Rows(gathered)
    return torch.stack([row.cpu() for row in gathered]) if isinstance(gathered, list) else gathered


def rows_marked(value: Tree, rows: int) -> Tree:
    """The same tree with each list that holds one object a row as a leaf."""
    children = children_of(value)
    if children is None:
        return value
    if isinstance(value, list) and len(value) == rows and not isinstance(value[0], torch.Tensor):
        return Rows(value)
    return type(value)(
        {key: rows_marked(child, rows) for key, child in value.items()}
        if isinstance(value, dict)
        else (rows_marked(child, rows) for child in children)
    )


def padded_over_processes(trainer: Trainer, value: Tree) -> Tree:
    """Outputs as wide on dimension 1 as those of the process that has the widest."""
    if value is None or trainer._engine.world_size == 1:
        return value

    def pad(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return trainer.accelerator.pad_across_processes(leaf, dim=1, pad_index=PADDING)

    return map_tree(pad, value)
