"""What is measured: the loss window on the device, speeds, and the arrays that evaluation collects.

Nothing here knows a trainer: every function takes the values it works on.

Nested data, called a *tree* below, is a tensor or an array, or lists, tuples, named tuples and mappings of trees.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch

from mainspring.jsonfile import write_json

Tree = Any

PADDING = -100
"""What short rows are filled with when rows of different lengths are joined: the label that losses ignore."""


# --- the loss between two logging steps ------------------------------------------------------------------------------


class LossWindow:
    """The sum of the losses since the last logging step, kept on the device.

    Adding never waits for an accelerator; the value is read only by :meth:`drain`.

    Args:
        device: Where the losses are computed.
        keep_finite: Replace a NaN or infinite loss by the mean of the window so far, so that one bad batch does not
            hide the rest of the window from the log. It changes what is logged only, never a gradient.

    Attributes:
        total: 0-d float32 tensor on ``device``, changed in place.
    """

    __slots__ = ("_device", "_filters_on_device", "_filters_on_host", "total")

    def __init__(self, device: torch.device | str, keep_finite: bool) -> None:
        self.total = torch.zeros((), dtype=torch.float32, device=device)
        self._device = self.total.device
        # On the CPU reading a value waits for nothing and costs less than three tensor operations.
        self._filters_on_host = keep_finite and self._device.type == "cpu"
        self._filters_on_device = keep_finite and not self._filters_on_host

    def add(self, loss: torch.Tensor, updates_since_log: int) -> None:
        """Add one micro-batch's loss.

        Args:
            loss: A tensor of one element on the window's device; its graph is not kept.
            updates_since_log: Optimizer updates finished since the last logging step.

        Raises:
            ValueError: If the loss is on another device or holds several values.
        """
        if loss.device != self._device or loss.requires_grad or loss.dim():
            loss = self._checked(loss)
        if self._filters_on_device:
            self.total.add_(torch.where(torch.isfinite(loss), loss, self.total / (1 + updates_since_log)))
        elif self._filters_on_host and not math.isfinite(loss.item()):
            self.total.add_(self.total / (1 + updates_since_log))
        else:
            self.total.add_(loss)

    def drain(self, mean_over_ranks: Callable[[torch.Tensor], float]) -> float:
        """Return the window's sum, averaged over the processes, and empty the window in place.

        Args:
            mean_over_ranks: Takes :attr:`total`, returns its mean over all processes (``Tensor.item`` on one).
        """
        value = mean_over_ranks(self.total)
        self.total.zero_()
        return value

    def _checked(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss as a 0-d tensor without a graph."""
        if loss.device != self._device:
            raise ValueError(
                f"training_step returned a loss on {loss.device}, but training runs on {self._device}: "
                f"return loss.to({str(self._device)!r})"
            )
        if loss.numel() != 1:
            raise ValueError(
                f"training_step returned a loss of shape {tuple(loss.shape)}: return one value, e.g. its mean"
            )
        return loss.detach().reshape(())


# --- speed, and metrics as people read them --------------------------------------------------------------------------


def speed_metrics(
    split: str,
    start_time: float,
    num_samples: float | None = None,
    num_steps: float | None = None,
    num_tokens: float | None = None,
) -> dict[str, float]:
    """Runtime and rates since ``start_time``.

    Args:
        split: Prefix of the keys, such as ``"train"`` or ``"eval"``.
        start_time: ``time.time()`` when the measured work began.
        num_samples: Samples processed since then; None leaves their rate out.
        num_steps: Steps, likewise.
        num_tokens: Tokens, likewise.

    Returns:
        ``<split>_runtime`` in seconds (4 decimals) and ``<split>_{samples,steps,tokens}_per_second`` (3 decimals).
    """
    runtime = time.time() - start_time
    metrics = {f"{split}_runtime": round(runtime, 4)}
    counts = {"samples": num_samples, "steps": num_steps, "tokens": num_tokens}
    if runtime:
        metrics |= {
            f"{split}_{unit}_per_second": round(count / runtime, 3)
            for unit, count in counts.items()
            if count is not None
        }
    return metrics


def metrics_format(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Copy ``metrics`` with values in the units people read.

    ``*_mem_*`` in MB (2**20 bytes), ``*_runtime`` as h:mm:ss.cc, ``total_flos`` in GF (2**30), floats to 4 decimals.
    """
    return {name: _readable(name, value) for name, value in metrics.items()}


def _readable(name: str, value: Any) -> Any:
    if "_mem_" in name:
        return f"{int(value) >> 20}MB"
    if "_runtime" in name:
        return _clock(value)
    if name == "total_flos":
        return f"{int(value) >> 30}GF"
    return round(value, 4) if isinstance(value, float) else value


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hundredths = abs(int((seconds - whole) * 100))
    return f"{timedelta(seconds=whole)}.{hundredths:02d}"


def log_metrics(split: str, metrics: Mapping[str, Any], write: Callable[[str], object] = print) -> None:
    """Write ``metrics`` as an aligned table, one line per call of ``write``, in the order of their names."""
    shown = {name: str(value) for name, value in sorted(metrics_format(metrics).items())}
    name_width = max(map(len, shown), default=0)
    value_width = max(map(len, shown.values()), default=0)
    write(f"***** {split} metrics *****")
    for name, value in shown.items():
        write(f"  {name:<{name_width}} = {value:>{value_width}}")


def save_metrics(folder: str | os.PathLike[str], split: str, metrics: Mapping[str, Any], combined: bool = True) -> None:
    """Write ``<split>_results.json`` into ``folder``.

    Args:
        folder: Where; made if it is missing.
        split: ``"train"``, ``"eval"``, ``"test"`` or ``"all"``.
        metrics: Unrounded values.
        combined: Also merge them into ``all_results.json``, where newer values win.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = denumpify_detensorize(dict(metrics))
    write_json(values, folder / f"{split}_results.json", indent=4, end="")
    if combined:
        everything = folder / "all_results.json"
        earlier = json.loads(everything.read_text(encoding="utf-8")) if everything.exists() else {}
        write_json({**earlier, **values}, everything, indent=4, end="")


def default_compute_objective(metrics: Mapping[str, float]) -> float | None:
    """The number that a hyper-parameter search compares unless told otherwise.

    Returns:
        The sum of all metrics but the loss, the epoch and the speeds; ``eval_loss`` where there are no others.
    """
    others = [
        value
        for name, value in metrics.items()
        if name not in ("eval_loss", "epoch") and not name.endswith(("_runtime", "_per_second"))
    ]
    return sum(others) if others else metrics.get("eval_loss")


# --- what training and evaluation return -----------------------------------------------------------------------------


class EvalPrediction:
    """What ``compute_metrics`` receives: ``predictions, label_ids = eval_prediction`` unpacks it.

    Args:
        predictions: Array of shape (samples, ...) or a tuple of arrays.
        label_ids: The truths, likewise.
        inputs: The model's main input, where ``include_for_metrics`` asks for it.
        losses: One loss per sample, where ``include_for_metrics`` asks for it.
    """

    def __init__(self, predictions: Tree, label_ids: Tree, inputs: Tree = None, losses: Tree = None) -> None:
        self.predictions = predictions
        self.label_ids = label_ids
        self.inputs = inputs
        self.losses = losses
        self.elements = (predictions, label_ids, *(extra for extra in (inputs, losses) if extra is not None))

    def __iter__(self) -> Iterator[Tree]:
        return iter(self.elements)

    def __getitem__(self, index: int) -> Tree:
        if not 0 <= index < len(self.elements):
            raise IndexError(f"an EvalPrediction of {len(self.elements)} elements has no element {index}")
        return self.elements[index]


class EvalLoopOutput(NamedTuple):
    """Result of the evaluation loop: arrays over all samples, prefixed metrics, and how many samples there were."""

    predictions: Tree
    label_ids: Tree | None
    metrics: dict[str, float] | None
    num_samples: int | None


class PredictionOutput(NamedTuple):
    """Result of ``Trainer.predict``."""

    predictions: Tree
    label_ids: Tree | None
    metrics: dict[str, float] | None


class TrainOutput(NamedTuple):
    """Result of ``Trainer.train``: updates done, mean training loss, and the metrics of the run."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class BestRun(NamedTuple):
    """The best trial of a hyper-parameter search."""

    run_id: str
    objective: float | list[float]
    hyperparameters: dict[str, Any]
    run_summary: Any | None = None


# --- trees of tensors and arrays -------------------------------------------------------------------------------------


def rebuilt(like: Tree, children: Iterable[Tree]) -> Tree:
    """A container of the type of ``like`` with other children, in the order of :func:`children_of`."""
    if type(like) is dict:
        return dict(zip(like, children, strict=True))
    if isinstance(like, Mapping):
        return type(like)(dict(zip(like, children, strict=True)))  # type: ignore[call-arg]
    if hasattr(like, "_fields"):
        return type(like)(*children)
    return type(like)(children)


def children_of(tree: Tree) -> list[Tree] | None:
    """The parts of a container; None for a leaf."""
    if type(tree) is dict:  # nearly every batch: spare it the slower questions
        return list(tree.values())
    if isinstance(tree, (list, tuple)):
        return list(tree)
    return list(tree.values()) if isinstance(tree, Mapping) else None


def map_tree(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same tree with ``function`` applied to every leaf."""
    children = children_of(tree)
    return function(tree) if children is None else rebuilt(tree, [map_tree(function, child) for child in children])


def leaves_of(tree: Tree) -> Iterator[Any]:
    """The leaves of a tree, in order."""
    children = children_of(tree)
    if children is None:
        yield tree
    else:
        for child in children:
            yield from leaves_of(child)


def nested_detach(tensors: Tree) -> Tree:
    """The same tree with every tensor cut from its graph."""
    return map_tree(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, tensors)


def nested_numpify(tensors: Tree) -> Tree:
    """The same tree as arrays in host memory; bfloat16, which NumPy lacks, becomes float32."""
    return map_tree(as_array, tensors)


def as_array(leaf: Any) -> np.ndarray[Any, Any]:
    """A tensor or array as an array in host memory; bfloat16, which NumPy lacks, becomes float32."""
    if isinstance(leaf, np.ndarray):
        return leaf
    if not isinstance(leaf, torch.Tensor):
        raise TypeError(f"expected tensors, got {type(leaf).__name__}: name it in ignore_keys to leave it out")
    leaf = leaf.detach().cpu()
    array: np.ndarray[Any, Any] = (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()
    return array


def nested_truncate(tensors: Tree, limit: int) -> Tree:
    """The same tree with the first ``limit`` rows of every leaf."""
    return map_tree(lambda leaf: leaf[:limit], tensors)


def atleast_1d(tensor_or_array: Any) -> Any:
    """``tensor_or_array`` with at least one dimension."""
    if isinstance(tensor_or_array, torch.Tensor):
        return tensor_or_array if tensor_or_array.dim() else tensor_or_array.reshape(1)
    return np.atleast_1d(tensor_or_array)


def torch_pad_and_concatenate(
    tensor1: torch.Tensor, tensor2: torch.Tensor, padding_index: float = PADDING
) -> torch.Tensor:
    """Join two tensors on dimension 0, the one shorter on dimension 1 filled up with ``padding_index``."""
    return _joined_tensors([atleast_1d(tensor1), atleast_1d(tensor2)], padding_index)


def numpy_pad_and_concatenate(
    array1: np.ndarray[Any, Any], array2: np.ndarray[Any, Any], padding_index: float = PADDING
) -> np.ndarray[Any, Any]:
    """Join two arrays on dimension 0, the one shorter on dimension 1 filled up with ``padding_index``."""
    return joined_arrays([atleast_1d(array1), atleast_1d(array2)], padding_index)


def _joined_tensors(parts: list[torch.Tensor], padding_index: float) -> torch.Tensor:
    _require_joinable(parts)
    if parts[0].dim() > 1:
        width = max(part.shape[1] for part in parts)
        parts = [part if part.shape[1] == width else _widened(part, width, padding_index) for part in parts]
    return torch.cat(parts)


def _widened(tensor: torch.Tensor, width: int, padding_index: float) -> torch.Tensor:
    rows, columns, *rest = tensor.shape
    return torch.cat((tensor, tensor.new_full((rows, width - columns, *rest), padding_index)), dim=1)


def joined_arrays(parts: list[np.ndarray[Any, Any]], padding_index: float) -> np.ndarray[Any, Any]:
    """The parts joined; ``parts`` is emptied on the way, so that no more than one of them is held twice."""
    _require_joinable(parts)
    rows = sum(len(part) for part in parts)
    width = () if parts[0].ndim == 1 else (max(part.shape[1] for part in parts),)
    whole = np.empty((rows, *width, *parts[0].shape[2:]), dtype=np.result_type(*{part.dtype for part in parts}))
    filler = np.asarray(padding_index).astype(whole.dtype)
    while parts:
        part = parts.pop()
        target = whole[rows - len(part) : rows]
        rows -= len(part)
        if part.ndim == 1:
            target[:] = part
        else:
            target[:, : part.shape[1]] = part
            target[:, part.shape[1] :] = filler
    return whole


def _require_joinable(parts: list[Any]) -> None:
    require_joinable([tuple(part.shape) for part in parts])


def require_joinable(shapes: Iterable[tuple[int, ...]]) -> None:
    """Check that batches of these shapes can be joined on dimension 0, with dimension 1 filled up."""
    per_sample = {shape[1:] for shape in shapes}
    if len({(len(shape), shape[1:]) for shape in per_sample}) > 1:
        raise ValueError(
            f"cannot join outputs of shapes {sorted(per_sample)} per sample: only the "
            "first of these sizes may differ; set eval_do_concat_batches=False to keep a list of batches"
        )


def nested_concat(tensors: Tree, new_tensors: Tree, padding_index: float = PADDING) -> Tree:
    """Join two trees of one structure leaf by leaf on dimension 0, padding dimension 1 where lengths differ.

    To join many, use :class:`EvalLoopContainer`: it copies each row once.

    Raises:
        TypeError: If the structures differ or a leaf is neither a tensor nor an array.
    """
    _require_same_structure(tensors, new_tensors)
    children = children_of(tensors)
    if children is not None:
        others = children_of(new_tensors) or []
        return rebuilt(tensors, [nested_concat(a, b, padding_index) for a, b in zip(children, others, strict=True)])
    if isinstance(tensors, torch.Tensor):
        return torch_pad_and_concatenate(tensors, new_tensors, padding_index)
    return numpy_pad_and_concatenate(tensors, new_tensors, padding_index)


def _require_same_structure(expected: Tree, found: Tree) -> None:
    """Check one level: the container and its keys, or that both are tensors or both arrays."""
    for leaf_type in (torch.Tensor, np.ndarray):
        if isinstance(expected, leaf_type) and isinstance(found, leaf_type):
            return
    if children_of(expected) is None:
        raise TypeError(f"cannot join a {type(found).__name__} to a {type(expected).__name__}: only tensors and arrays")
    if type(expected) is not type(found):
        raise TypeError(f"cannot join a {type(found).__name__} to a {type(expected).__name__}: structures differ")
    if len(expected) != len(found) or (isinstance(expected, Mapping) and list(expected) != list(found)):
        raise TypeError(f"cannot join {_outline(found)} to {_outline(expected)}: the parts differ between batches")


def _outline(tree: Tree) -> str:
    return f"{type(tree).__name__}({', '.join(map(str, tree)) if isinstance(tree, Mapping) else len(tree)})"


def find_batch_size(tensors: Tree) -> int | None:
    """Rows of the first tensor or array of the tree that has a dimension; None if there is none."""
    for leaf in leaves_of(tensors):
        if isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim:
            return int(leaf.shape[0])
    return None


def denumpify_detensorize(metrics: Tree) -> Tree:
    """The same tree with NumPy scalars and one-element tensors as Python numbers."""
    return map_tree(_python_number, metrics)


def _python_number(leaf: Any) -> Any:
    is_number = isinstance(leaf, np.generic) or (isinstance(leaf, torch.Tensor) and leaf.numel() == 1)
    return leaf.item() if is_number else leaf


# --- collecting the batches of an evaluation -------------------------------------------------------------------------


class EvalLoopContainer:
    """Collects the outputs of an evaluation and joins them once, when they are asked for.

    Args:
        do_nested_concat: Join the batches on dimension 0, short ones padded on dimension 1; else keep a list.
        padding_index: What short rows are filled up with.
    """

    def __init__(self, do_nested_concat: bool = True, padding_index: int = PADDING) -> None:
        self.do_nested_concat = do_nested_concat
        self.padding_index = padding_index
        self._device_batches: list[Tree] = []
        self._host_batches: list[Tree] = []

    def add(self, tensors: Tree) -> None:
        """Keep one batch: a tree of tensors (or arrays) with the structure of the batches before it."""
        if self.do_nested_concat:
            kept = self._device_batches or self._host_batches
            if kept:
                require_same_tree(kept[0], tensors)
        self._device_batches.append(map_tree(unshared, tensors))

    def to_cpu_and_numpy(self) -> None:
        """Move what is on the device to host memory."""
        for position, batch in enumerate(self._device_batches):
            self._host_batches.append(nested_numpify(batch))
            self._device_batches[position] = None  # frees the device batch by batch
        self._device_batches.clear()

    def get_arrays(self) -> Tree | None:
        """Everything added so far as arrays (a list of batches without ``do_nested_concat``); None if nothing was."""
        self.to_cpu_and_numpy()
        return self.arrays

    @property
    def tensors(self) -> Tree | None:
        """What has not been moved to the host yet; None if there is nothing."""
        return self._joined(self._device_batches)

    @property
    def arrays(self) -> Tree | None:
        """What has been moved to the host; None if there is nothing."""
        return self._joined(self._host_batches)

    def _joined(self, batches: list[Tree]) -> Tree | None:
        if not batches or not self.do_nested_concat:
            return batches or None
        if len(batches) > 1:
            batches.append(_join_trees(batches, self.padding_index))
        return batches[0]


def require_same_tree(expected: Tree, found: Tree) -> None:
    """Check that two trees have the same structure; leaves are tensors or arrays, of any shape."""
    leaf = (torch.Tensor, np.ndarray)
    if isinstance(expected, leaf) and isinstance(found, leaf):
        return  # earlier batches may be arrays by now
    _require_same_structure(expected, found)
    for old, new in zip(children_of(expected) or [], children_of(found) or [], strict=True):
        require_same_tree(old, new)


def unshared(leaf: Any) -> Any:
    """A leaf that keeps no larger memory alive: ``logits[:, -1]`` would otherwise hold all of the logits."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    leaf = leaf.detach()
    if leaf.layout == torch.strided and leaf.untyped_storage().nbytes() > 2 * leaf.numel() * leaf.element_size():
        return leaf.clone()
    return leaf


def _join_trees(batches: list[Tree], padding_index: float) -> Tree:
    """Join trees leaf by leaf; ``batches`` is emptied, so that the parts of a leaf can go as soon as it is whole."""
    like = map_tree(lambda leaf: None, batches[0])
    columns = [list(parts) for parts in zip(*map(leaves_of, batches), strict=True)]
    batches.clear()
    joined = []
    for column in columns:
        parts = [atleast_1d(part) for part in column]
        column.clear()
        join = _joined_tensors if isinstance(parts[0], torch.Tensor) else joined_arrays
        joined.append(join(parts, padding_index))
    whole = iter(joined)
    return map_tree(lambda leaf: next(whole), like)


# --- small questions about objects -----------------------------------------------------------------------------------


def has_length(dataset: Any) -> TypeGuard[Sized]:
    """Whether ``len(dataset)`` works."""
    try:
        return len(dataset) is not None
    except (TypeError, AttributeError, NotImplementedError):
        return False


def number_of_arguments(func: Callable[..., Any]) -> int:
    """How many parameters ``func`` still takes; those a ``functools.partial`` has bound do not count."""
    # The signature of a partial lacks what was bound by position, but keeps as a default what was bound by name.
    bound = func.keywords if isinstance(func, functools.partial) else {}
    return sum(name not in bound for name in inspect.signature(func).parameters)
