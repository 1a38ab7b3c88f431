"""What steps an optimizer's states that lie on the host: DeepSpeed's own kinds, which are compiled for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Adagrad, Adam, AdamW, Optimizer

from mainspring.arguments.deepspeed.reading import setting
from mainspring.arguments.parallel_sizes import ParallelSizes
from mainspring.engines.deepspeed.parts import FromConfiguration
from mainspring.errors import NotAvailableError, OptionError, Problem
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

_FORCE = "zero_force_ds_cpu_optimizer"
_ZERO = "zero_optimization"


def lies_elsewhere(config: Mapping[str, Any]) -> bool:
    """Whether the optimizer's states lie on the host, or rest on a disk."""
    return setting(config, f"{_ZERO}.offload_optimizer.device") in ("cpu", "nvme")


def for_host(optimizer: Optimizer, config: Mapping[str, Any]) -> Optimizer:
    """The optimizer that steps states on the host: DeepSpeed's of the same kind, or the same where the configuration lets it.

    It takes over the groups themselves, so that a schedule that moves their rates goes on doing so. DeepSpeed's Adam does not
    resume bit for bit: two updates after a resume, weights of small models were up to 2e-5 away in fp32 and 4e-3 in bf16. One of
    torch's, on the host too, does.

    Args:
        optimizer: The run's, or what stands for the configuration's.
        config: The configuration.

    Raises:
        OptionError: DeepSpeed has none of this kind, and the configuration does not let another do it.
    """
    if isinstance(optimizer, FromConfiguration) or not lies_elsewhere(config):
        return optimizer
    kept = config.get(_FORCE) is False or type(optimizer).__name__.startswith("DeepSpeedCPU")
    if kept:
        return optimizer
    same = _same_kind(optimizer)
    if same is None:
        device = setting(config, f"{_ZERO}.offload_optimizer.device")
        why = f"DeepSpeed has no {type(optimizer).__name__} of its own that steps states on the host"
        fix = (
            f"set {_FORCE}=false to let this one step there, use AdamW, Adam or Adagrad, or leave offload_optimizer out"
        )
        raise OptionError([Problem(f"deepspeed {_ZERO}.offload_optimizer.device", device, why, fix)])
    logger.info("%s steps what lies on the host, instead of %s", type(same).__name__, type(optimizer).__name__)
    return same


def _same_kind(optimizer: Optimizer) -> Optimizer | None:
    """DeepSpeed's optimizer that makes the same steps, if there is one."""
    settings = optimizer.defaults
    if settings.get("amsgrad") or settings.get("maximize"):
        return None
    if type(optimizer) in (Adam, AdamW):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        decoupled = type(optimizer) is AdamW or bool(settings.get("decoupled_weight_decay"))
        kept = {name: settings[name] for name in ("lr", "betas", "eps", "weight_decay")}
        return DeepSpeedCPUAdam(optimizer.param_groups, adamw_mode=decoupled, **kept)  # type: ignore[no-any-return]
    if type(optimizer) is Adagrad and not settings.get("lr_decay") and not settings.get("initial_accumulator_value"):
        from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad

        kept = {name: settings[name] for name in ("lr", "eps", "weight_decay")}
        return DeepSpeedCPUAdagrad(optimizer.param_groups, **kept)  # type: ignore[no-any-return]
    return None


def follow_rates(engine: Any) -> None:
    """With `offload_optimizer.ratio`, let the part that is stepped on the device follow the schedule too.

    DeepSpeed steps it with another optimizer, which has the settings of the first group as they were when it was made.
    """
    other = getattr(engine.optimizer, "backup_optimizer", None)
    if other is None:
        return
    first = engine.optimizer.optimizer.param_groups[0]
    for name, value in other.param_groups[0].items():
        first.setdefault(name, value)
    other.param_groups[0] = first


def check_ways(sizes: ParallelSizes | None) -> None:
    """Refuse processes that share sequences: batches are not divided along them here.

    Raises:
        NotAvailableError: Naming the size.
    """
    if sizes is None or sizes.sp_size == 1:
        return
    why = "sharing sequences (Ulysses, sequence_parallel_size) is not available yet: DeepSpeed runs it, but batches are not divided along sequences here"
    fix = "leave it out and let ZeRO divide the model, or use tp_size, or cp_size without deepspeed"
    raise NotAvailableError([Problem("parallelism_config", {"sp_size": sizes.sp_size}, why, fix)])


def check_device(config: Mapping[str, Any], device: torch.device) -> None:
    """Refuse what needs kernels that this kind of device has not, before anything is compiled; warn of what does nothing.

    Args:
        config: The configuration.
        device: The run's.

    Raises:
        NotAvailableError: Naming every such setting.
    """
    if device.type != "cpu":
        return
    problems = [
        Problem(f"deepspeed {path}", True, f"{why}, and this run is on the CPU", fix)
        for path, why, fix in _OF_GPUS
        if setting(config, path) is True
    ]
    if problems:
        raise NotAvailableError(problems)
    for what in ("param", "optimizer"):
        path = f"{_ZERO}.offload_{what}"
        if setting(config, f"{path}.device") == "cpu" and setting(config, f"{path}.pin_memory") is True:
            logger.warning("deepspeed %s.pin_memory=True: has no effect, because there is no device to copy to", path)


_KERNELS = "DeepSpeed quantises with kernels of CUDA"
_WITHOUT = "leave it out"
_OF_GPUS = (
    (f"{_ZERO}.zero_quantized_weights", _KERNELS, _WITHOUT),
    (f"{_ZERO}.zero_quantized_nontrainable_weights", _KERNELS, _WITHOUT),
    (f"{_ZERO}.zero_quantized_gradients", _KERNELS, _WITHOUT),
    (f"{_ZERO}.offload_optimizer.super_offload", "it moves states between a CUDA GPU and its host", _WITHOUT),
)
"""Settings, why they need a GPU, and what to do."""
