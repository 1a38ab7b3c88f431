"""Runs that an optimizer cannot be used in: said before any work, with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mainspring.arguments.own import OptimizerOptions, optimizer_options
from mainspring.errors import OptionError, Problem
from mainspring.optimizers.in_backward import UpdatesInBackward
from mainspring.optimizers.table import LAYERWISE

_FUSED = ("lomo", "adalomo")
_TOGETHER = {
    "grokadamw": "it treats a parameter by its place among the others",
    "schedule_free_adamw": "it counts updates for all parameters together",
    "schedule_free_sgd": "it counts updates for all parameters together",
    "schedule_free_radam": "it counts updates for all parameters together",
}
"""Optimizers that do not look at one parameter at a time, and why."""


@dataclass(frozen=True)
class RunOfOptimizer:
    """What decides whether an optimizer can be used.

    Attributes:
        args: The options.
        why_not_in_backward: Why the engine has no complete gradients inside the backward pass; None: it has.
        scales_loss: Whether the loss is scaled, for fp16.
        given: Whether the user passed an optimizer.
        chosen: Whether the user passed its class.
        factory: Whether that is a factory instead, which makes the groups itself.
    """

    args: Any
    why_not_in_backward: str | None
    scales_loss: bool
    given: bool
    chosen: bool
    factory: bool

    @property
    def named(self) -> str | None:
        """The name in the options, where it decides."""
        return None if self.given or self.chosen else str(getattr(self.args.optim, "value", self.args.optim))

    @property
    def wanted_in_backward(self) -> tuple[str, Any] | None:
        """The option, and its value, by which the optimizer acts inside the backward pass; None: it does not."""
        if optimizer_options(self.args).in_backward:
            return "optimizer_in_backward", True
        acts = self.named is not None and (self.named.endswith(LAYERWISE) or self.named in _FUSED)
        return ("optim", self.named) if acts else None


def check_run(run: RunOfOptimizer) -> None:
    """Refuse, or warn of, what the optimizer cannot do in this run.

    Raises:
        OptionError: With every reason.
    """
    wanted = run.wanted_in_backward
    if wanted is not None:
        fix = "leave it out" if wanted[0] != "optim" else "choose another optimizer"
        reasons = [why for reason in _REASONS if (why := reason(run)) is not None]
        if reasons:
            raise OptionError([Problem(*wanted, why, fix) for why in reasons])
        if run.named not in _FUSED and run.args.max_grad_norm and run.args.max_grad_norm > 0:
            _warn(
                f"max_grad_norm={run.args.max_grad_norm} does not clip: with {wanted[0]}={wanted[1]!r} parameters are "
                "updated before the norm of all gradients is known; it is logged, as grad_norm"
            )
    _check_groups(run)
    if run.named is not None and run.named.startswith("schedule_free") and run.args.lr_scheduler_type != "constant":
        _warn(
            f"lr_scheduler_type={str(run.args.lr_scheduler_type)!r} comes on top of optim={run.named!r}, which is made to "
            "need no schedule: set lr_scheduler_type='constant'"
        )


def check_made(optimizer: Any, wanted: OptimizerOptions) -> None:
    """Refuse an optimizer that an override made without what the options ask of it.

    Raises:
        OptionError: Naming the option.
    """
    found = getattr(optimizer, "optimizer", optimizer)
    if wanted.in_backward and not isinstance(found, UpdatesInBackward):
        why = f"an override made a {type(found).__name__}, which steps after the backward pass"
        raise OptionError([Problem("optimizer_in_backward", True, why, "make an OptimizerInBackward, or leave it out")])


def _check_groups(run: RunOfOptimizer) -> None:
    groups = optimizer_options(run.args).groups
    if not groups:
        return
    makes_own = run.named is not None and (run.named.startswith(("galore", "apollo")) or run.named in _FUSED)
    if makes_own:
        why = f"optim={run.named!r} makes the groups of parameters itself"
    elif run.given or run.factory:
        why = f"{'optimizers' if run.given else 'the factory of optimizer_cls_and_kwargs'} brings groups of its own"
    else:
        return
    raise OptionError([Problem("lr_groups", dict(groups), why, "leave it out, or choose another optimizer")])


def _accumulates(run: RunOfOptimizer) -> str | None:
    steps = run.args.gradient_accumulation_steps
    if steps == 1:
        return None
    return f"every backward pass updates the parameters, and gradient_accumulation_steps={steps} needs {steps} for one update"


def _spread_out(run: RunOfOptimizer) -> str | None:
    return run.why_not_in_backward


def _scaled(run: RunOfOptimizer) -> str | None:
    return (
        "fp16 scales the loss, and takes that back from the gradients after the backward pass"
        if run.scales_loss
        else None
    )


def _given(run: RunOfOptimizer) -> str | None:
    return "optimizers brings one of its own, which steps all parameters together" if run.given else None


def _made(run: RunOfOptimizer) -> str | None:
    return (
        "the factory of optimizer_cls_and_kwargs makes one that steps all parameters together" if run.factory else None
    )


def _together(run: RunOfOptimizer) -> str | None:
    why = _TOGETHER.get(run.named or "")
    return None if why is None else f"optim={run.named!r} cannot be divided: {why}"


_REASONS: tuple[Callable[[RunOfOptimizer], str | None], ...] = (
    _accumulates,
    _spread_out,
    _scaled,
    _given,
    _made,
    _together,
)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=5)
