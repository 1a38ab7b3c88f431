"""What stands for an optimizer or a schedule that DeepSpeed makes, steps and moves by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer


class FromConfiguration(Optimizer):
    """Groups of parameters for an optimizer that the configuration describes: DeepSpeed makes it when all is set up.

    Args:
        params: Parameters, or groups of them.
    """

    def __init__(self, params: Iterable[Any]) -> None:
        super().__init__(params, {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """It is not an optimizer yet.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the DeepSpeed configuration describes this optimizer: it is there from train() on")


class MovedByEngine:
    """A schedule that DeepSpeed moves with its own steps, and that can be read as any other.

    Args:
        schedule: DeepSpeed's.
    """

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def step(self, *_: Any) -> None:
        """The engine's step has moved it."""

    def get_last_lr(self) -> list[float]:
        """The rate of each group."""
        known = getattr(self.schedule, "_last_lr", None)
        rates = known if known is not None else self.schedule.get_lr()
        return [float(rate) for rate in rates]

    def state_dict(self) -> dict[str, Any]:
        """DeepSpeed's own state."""
        return self.schedule.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put DeepSpeed's own state back."""
        self.schedule.load_state_dict(state_dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)
