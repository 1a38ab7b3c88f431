"""How much memory a process takes with DeepSpeed, before its engine is there: by our reckoning, and by DeepSpeed's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mainspring.arguments.deepspeed import DeepSpeedSettings
from mainspring.arguments.deepspeed.reading import setting
from mainspring.engines.deepspeed.parts import SteppedByEngine
from mainspring.measuring.estimate import bytes_of_storages
from mainspring.measuring.estimate_divided import (
    DividedMemoryEstimate,
    Division,
    Kept,
    divided_bytes,
    largest_layer,
    sizes_of,
)

_ZERO = "zero_optimization"
_PLACES = {"cpu": "host", "nvme": "disk"}
_KEPT_WHOLE = 100_000
"""DeepSpeed's own `stage3_param_persistence_threshold`."""


def estimate(
    model: nn.Module,
    settings: DeepSpeedSettings,
    config: Mapping[str, Any],
    processes: tuple[int, int],
    state_per_number: float,
) -> DividedMemoryEstimate:
    """What each process keeps, on its device and elsewhere.

    Args:
        model: The model; it is not touched.
        settings: What is asked of DeepSpeed.
        config: The same, with nothing left open.
        processes: All that it divides over, and those of one machine.
        state_per_number: Bytes that the optimizer remembers for each number.
    """
    division = Division(
        stage=settings.stage,
        processes=processes[0],
        number=4 if settings.precision == "fp32" else 2,
        whole_below=_whole_below(config),
        parameters_on=_place(config, "param"),
        states_on=_place(config, "optimizer"),
    )
    kept = divided_bytes(model, state_per_number, division)
    return DividedMemoryEstimate(
        stage=settings.stage,
        processes=processes[0],
        device=kept["device"],
        host=kept.get("host", Kept()),
        disk=kept.get("disk", Kept()),
        deepspeed=_of_deepspeed(model, settings.stage, config, processes),
        tables=_tables(model, processes),
    )


def remembers(config: Mapping[str, Any]) -> float:
    """Bytes that the configuration's own optimizer remembers for each number; of Muon, which keeps less of some, at most."""
    kind = str(config["optimizer"].get("type")).lower()
    return 4.0 if "adagrad" in kind or "lion" in kind else 8.0


def remembered(optimizer: SteppedByEngine) -> float:
    """Bytes that an optimizer that has stepped remembers for each number."""
    numbers = total = 0
    for owner, state in optimizer.state.items():
        numbers += owner.numel()
        total += bytes_of_storages([value for value in state.values() if _is_part(value)])
    return float(total / max(1, numbers))


def _is_part(value: Any) -> bool:
    """Whether it is remembered of each number, as a count of steps is not."""
    return isinstance(value, Tensor) and value.dim() > 0


def _place(config: Mapping[str, Any], what: str) -> str:
    return _PLACES.get(setting(config, f"{_ZERO}.offload_{what}.device"), "device")


def _whole_below(config: Mapping[str, Any]) -> int:
    found = setting(config, f"{_ZERO}.stage3_param_persistence_threshold")
    return _KEPT_WHOLE if found is None else int(found)


def _machines(processes: tuple[int, int]) -> dict[str, int]:
    every, here = processes
    return {"num_gpus_per_node": here, "num_nodes": max(1, every // here)}


def _of_deepspeed(
    model: nn.Module, stage: int, config: Mapping[str, Any], processes: tuple[int, int]
) -> tuple[int, int] | None:
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    total, machines = sum(count for count, _ in sizes_of(model)), _machines(processes)
    offloads = _place(config, "optimizer") != "device"
    if stage == 2:
        host, device = stage_1_and_2.estimate_zero2_model_states_mem_needs(total, **machines, cpu_offload=offloads)
    elif stage == 3:
        host, device, _ = stage3.estimate_zero3_model_states_mem_needs(
            total,
            largest_layer(model),
            **machines,
            cpu_offload=offloads,
            cpu_offload_params=_place(config, "param") != "device",
            zero_init=any(hasattr(p, "ds_numel") for p in model.parameters()),
        )
    else:
        return None
    return device, host


def _tables(model: nn.Module, processes: tuple[int, int]) -> str:
    """What DeepSpeed prints of both of its stages with estimators."""
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    total, machines = sum(count for count, _ in sizes_of(model)), _machines(processes)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        printed.write("\nZeRO-2, by DeepSpeed\n")
        stage_1_and_2.estimate_zero2_model_states_mem_needs_all_cold(total, **machines)
        printed.write("\nZeRO-3, by DeepSpeed\n")
        stage3.estimate_zero3_model_states_mem_needs_all_cold(total, largest_layer(model), **machines)
    return printed.getvalue()
