"""The names of parameters as the model has them, whatever wraps it, and optimizers' states by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from mainspring.checkpoint.optimizer_files import is_numbered
from mainspring.errors import CheckpointError

if TYPE_CHECKING:
    from torch.optim import Optimizer

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def clean_name(model: nn.Module, name: str) -> str:
    """Return a parameter's name without what DDP, `torch.compile`, FSDP and recomputed layers put into it."""
    kept: list[str] = []
    here: Any = model
    for step in name.split("."):
        joins = isinstance(here, (DistributedDataParallel, DataParallel)) and step == "module"
        if not joins and step not in _WRAPPERS:
            kept.append(step)
        here = getattr(here, step, None)
    return ".".join(kept)


def own_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of the parameters that an optimizer steps, in its order.

    Raises:
        CheckpointError: It steps some that are not the model's.
    """
    names = {id(parameter): clean_name(model, name) for name, parameter in model.named_parameters()}
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = sum(id(parameter) not in names for parameter in own)
    if strangers:
        raise CheckpointError(
            f"{strangers} of the optimizer's {len(own)} parameters are not the model's: build it once the model is prepared"
        )
    return [names[id(parameter)] for parameter in own]


def by_names(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state by names, where it came by numbers.

    Args:
        model: Whose parameters the optimizer steps.
        optimizer: One that steps the same parameters in the same groups as that whose state it is.
        state: A `state_dict`, numbered or named.

    Raises:
        CheckpointError: It has another number of parameters.
    """
    if not is_numbered(state):
        return state
    numbers = [key for group in state["param_groups"] for key in group["params"]]
    names = own_names(model, optimizer)
    if len(names) != len(numbers):
        raise CheckpointError(
            f"the optimizer's state was saved for {len(numbers)} parameters, and {len(names)} are trained here"
        )
    name_of = dict(zip(numbers, names, strict=True))
    groups = [{**group, "params": [name_of[n] for n in group["params"]]} for group in state["param_groups"]]
    return {"state": {name_of[number]: value for number, value in state["state"].items()}, "param_groups": groups}
