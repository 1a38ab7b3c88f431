"""The loss: taken from a model's output, smoothed, and normalised by what it is a mean of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100
"""Label value that no loss counts, by the convention of `torch.nn.functional.cross_entropy`."""


def loss_of(outputs: Any) -> Tensor:
    """The loss in what a model returned.

    Args:
        outputs: A mapping with the key `"loss"` (a `ModelOutput` is one), a tuple or list that starts with the loss,
            or the loss itself as a 0-d tensor.

    Returns:
        The loss, as the model gave it (0-d, or one value per replica).

    Raises:
        ValueError: The output has no loss; the message lists what it has.
        TypeError: The output is none of these forms.
    """
    if isinstance(outputs, Mapping):
        loss = outputs.get("loss")
        if loss is None:
            raise ValueError(
                f"the model returned no loss, only {_listed(outputs)}: pass labels among the inputs (they have "
                f"{_LABELS_HINT}), or override compute_loss"
            )
    elif isinstance(outputs, (tuple, list)):
        loss = outputs[0] if outputs else None
    else:
        loss = outputs if isinstance(outputs, Tensor) and outputs.dim() == 0 else None
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"no loss in the model's output of type {type(outputs).__name__}: return a mapping with the key 'loss' or "
            "a tuple that starts with the loss, or override compute_loss"
        )
    return loss


_LABELS_HINT = "the name that the model's forward expects, usually 'labels'"


def _listed(outputs: Mapping[str, Any]) -> str:
    return ", ".join(str(key) for key in outputs) or "an empty mapping"


def logits_of(outputs: Any) -> Tensor:
    """The logits in what a model returned without a loss: the key `"logits"`, or the first element of a tuple.

    Raises:
        ValueError: A mapping without `"logits"`; the message lists its keys.
    """
    if not isinstance(outputs, Mapping):
        first: Tensor = outputs[0]
        return first
    if "logits" not in outputs:
        raise ValueError(f"the model returned no logits, only {_listed(outputs)}: label smoothing needs them")
    logits: Tensor = outputs["logits"]
    return logits


@dataclass
class LabelSmoother:
    """Cross-entropy against labels mixed with the uniform distribution over the classes.

    `(1 - epsilon) * nll + epsilon * uniform`, where `nll` is the mean of -log p(label) and `uniform` the mean over
    tokens and classes of -log p (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7).

    Args:
        epsilon: Weight of the uniform distribution, in [0, 1].
        ignore_index: Labels of this value count in neither mean.
    """

    epsilon: float = 0.1
    ignore_index: int = IGNORE_INDEX

    def __call__(
        self,
        model_output: Any,
        labels: Tensor,
        shift_labels: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The smoothed loss of one batch.

        Args:
            model_output: Holds the logits, shape (..., classes): a mapping with `"logits"`, or a tuple starting with them.
            labels: Class indices, shape (...) or (..., 1).
            shift_labels: Whether position i predicts the label of position i + 1 (causal language models).
            num_items_in_batch: What the sums are divided by; by default the number of labels that count in this batch.

        Returns:
            The loss, 0-d.
        """
        logits = logits_of(model_output)
        if shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        log_p = functional.log_softmax(logits, dim=-1)
        if labels.dim() < log_p.dim():
            labels = labels.unsqueeze(-1)
        ignored = labels.eq(self.ignore_index)
        of_label = log_p.gather(-1, labels.masked_fill(ignored, 0)).masked_fill(ignored, 0)
        # Half precision cannot hold a sum over a vocabulary.
        of_all = log_p.sum(-1, keepdim=True, dtype=torch.float32).masked_fill(ignored, 0)
        count = _count_on(log_p.device, num_items_in_batch, ignored)
        nll = -of_label.sum() / count
        uniform = -of_all.sum() / (count * log_p.shape[-1])
        return (1 - self.epsilon) * nll + self.epsilon * uniform


def _count_on(device: torch.device, num_items: Tensor | int | None, ignored: Tensor) -> Tensor | int:
    if num_items is None:
        return ignored.numel() - ignored.sum()
    return num_items.to(device, non_blocking=True) if isinstance(num_items, Tensor) else num_items


def count_items(batches: Sequence[Any], shifts_labels: bool) -> Tensor | None:
    """How many labels the loss of these batches is a mean of.

    `shift_labels` are counted as they are when a batch has them. The first label of a row is nobody's target when the
    loss itself shifts, so it is left out then.

    Args:
        batches: The micro-batches of one update.
        shifts_labels: Whether the model's loss compares position i with the label of position i + 1.

    Returns:
        The count of labels other than -100 as a 0-d int64 tensor on the labels' device, with no synchronisation; None
        where there is nothing to count (no batches, a batch without labels, or with labels that are not a tensor).
    """
    counts = []
    for batch in batches:
        targets = _targets(batch, shifts_labels)
        if targets is None:
            return None
        counts.append(targets.ne(IGNORE_INDEX).sum())
    if not counts:
        return None
    total = counts[0]
    for count in counts[1:]:
        total = total + count
    return total


def weights_of(batches: Sequence[Any], shifts_labels: bool) -> list[Tensor] | None:
    """How much of their update's mean each of its micro-batches is: its labels that count, or its rows without labels.

    Returns:
        One 0-d tensor each; None where a micro-batch has no tensor to count.
    """
    counts = [count_items([batch], shifts_labels) for batch in batches]
    if any(count is None for count in counts):
        counts = [_rows(batch) for batch in batches]
    found = [count for count in counts if count is not None]
    return found if len(found) == len(batches) else None


def _rows(batch: Any) -> Tensor | None:
    values = batch.values() if isinstance(batch, Mapping) else ()
    first = next((value for value in values if isinstance(value, Tensor) and value.dim() > 0), None)
    return None if first is None else torch.tensor(first.shape[0], device=first.device)


def _targets(batch: Any, shifts_labels: bool) -> Tensor | None:
    if not isinstance(batch, Mapping):
        return None
    if isinstance(shifted := batch.get("shift_labels"), Tensor):
        return shifted
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return None
    return labels[..., 1:] if shifts_labels and labels.dim() > 0 else labels


class WatchedCount(Tensor):
    """A number of items that notices whether a loss is really normalised by it.

    Many models take `num_items_in_batch` among their `**kwargs` and compute a mean over the micro-batch all the same, as
    do many custom losses. Such a mean must be divided by the number of micro-batches, a normalised sum must not: which
    of them it is shows in whether the number took part in any computation. Looking at it, comparing it or moving it is none.
    """

    _uses: list[str]

    @classmethod
    def of(cls, items: Tensor) -> WatchedCount:
        """Watch `items`, a 0-d tensor."""
        return cls._with(items, [])

    @classmethod
    def _with(cls, items: Tensor, uses: list[str]) -> WatchedCount:
        watched: WatchedCount = items.detach().as_subclass(cls)
        watched._uses = uses
        return watched

    @property
    def was_used(self) -> bool:
        """Whether anything was computed from it."""
        return bool(self._uses)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note every operation but looks and moves; its result is a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        source = next((arg for arg in args if isinstance(arg, cls)), None)
        uses = None if source is None else source.__dict__.get("_uses")
        if name in _MOVES and uses is not None and isinstance(result, Tensor):
            return cls._with(result.as_subclass(Tensor), uses)
        if name not in _LOOKS and name not in _MOVES:
            for arg in (*args, *(kwargs or {}).values()):
                if isinstance(arg, cls):
                    arg.__dict__.setdefault("_uses", []).append(name)
        return result


_MOVES = frozenset({"to", "detach", "clone", "cpu", "cuda", "contiguous"})
_LOOKS = frozenset(
    {
        *("__get__", "__set__", "dim", "size", "numel", "is_floating_point", "as_subclass", "__repr__", "__format__"),
        *("__bool__", "gt", "ge", "lt", "le", "eq", "ne", "isnan", "isinf", "isfinite", "is_nonzero", "__hash__"),
    }
)
