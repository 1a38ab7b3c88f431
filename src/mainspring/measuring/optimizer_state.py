"""What an optimizer keeps in memory: its state, by type and group, beside the weights and their gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class GroupReport:
    """What belongs to one group of parameters, in bytes of this process.

    Attributes:
        parameters: How many numbers are trained.
        weights: Their size.
        gradients: The size of their gradients that are there now.
        state: What the optimizer keeps for them.
    """

    parameters: int
    weights: int
    gradients: int
    state: int

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {readable_bytes(self.state)} of state"


@dataclass(frozen=True)
class OptimizerReport:
    """What an optimizer keeps in memory, in bytes of this process.

    Attributes:
        optimizer: Name of its class.
        groups: Its groups of parameters.
        state_by_dtype: Its state by the type of the numbers, such as `float32`, the largest first.
    """

    optimizer: str
    groups: tuple[GroupReport, ...]
    state_by_dtype: dict[str, int]

    @property
    def state(self) -> int:
        """All that it keeps."""
        return sum(self.state_by_dtype.values())

    @property
    def weights(self) -> int:
        """The parameters that it trains."""
        return sum(group.weights for group in self.groups)

    @property
    def gradients(self) -> int:
        """Their gradients that are there now."""
        return sum(group.gradients for group in self.groups)

    def summary(self) -> str:
        """The report in one line."""
        types = ", ".join(f"{name} {readable_bytes(size)}" for name, size in self.state_by_dtype.items())
        state = f"{readable_bytes(self.state)} of state" + (f" ({types})" if types else "")
        return (
            f"{self.optimizer} keeps {state} for {readable_bytes(self.weights)} of weights and "
            f"{readable_bytes(self.gradients)} of gradients"
        )

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(f"  group {index}: {one}" for index, one in enumerate(self.groups))])


def optimizer_report(optimizer: Optimizer) -> OptimizerReport:
    """What `optimizer` keeps in memory now: most of them keep nothing before their first step.

    Of tensors that are divided between processes, this process's pieces count; of quantised ones, what they are made of.
    What is held for all parameters together counts to the first group.

    Args:
        optimizer: Any optimizer of torch's kind, wrapped or not.
    """
    saved = optimizer.state_dict()
    states: Mapping[Any, Any] = saved["state"]
    numbers = [set(group["params"]) for group in saved["param_groups"]]
    shared = [state for number, state in states.items() if not any(number in own for own in numbers)]
    types: Counter[str] = Counter()
    groups = []
    for index, (group, own) in enumerate(zip(optimizer.param_groups, numbers, strict=True)):
        kept = [states[number] for number in own if number in states]
        sizes = _sizes_by_type([kept, shared if index == 0 else []])
        types.update(sizes)
        groups.append(_report_of_group(group["params"], sum(sizes.values())))
    name = type(getattr(optimizer, "optimizer", optimizer)).__name__
    return OptimizerReport(name, tuple(groups), dict(types.most_common()))


def _report_of_group(parameters: Iterable[Tensor], state: int) -> GroupReport:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return GroupReport(
        parameters=sum(parameter.numel() for parameter in trained),
        weights=_size(trained),
        gradients=_size([parameter.grad for parameter in trained]),
        state=state,
    )


def tell_after_first_step(optimizer: Optimizer, tell: Callable[[str], object]) -> None:
    """Have `tell` called with the report's line when `optimizer` has made its first step, and never again."""

    def first(stepped: Optimizer, args: Any, kwargs: Any) -> None:
        handle.remove()
        tell(optimizer_report(stepped).summary())

    handle = optimizer.register_step_post_hook(first)


def _size(things: Any) -> int:
    return sum(_sizes_by_type(things).values())


def _sizes_by_type(things: Any) -> Counter[str]:
    """Bytes of all tensors in a structure, by type; a tensor that is in it twice counts once."""
    parts = {id(part): part for part in _plain_tensors(things)}
    sizes: Counter[str] = Counter()
    for part in parts.values():
        sizes[str(part.dtype).removeprefix("torch.")] += part.numel() * part.element_size()
    return sizes


def _plain_tensors(thing: Any) -> Iterator[Tensor]:
    """The tensors that memory is taken up by."""
    if isinstance(thing, Tensor):
        if hasattr(thing, "to_local"):
            yield from _plain_tensors(thing.to_local())
        elif hasattr(thing, "__tensor_flatten__"):
            yield from _plain_tensors([getattr(thing, name) for name in thing.__tensor_flatten__()[0]])
        else:
            yield thing
    elif isinstance(thing, Mapping):
        yield from _plain_tensors(list(thing.values()))
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _plain_tensors(part)


def readable_bytes(size: float) -> str:
    """A size in the unit that suits it, of 1024 each: `1.5 KiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
