"""What a run keeps in memory: counted tensor by tensor while an update is tried, not read from the system.

Memory that is shared counts once. What a single operation takes for itself meanwhile, and what the allocator keeps in
reserve, is not seen.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mainspring.measuring.optimizer_state import optimizer_report, readable_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process on its device.

    Attributes:
        parameters: The model's weights, trained or not, and its buffers.
        gradients: Of all trained weights; with an optimizer in the backward pass, the largest one, as it is alone.
        optimizer_states: After a step.
        activations: What the forward pass of a micro-batch leaves for the backward pass, at most; weights not counted.
        averages: An average of the weights, if there is one.
        total: The largest sum that lives together. It may be less than all of these, of which gradients come when activations
            go, or more, for what operations leave for one another.
    """

    parameters: int
    gradients: int
    optimizer_states: int
    activations: int
    averages: int
    total: int

    def __str__(self) -> str:
        shown = {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}
        del shown["total"]
        lines = [f"{name:<17}{readable_bytes(size):>12}" for name, size in shown.items() if size or name != "averages"]
        return "\n".join([*lines, f"{'total at its peak':<17}{readable_bytes(self.total):>12}"])


# ---- storages ----


def storages_of(things: Any) -> Iterator[Any]:
    """The storages of all tensors in mappings, lists and tuples; of tensors made of others, of those."""
    if isinstance(things, Tensor):
        yield from _storages_of_tensor(things)
    elif isinstance(things, Mapping):
        yield from storages_of(list(things.values()))
    elif isinstance(things, (list, tuple)):
        for thing in things:
            yield from storages_of(thing)


def _storages_of_tensor(tensor: Any) -> Iterator[Any]:
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _storages_of_tensor(getattr(tensor, name))
    elif tensor.layout == torch.strided and tensor.device.type != "meta":
        yield tensor.untyped_storage()


def bytes_of_storages(things: Any) -> int:
    """Bytes of all tensors in a structure; memory that several share counts once."""
    return sum({storage._cdata: storage.nbytes() for storage in storages_of(things)}.values())


class LiveStorages(TorchDispatchMode):
    """Counts the memory of the tensors that operations make inside the context, for as long as it lives.

    Args:
        device: Only memory of this kind of device counts.
        known: Tensors that were there before, and do not count.

    Attributes:
        now: Bytes alive.
        peak: The most that was alive at once.
    """

    def __init__(self, device: torch.device, known: Any = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device.type
        self._held = list(storages_of(known))  # so that none of their addresses is given to another
        self._alive: dict[int, Any] = {storage._cdata: None for storage in self._held}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.note(made)
        return made

    def note(self, things: Any) -> None:
        """Count tensors from now on, unless they are known."""
        for storage in storages_of(things):
            if storage.device.type == self._device and storage._cdata not in self._alive:
                self._count(storage)

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        if self._alive.pop(key, None) is not None:
            self.now -= size


class SavedTensors(saved_tensors_hooks):
    """Counts what forward passes inside the context leave for backward passes; what several save counts once.

    Args:
        known: Tensors that do not count, as parameters, which are there anyway.

    Attributes:
        now: Bytes saved.
        peak: The most that was saved at once.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {storage._cdata for storage in storages_of(list(known))}
        self._uses: dict[int, int] = {}
        self.now = self.peak = 0
        super().__init__(lambda tensor: _Saved(self, tensor.detach()), lambda saved: saved.tensor)

    def __enter__(self) -> SavedTensors:  # type: ignore[override]
        super().__enter__()
        return self

    def add(self, key: int, size: int) -> None:
        """Something was saved."""
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def remove(self, key: int, size: int) -> None:
        """It is needed no more."""
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key]
            self.now -= size

    def counts(self, key: int) -> bool:
        """Whether a storage is none of the known ones."""
        return key not in self._known


class _Saved:
    """One saved tensor; when the graph lets go of it, so does the count."""

    def __init__(self, count: SavedTensors, tensor: Tensor) -> None:
        self.tensor = tensor
        for storage in storages_of(tensor):
            if count.counts(storage._cdata):
                count.add(storage._cdata, storage.nbytes())
                weakref.finalize(self, count.remove, storage._cdata, storage.nbytes()).atexit = False


class GradientSizes:
    """What gradients take: all that are there before a step, or the largest that ever came.

    Listens to events, as a callback; inside `watch` it also sees those that an optimizer frees in the backward pass.

    Attributes:
        together: Bytes of all before the last step.
        largest: Bytes of the largest one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.together = self.largest = 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """See every gradient as it comes, before an optimizer that is made inside the context does."""
        handles = [parameter.register_post_accumulate_grad_hook(self._came) for parameter in self._parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _came(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.largest = max(self.largest, parameter.grad.untyped_storage().nbytes())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradients are complete."""
        self.together = bytes_of_storages([p.grad for p in self._parameters if p.grad is not None])

    @property
    def bytes(self) -> int:
        """What to reckon with."""
        return self.together or self.largest


@contextlib.contextmanager
def _compiled_step_unseen(optimizer: Any) -> Iterator[None]:
    """Compiled code cannot be looked into, and refuses to run where somebody does: torchao's steps are compiled."""
    if type(optimizer).__module__.partition(".")[0] != "torchao":
        yield
        return
    step, own = optimizer.step, vars(optimizer).get("step")

    def unseen(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return step(*args, **kwargs)

    optimizer.step = unseen
    try:
        yield
    finally:
        del optimizer.step
        if own is not None:
            optimizer.step = own


class MemoryCount:
    """Counts what updates take.

    Args:
        model: The model, in place.
        optimizer: The optimizer that steps it.
        device: Where they are.
    """

    def __init__(self, model: nn.Module, optimizer: Any, device: torch.device) -> None:
        self._optimizer = optimizer
        weights = [*model.parameters(), *model.buffers()]
        before = [weights, list(optimizer.state.values())]
        self._weights, self._before = bytes_of_storages(weights), bytes_of_storages(before)
        self._live = LiveStorages(device, before)
        self._saved = SavedTensors(weights)

    @contextlib.contextmanager
    def counted(self, micro_batches: list[Any]) -> Iterator[None]:
        """One update, from these micro-batches, is made in the body."""
        self._live.note(micro_batches)
        with _compiled_step_unseen(self._optimizer), self._live, self._saved:
            yield
        self._live.note(list(self._optimizer.state.values()))  # those that were made unseen

    def estimate(self, gradients: int, averages: int) -> MemoryEstimate:
        """What was found, with the bytes of gradients and of averages of the weights."""
        return MemoryEstimate(
            parameters=self._weights,
            gradients=gradients,
            optimizer_states=optimizer_report(self._optimizer).state,
            activations=self._saved.peak,
            averages=averages,
            total=self._before + self._live.peak + averages,
        )
