"""Several GPUs in one process, which no launcher started: torch's `DataParallel`, with a loss that does not depend on it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from mainspring import model as models
from mainspring.engines.base import SingleProcess
from mainspring.loss import WatchedCount, weights_of


class DataParallel(SingleProcess):
    """One process that drives several GPUs: each forward pass copies the model to them and divides the batch."""

    kind = "data_parallel"

    def place(self, model: nn.Module) -> nn.Module:
        """Put `model` on the first GPU, inside what copies it to the others; for evaluations too."""
        if not self.is_placed(model):
            replicas = Replicas(
                model.to(self.device),
                list(range(self.options.devices)),
                precision=_PRECISIONS.get(self.accelerator.mixed_precision),
                weighs_parts=self.options.weighs_parts,
            )
            assert len(replicas.device_ids) == self.options.devices
            self._placed = (model, replicas)
        return super().place(model)

    def why_logits(self) -> str | None:
        """The copies would all use the first GPU's weights."""
        return f"this process drives {self.options.devices} GPUs with copies of the model: start one process for each"

    def why_not_watched(self) -> str | None:
        """Each forward pass goes through new copies of the model, in threads of their own."""
        return f"this process drives {self.options.devices} GPUs with copies of the model: start one process for each"

    def generating(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """`generate` runs on the first GPU alone, in the run's precision."""
        precision = _PRECISIONS.get(self.accelerator.mixed_precision)
        context: Any = contextlib.nullcontext() if precision is None else torch.autocast(self.device.type, precision)
        return context  # type: ignore[no-any-return]


_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Replicas(nn.DataParallel[nn.Module]):
    """torch's `DataParallel`, which returns the loss of the whole batch, computed in the run's precision.

    torch returns a loss per replica. Their mean is not the batch's where replicas have different numbers of labels or
    rows, and losses that are normalised by the number of items in the update are parts of a sum.

    Args:
        module: The model, on the first device.
        device_ids: The devices.
        precision: What the forward pass computes in under autocast; None: as the model is.
        weighs_parts: Whether replicas count for their labels or rows in a mean, rather than alike.
    """

    def __init__(
        self, module: nn.Module, device_ids: Sequence[int], *, precision: torch.dtype | None, weighs_parts: bool
    ) -> None:
        super().__init__(module, list(device_ids))
        self.precision = precision
        self.weighs_parts = weighs_parts
        self._shifts_labels = models.shifts_labels(module)
        self._keywords: list[dict[str, Any]] = []  # of each replica, in the forward pass under way

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Forward pass of every replica; the loss comes back as one, all else joined along dimension 0."""
        outputs = super().forward(*inputs, **kwargs)
        return outputs if self.precision is None else convert_to_fp32(outputs)

    def scatter(self, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None, device_ids: Sequence[Any]) -> Any:
        """Divide a batch. Numbers, such as the items of an update, have no rows, and go to all."""
        numbers = {
            name: value for name, value in (kwargs or {}).items() if isinstance(value, Tensor) and value.dim() == 0
        }
        rows = {name: value for name, value in (kwargs or {}).items() if name not in numbers}
        parts, keywords = super().scatter(inputs, rows, device_ids)
        self._keywords = [
            {**given, **{name: value.to(device, non_blocking=True) for name, value in numbers.items()}}
            for given, device in zip(keywords or ({},), device_ids, strict=False)
        ]
        return parts or ((),), tuple(self._keywords)

    def parallel_apply(self, replicas: Sequence[nn.Module], inputs: Sequence[Any], kwargs: Any) -> list[Any]:
        """Forward pass of each replica, in a thread of its own, which does not know the precision of this one."""
        device = self.src_device_obj.type
        forwards: Any = [functools.partial(_forward, replica, device, self.precision) for replica in replicas]
        return super().parallel_apply(forwards, inputs, kwargs)

    def gather(self, outputs: Any, output_device: Any) -> Any:
        """Join what the replicas return; their losses become that of the whole batch."""
        if not _is_number(_loss_in(outputs[0])):
            return super().gather(outputs, output_device)
        parts = zip(outputs, self._shares(), strict=True)  # as rows: torch would join numbers with a warning
        joined = super().gather([_with_loss(one, (_loss_in(one) * share)[None]) for one, share in parts], output_device)
        return _with_loss(joined, _loss_in(joined).sum())

    def _shares(self) -> list[Any]:
        """By which the loss of each replica counts: parts of a sum count whole, means by what they are means over."""
        keywords = self._keywords
        items = [given.get("num_items_in_batch") for given in keywords]
        if items[0] is not None and all(not isinstance(count, WatchedCount) or count.was_used for count in items):
            return [1.0] * len(keywords)
        weights = weights_of(keywords, self._shifts_labels) if self.weighs_parts else None
        if weights is None:
            return [1.0 / len(keywords)] * len(keywords)
        total = torch.stack([weight.to(weights[0].device) for weight in weights]).sum()
        return [weight / total.to(weight.device) for weight in weights]


def _forward(replica: nn.Module, device: str, precision: torch.dtype | None, *args: Any, **kwargs: Any) -> Any:
    if precision is None:
        return replica(*args, **kwargs)
    with torch.autocast(device, precision):
        return replica(*args, **kwargs)


def _loss_in(outputs: Any) -> Any:
    """What stands where a model's loss is: under its name, first of several, or alone."""
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    return outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs


def _is_number(loss: Any) -> bool:
    return isinstance(loss, Tensor) and loss.dim() == 0


def _with_loss(outputs: Any, loss: Tensor) -> Any:
    """The same outputs with another loss."""
    if isinstance(outputs, Mapping):
        changed: Any = outputs
        changed["loss"] = loss
        return changed
    return (loss, *outputs[1:]) if isinstance(outputs, (tuple, list)) else loss
