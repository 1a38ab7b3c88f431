"""Micro-batches in pieces, where memory does not hold a whole one: how a batch is cut along its rows, and what a try changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mainspring.errors import OptionError, Problem
from mainspring.loss import count_items
from mainspring.metrics import children_of, find_batch_size, rebuilt

OPTION = "auto_find_batch_size"

_MESSAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory: you tried to allocate")
"""What libraries say beside the messages that Accelerate knows."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(error) or any(message in str(error) for message in _MESSAGES)


def release_memory() -> None:
    """Give back what only caches and garbage hold."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


@contextlib.contextmanager
def naming_evaluation_batch(batch_size: int) -> Iterator[None]:
    """The body evaluates: where memory runs out in it, the error names the option that helps."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"{OPTION}=True: the evaluation ran out of memory. Only micro-batches of training are cut: set "
            f"per_device_eval_batch_size, which is {batch_size}, lower"
        ) from error


def check_pieces(*reasons: str | None) -> None:
    """Refuse the option where an update cannot be begun anew.

    Raises:
        OptionError: With every reason that there is.
    """
    if problems := [Problem(OPTION, True, why, "leave it out") for why in reasons if why is not None]:
        raise OptionError(problems)


# ---- cutting -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Some rows of a micro-batch.

    Attributes:
        inputs: The batch of these rows.
        whole: The micro-batch.
        rows: How many they are.
        of_rows: Which part of the micro-batch's rows that is.
        share: How much of a mean over the micro-batch is theirs: by labels that count, or by rows.
        parts: What a mean over the micro-batch is divided by in its update.
    """

    inputs: Any
    whole: Any
    rows: int
    of_rows: float = 1.0
    share: float = 1.0
    parts: int = 1

    def of_batch(self, mean: Tensor) -> Tensor:
        """What a mean over these rows adds to the mean over the micro-batch: nothing, where none of them has a label."""
        return mean * self.share if self.share else mean.nan_to_num(0.0, 0.0, 0.0) * 0.0


class Cutter:
    """Cuts batches along their rows.

    Args:
        names: Entries of a batch whose first dimension is its rows: the first that is there tells how many they are.
        shifts_labels: Whether the loss compares position i with the label of position i + 1.
    """

    def __init__(self, names: Sequence[str], shifts_labels: bool) -> None:
        self._names = tuple(names)
        self._shifts_labels = shifts_labels

    def rows(self, batch: Any) -> int:
        """Rows of a batch; 1 where nothing tells."""
        named = [batch[name] for name in self._names if name in batch] if isinstance(batch, Mapping) else []
        found = next((value.shape[0] for value in named if isinstance(value, Tensor) and value.dim()), None)
        return (find_batch_size(batch) if found is None else int(found)) or 1

    def cut(self, batch: Any, count: int, parts: int = 1, *, means: bool = False) -> list[Piece]:
        """Cut a batch into `count` pieces of as many rows, to one; fewer where it has fewer rows.

        Args:
            batch: A micro-batch.
            count: How many pieces are wanted.
            parts: What a mean over the batch is divided by in its update.
            means: Whether its loss may be a mean over labels: a piece without any would have none, and is left out.

        Raises:
            ValueError: It is not known what of the batch belongs to which row.
        """
        rows = self.rows(batch)
        count = min(count, rows)
        if count == 1:
            return [Piece(batch, batch, rows, parts=parts)]
        spans = [_Span(rows, rows * number // count, rows * (number + 1) // count) for number in range(count)]
        inputs = [span.of(batch, "the batch") for span in spans]
        sizes = [span.stop - span.start for span in spans]
        shares = self._shares(inputs, sizes)
        pieces = [
            Piece(one, batch, size, size / rows, share, parts)
            for one, size, share in zip(inputs, sizes, shares, strict=True)
        ]
        return [piece for piece in pieces if piece.share] if means else pieces

    def _shares(self, inputs: list[Any], sizes: list[int]) -> list[float]:
        counts = [count_items([one], self._shifts_labels) for one in inputs]
        weights = [0 if count is None else int(count) for count in counts]
        if None in counts or not any(weights):
            weights = sizes
        return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class _Span:
    """Rows `start` to `stop` of a batch of `rows`."""

    rows: int
    start: int
    stop: int

    def of(self, value: Any, name: str) -> Any:
        """These rows of a value. One that has no rows, or one for all of them, is for every piece."""
        if isinstance(value, (Tensor, np.ndarray)):
            return self._of_tensor(value, name)
        if isinstance(value, Mapping):
            return rebuilt(value, [self.of(part, str(key)) for key, part in value.items()])
        children = children_of(value)
        if children is None:
            return value
        return self._of_list(value, children, name)

    def _of_tensor(self, value: Any, name: str) -> Any:
        if value.ndim == 0 or value.shape[0] == 1:
            return value
        if value.shape[0] != self.rows:
            raise self._unknown(name, f"has {value.shape[0]} in its first dimension")
        return value[self.start : self.stop]

    def _of_list(self, value: Any, children: list[Any], name: str) -> Any:
        by_row = [isinstance(child, (Tensor, np.ndarray)) and self._has_rows(child) for child in children]
        if len(children) != self.rows:
            return rebuilt(value, [self.of(child, name) for child in children])
        if any(by_row):
            raise self._unknown(name, f"is a list of {self.rows} tensors with {self.rows} rows each")
        return rebuilt(value, children[self.start : self.stop])

    def _has_rows(self, tensor: Any) -> bool:
        return bool(tensor.ndim and tensor.shape[0] == self.rows)

    def _unknown(self, name: str, why: str) -> ValueError:
        return ValueError(
            f"{OPTION}=True: the batch cannot be cut along its {self.rows} rows, for {name!r} {why}, and it is not known "
            "what of it belongs to which row: set per_device_train_batch_size lower and gradient_accumulation_steps higher"
        )


# ---- trying ------------------------------------------------------------------------------------------------------


class Beginning:
    """What the forward and backward passes of an update change, as it was when it began: gradients and buffers.

    Args:
        model: The model in training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._gradients = [(one, one.grad.clone()) for one in model.parameters() if one.grad is not None]
        self._buffers = [
            (module._buffers, name, buffer, _copy_of(buffer))
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]

    def put_back(self) -> None:
        """Leave gradients and buffers as they were."""
        for parameter in self._model.parameters():
            parameter.grad = None
        for parameter, gradient in self._gradients:
            parameter.grad = gradient.clone()
        for buffers, name, buffer, value in self._buffers:
            if buffer is not None and value is not None:
                with torch.no_grad():
                    buffer.copy_(value)
            buffers[name] = buffer


def _copy_of(buffer: Tensor | None) -> Tensor | None:
    """A copy of what a forward pass may change in place: statistics and their counts, but no masks."""
    if buffer is None or buffer.dtype == torch.bool or buffer.is_inference():
        return None
    return buffer.clone()


Extent = tuple[int, int]
"""How much a micro-batch takes: elements of its largest tensor, and those of one row of it."""


def extent_of(batches: Sequence[Any]) -> Extent:
    """The most elements, and the most elements of a row, that any tensor of the batches has."""
    tensors = [leaf for batch in batches for leaf in _tensors(batch) if leaf.dim()]
    return (
        max((tensor.numel() for tensor in tensors), default=0),
        max((tensor.numel() // max(tensor.shape[0], 1) for tensor in tensors), default=0),
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for child in children_of(value) or ():
        yield from _tensors(child)


class Fit:
    """What a run has found out about its memory.

    Attributes:
        cutter: Cuts its batches.
        sizes: Rows at a time that were tried, the largest first.
    """

    def __init__(self, cutter: Cutter, pieces: int) -> None:
        self.cutter = cutter
        self.sizes: list[int] = []
        self._fitting: list[Extent] = []
        self._known_pieces = pieces
        self._has_updated = False

    def has_tried(self, extent: Extent) -> bool:
        """Whether micro-batches at least as large were found to fit."""
        return any(known[0] >= extent[0] and known[1] >= extent[1] for known in self._fitting)

    def note(self, extent: Extent) -> None:
        """Micro-batches of this extent fit."""
        self._fitting = [known for known in self._fitting if known[0] > extent[0] or known[1] > extent[1]] + [extent]

    def note_update(self) -> None:
        """An update is about to step. After the first one there are the optimizer's states too: what fitted may not fit."""
        if not self._has_updated:
            self._fitting = []
        self._has_updated = True

    def is_news(self, pieces: int) -> bool:
        """Whether the number of pieces is not the one that was asked about before."""
        known, self._known_pieces = self._known_pieces, pieces
        return pieces != known

    def note_size(self, rows: int) -> None:
        """So many rows at a time were tried."""
        if rows not in self.sizes:
            self.sizes = sorted({*self.sizes, rows}, reverse=True)

    def hopeless(self, elsewhere: bool = False) -> torch.OutOfMemoryError:
        """The error of a run in which one row is too much."""
        who = "another process is" if elsewhere else "the run is"
        tried = ", ".join(map(str, self.sizes))
        return torch.OutOfMemoryError(
            f"{OPTION}=True: {who} out of memory. Not even one row at a time fits (tried: {tried}). Shorten the samples (`pack_length`, where rows are packed), or "
            "have the model keep less: gradient_checkpointing=True, bf16=True, an optimizer with smaller states"
        )

    def unexpected(self, pieces: int) -> torch.OutOfMemoryError:
        """The error of one process of several, in the midst of an update of which the tries had fit."""
        return torch.OutOfMemoryError(
            f"{OPTION}=True: out of memory in an update of which the other processes wait for this one's gradients, so that it "
            f"cannot begin anew. With {pieces} pieces a micro-batch of this size had fit before: set "
            "per_device_train_batch_size lower and gradient_accumulation_steps higher, to leave some room"
        )
