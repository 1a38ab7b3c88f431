"""Optimizers by name, and the parameters that weight decay applies to.

To add one: a builder that turns an `OptimizerRequest` into a class and its keyword arguments, and a row in `OPTIMIZERS`.

| module | question it answers |
|---|---|
| `table` | which are there, and which package does each need? |
| `request` | what is a builder told, and how does it read `optim_args`? |
| `building` | how does a name become an optimizer of the model? |
| `parameters` | which parameters are decayed? |
| `targets` | which linear layers does a low-rank optimizer act on? |
| `in_backward` | how is any optimizer called inside the backward pass? |
| `limits` | which runs can an optimizer not be used in? |
| `plain_states` | how do states that are objects get into a checkpoint? |
| the others | one family each |
"""

from __future__ import annotations

from mainspring.optimizers.building import build_optimizer, is_optimizer_factory, optimizer_class_and_kwargs
from mainspring.optimizers.in_backward import OptimizerInBackward, UpdatesInBackward, into_backward
from mainspring.optimizers.parameters import (
    NO_DECAY_PATTERNS,
    decay_parameter_names,
    decay_parameter_names_of_4_37,
    get_parameter_names,
    parameter_groups,
)
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, parse_optim_args, read_options
from mainspring.optimizers.table import OPTIMIZERS

__all__ = [
    "NO_DECAY_PATTERNS",
    "OPTIMIZERS",
    "OptimizerInBackward",
    "OptimizerRequest",
    "OptimizerSpec",
    "UpdatesInBackward",
    "build_optimizer",
    "decay_parameter_names",
    "decay_parameter_names_of_4_37",
    "get_parameter_names",
    "into_backward",
    "is_optimizer_factory",
    "optimizer_class_and_kwargs",
    "parameter_groups",
    "parse_optim_args",
    "read_options",
]
