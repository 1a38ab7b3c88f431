"""What stands for an optimizer or a schedule that DeepSpeed makes, steps and moves by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer


class FromConfiguration(Optimizer):
    """Groups of parameters for an optimizer that the configuration describes: DeepSpeed makes it when all is set up.

    Args:
        params: Parameters, or groups of them.
        rate: The learning rate that the configuration says, for a schedule that is made before.
    """

    def __init__(self, params: Iterable[Any], rate: float | None) -> None:
        super().__init__(params, {} if rate is None else {"lr": rate})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """It is not an optimizer yet.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the DeepSpeed configuration describes this optimizer: it is there from train() on")


class SteppedByEngine(Optimizer):
    """The optimizer inside a DeepSpeed engine, as any other: what its groups say counts, and a step is the engine's.

    Args:
        engine: The `DeepSpeedEngine`.
        members: The model's parameters in each group, of which the pieces are.
    """

    def __init__(self, engine: Any, members: Sequence[Sequence[Parameter]] = ()) -> None:
        # A view of another optimizer: no parameters of its own, which torch's constructor would ask for.
        self.engine = engine
        self.members = members
        self.defaults = self.inner.defaults

    @property
    def inner(self) -> Optimizer:
        """The torch optimizer that DeepSpeed steps, whatever it has wrapped it in."""
        found = self.engine.optimizer
        while not isinstance(found, Optimizer):
            found = found.optimizer
        return found

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups, of the pieces that lie on this process."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The states, of the pieces that lie on this process."""
        return self.inner.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the engine's."""
        self.engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.engine.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states on this process, as DeepSpeed keeps them."""
        return self.engine.optimizer.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """States cannot be put back one by one.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "the states of this optimizer lie in pieces beside the weights they belong to: "
            "trainer.deepspeed.load_checkpoint(folder) reads all of them"
        )

    def __repr__(self) -> str:
        return f"SteppedByEngine({self.inner!r})"


class MovedByEngine:
    """A schedule that DeepSpeed moves with its own steps, and that can be read as any other.

    Within an update the rate is the one that the update used, until `step` would have moved another schedule.

    Args:
        schedule: DeepSpeed's.
    """

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule
        self._used: list[float] | None = None

    def hold(self) -> None:
        """The engine is about to step."""
        self._used = self._rates()

    def step(self, *_: Any) -> None:
        """The engine's step has moved it."""
        self._used = None

    def get_last_lr(self) -> list[float]:
        """The rate of each group."""
        return self._rates() if self._used is None else self._used

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.schedule.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """DeepSpeed's own state."""
        return self.schedule.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put DeepSpeed's own state back."""
        self.schedule.load_state_dict(state_dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)
