"""How processes join for DeepSpeed, and how its engines are started."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import torch
from torch import distributed as dist, nn
from torch.optim import Adagrad, Optimizer

from mainspring.arguments.deepspeed import joining
from mainspring.arguments.deepspeed.rules import tensor_parallel_size
from mainspring.arguments.deepspeed.settings import ANY_OPTIMIZER
from mainspring.engines.deepspeed.disks import check_disks, read_once
from mainspring.engines.deepspeed.files import watch_files
from mainspring.engines.deepspeed.layers import check_layers, why_not_divided
from mainspring.engines.deepspeed.limits import why_not_started
from mainspring.engines.deepspeed.on_host import follow_rates, for_host
from mainspring.engines.deepspeed.parts import FromConfiguration
from mainspring.engines.deepspeed.tensor_parallel import groups_of
from mainspring.errors import NotAvailableError, Problem
from mainspring.model import note_full_sizes


def import_deepspeed() -> ModuleType:
    """The package.

    Raises:
        NotAvailableError: It is not installed.
    """
    try:
        import deepspeed
    except ImportError as error:
        why = f"the package deepspeed cannot be imported ({error})"
        raise NotAvailableError([Problem("deepspeed", True, why, "pip install deepspeed")]) from error
    return deepspeed  # type: ignore[no-any-return]


def join(device: torch.device) -> None:
    """Join the processes; one that no launcher started makes a world of its own."""
    import_deepspeed()
    joining.join(device.type)


def start(model: nn.Module, optimizer: Optimizer, config: dict[str, Any]) -> Any:
    """A `DeepSpeedEngine` that trains.

    Args:
        model: The model.
        optimizer: The run's optimizer, or what stands for the configuration's.
        config: The configuration, in which nothing is left to the options.

    Raises:
        NotAvailableError: The optimizer is not one that the installed DeepSpeed can make or divide here.
        OptionError: What is to rest on a disk cannot.
    """
    note_full_sizes(model)
    described = isinstance(optimizer, FromConfiguration)
    if not described:
        config.setdefault(ANY_OPTIMIZER, True)
    _forget_second_division()
    check_disks(model, config, processes_here(), dist.get_world_size())
    with why_not_started(config, optimizer), why_not_divided(model, tensor_parallel_size(config)):
        optimizer = for_host(optimizer, config)
        groups = [dict(group) for group in optimizer.param_groups]
        engine, *_ = import_deepspeed().initialize(
            model=model,
            optimizer=None if described else optimizer,
            model_parameters=optimizer.param_groups if described else None,
            mpu=groups_of(tensor_parallel_size(config)),
            config=config,
        )
    check_layers(model, tensor_parallel_size(config))
    _keep_groups(engine, groups)
    follow_rates(engine)
    read_once(model)
    watch_files(engine)
    return engine


def start_inference(model: nn.Module, config: dict[str, Any]) -> Any:
    """A `DeepSpeedEngine` for forward passes only, which keeps no gradients and no states."""
    note_full_sizes(model)
    without = {name: value for name, value in config.items() if name not in ("optimizer", "scheduler")}
    engine, *_ = import_deepspeed().initialize(model=model, mpu=groups_of(tensor_parallel_size(config)), config=without)
    check_layers(model, tensor_parallel_size(config))
    return engine


def begin_schedule(engine: Any, config: dict[str, Any]) -> None:
    """The configuration's schedule begins anew, with the engine as it is."""
    engine._config.scheduler_params = config["scheduler"].get("params") or {}
    engine.lr_scheduler = engine._scheduler_from_config(engine.optimizer)


def _forget_second_division() -> None:
    """Of a run before with `zero_hpz_partition_size`: DeepSpeed keeps its groups for the process, and uses them unasked."""
    groups: Any = importlib.import_module("deepspeed.utils.groups")
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None


def processes_here() -> int:
    """How many processes of the run are on this machine, by what its launcher says."""
    return min(dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())))


def _keep_groups(engine: Any, groups: list[dict[str, Any]]) -> None:
    """Adagrad, which ZeRO makes anew with one group of all parameters, has the settings of each group again."""
    divided = engine.optimizer
    inner = getattr(divided, "optimizer", None)
    if not isinstance(inner, Adagrad):
        return
    # Stage 3 puts the pieces of a group in for each step, and takes them out again.
    puts_in = hasattr(divided, "sub_group_to_group_id")
    pieces = [[] for _ in groups] if puts_in else [[piece] for piece in inner.param_groups[0]["params"]]
    inner.param_groups[:] = [
        {**inner.defaults, **group, "params": own} for group, own in zip(groups, pieces, strict=True)
    ]
    if not puts_in:
        divided._link_all_hp_params()  # which went by the groups
