"""Runs whose optimizer or weights lie elsewhere than on the device, and what is asked of their memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mainspring import TrainerCallback
from tests.deepspeed.checkpoints import SAVES, Warnings, raised
from tests.deepspeed.runs import ADAMW, SAVED, config, facts, logged, optimizer, series, trainer, weights

Ask = Callable[[Path], Any]
HOST = {"device": "cpu"}
OWN = optimizer(betas="auto", eps="auto")
"""DeepSpeed's Adam: on the host the one that is compiled for it."""

LETS_OTHERS = {"zero_force_ds_cpu_optimizer": False}


def offloading(
    stage: int, param: bool = False, zero: Mapping[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    """A configuration whose optimizer, and maybe whose weights, lie on the host."""
    places = {"offload_optimizer": HOST, **({"offload_param": HOST} if param else {})}
    return config(stage, zero_optimization={**places, **(zero or {})}, **sections)


RUNS: Mapping[str, dict[str, Any]] = {
    **{f"own_{stage}": offloading(stage, optimizer=OWN) for stage in (1, 2, 3)},
    **{f"ours_{stage}": offloading(stage) for stage in (1, 2, 3)},
    **{f"client_{stage}": offloading(stage, **LETS_OTHERS) for stage in (1, 2, 3)},
    "torch_2": offloading(2, optimizer=ADAMW),
    "param": config(3, zero_optimization={"offload_param": HOST}),
    "both": offloading(3, param=True, optimizer=OWN),
    "both_client": offloading(3, param=True, **LETS_OTHERS),
    "groups": offloading(3, optimizer=OWN, zero={"sub_group_size": 2000}),
    "ratio": offloading(3, optimizer=OWN, zero={"sub_group_size": 2000, "offload_optimizer": {**HOST, "ratio": 0.5}}),
    "hpz": config(3, zero_optimization={"zero_hpz_partition_size": 2}),
    "overlaps_2": config(2, zero_optimization={"overlap_comm": True, "reduce_bucket_size": 500}),
    "overlaps_3": config(3, zero_optimization={"overlap_comm": True, "reduce_bucket_size": 500}),
}
"""By name."""


def moved(run: Any) -> dict[str, Any]:
    """What DeepSpeed's engine says of where things lie, and of how many."""
    engine, divided = run.deepspeed, run.deepspeed.optimizer
    other = getattr(divided, "backup_optimizer", None)  # of a ratio
    rows = getattr(divided, "fp32_partitioned_groups_flat", None) or divided.single_partition_of_fp32_groups
    return {
        "host_optimizer": bool(engine.zero_use_cpu_optimizer()),
        "host_weights": bool(engine.zero_offload_param() and engine.zero_offload_param().device == "cpu"),
        "flag": bool(getattr(divided, "offload_optimizer", getattr(divided, "cpu_offload", False))),
        "places": sorted(
            {str(v.device) for s in run.optimizer.state.values() for v in s.values() if torch.is_tensor(v)}
        ),
        "rows": [row.numel() for row in rows],
        "follows": [g is h for g, h in zip(other.param_groups, divided.optimizer.param_groups, strict=True)]
        if other
        else None,
    }


class Second(TrainerCallback):
    """Counts the numbers of a second division of the weights, over the processes of one machine, while there is one."""

    numbers = 0

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Gradients are complete, and the weights not stepped."""
        pieces = (getattr(parameter, "ds_secondary_tensor", None) for parameter in model.parameters())
        self.numbers = max(self.numbers, sum(piece.numel() for piece in pieces if piece is not None))


def train(out: Path, given: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A run, and where its parts lay."""
    second = Second()
    run = trainer(out, deepspeed=given, callbacks=[second], **options)
    run.train()
    return {**series(run), **facts(run), **moved(run), "second": second.numbers}


def goes_on(out: Path, given: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Losses and weights of a run, and of one that goes on from its checkpoint."""
    found = []
    for name, source in (("first", None), ("again", out / "first" / f"checkpoint-{SAVED}")):
        run = trainer(out / name, deepspeed=given, **SAVES, **options)
        run.train(resume_from_checkpoint=str(source) if source else None)
        found.append((logged(run), weights(run)))
    (losses, whole), (again, other) = found
    far = max((float((whole[name] - other[name]).abs().max()) for name in whole), default=0.0)
    return {"losses": losses, "again": again, "far": far}


# ---- settings that reach the engine ----

KEYS: Mapping[str, Any] = {
    "sub_group_size": 3000,
    "reduce_bucket_size": 700,
    "overlap_comm": True,
    "contiguous_gradients": False,
    "stage3_prefetch_bucket_size": 800,
    "stage3_param_persistence_threshold": 40,
    "stage3_model_persistence_threshold": 400,
    "stage3_max_live_parameters": 9000,
    "stage3_max_reuse_distance": 5000,
    "stage3_module_granularity_threshold": 60,
    "stage3_use_all_reduce_for_fetch_params": True,
    "stage3_gather_16bit_weights_on_model_save": True,
}
"""Of stage 3, none of them DeepSpeed's own choice."""


def keys_of_stage_3(out: Path) -> Any:
    """Their values in the engine's configuration, and in what acts by them."""
    run = trainer(out, deepspeed=offloading(3, zero=KEYS, **LETS_OTHERS))
    run.train()
    divided, held = run.deepspeed.optimizer, run.deepspeed._config.zero_config
    names = {name: name.removeprefix("stage3_") for name in KEYS}
    acts = divided.parameter_offload.get_param_coordinator()
    hidden = "_PartitionedParameterCoordinator__"
    return {
        "held": {name: getattr(held, short) for name, short in names.items() if hasattr(held, short)},
        "acts": {
            "sub_group_size": divided.sub_group_size,
            "reduce_bucket_size": divided.reduce_bucket_size,
            "stage3_prefetch_bucket_size": getattr(acts, f"{hidden}prefetch_bucket_sz"),
            "stage3_max_live_parameters": getattr(acts, f"{hidden}max_n_available_params"),
            "stage3_max_reuse_distance": getattr(acts, f"{hidden}max_reuse_dist_in_numel"),
        },
        "groups": len(divided.fp32_partitioned_groups_flat),
        "whole": sum(p.ds_numel for p in divided.persistent_parameters),
        "losses": logged(run),
    }


def keys_of_stage_2(out: Path) -> Any:
    """Buckets of the lower stages."""
    asked = {
        "reduce_bucket_size": 700,
        "allgather_bucket_size": 900,
        "overlap_comm": True,
        "contiguous_gradients": False,
    }
    run = trainer(out, deepspeed=config(2, zero_optimization=asked))
    run.train()
    divided = run.deepspeed.optimizer
    return {"asked": asked, "acts": {name: getattr(divided, name) for name in asked}, "losses": logged(run)}


# ---- what is refused, or said ----


def said(out: Path) -> Any:
    """What is said of settings that cannot act on this device, when the trainer is built or training begins."""
    quantised = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
    built = {
        name: raised(lambda name=name: trainer(out, deepspeed=config(3, zero_optimization={name: True})))
        for name in quantised
    }  # type: ignore[misc]
    moves = offloading(3, zero={"offload_optimizer": {**HOST, "super_offload": True}}, optimizer=OWN)
    built["super_offload"] = raised(lambda: trainer(out, deepspeed=moves))
    built["sp_size"] = raised(lambda: trainer(out, deepspeed=config(2), parallelism_config={"sp_size": 2}))
    built["sgd"] = raised(lambda: trainer(out, deepspeed=offloading(2), optim="sgd").train())
    with Warnings() as heard:
        trainer(out, deepspeed=offloading(2, zero={"offload_optimizer": {**HOST, "pin_memory": True}}))
    return {**built, "pinned": [text for text in heard.texts if "pin_memory" in text]}


def given(out: Path) -> Any:
    """Losses and rates where the user passed optimizer and schedule, and the optimizer lies on the host."""
    found = {}
    for name, options in (("here", {"deepspeed": config(2)}), ("there", {"deepspeed": offloading(2)})):
        from tests.deepspeed.runs import model

        own = model()
        made = torch.optim.AdamW(own.parameters(), lr=1e-2)
        falls = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0 / (1 + step))
        run = trainer(out / name, own, given={"optimizers": (made, falls)}, weight_decay=0.0, **options)
        run.train()
        found[name] = {**series(run), "inner": type(run.optimizer.inner).__name__}
    return found


# ---- memory ----

TWICE = {"gradient_accumulation_steps": 2}
"""Between micro-batches the lower stages keep gradients whole."""


class Gradients(TrainerCallback):
    """Counts what waits for a step, at most."""

    bytes = 0

    def __init__(self, held: Callable[[], list[torch.Tensor]]) -> None:
        self._held = held

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """Between micro-batches."""
        self.bytes = max(self.bytes, _bytes(self._held()))

    on_pre_optimizer_step = on_substep_end


def waiting(run: Any) -> list[torch.Tensor]:
    """The gradients that DeepSpeed has at hand before a step."""
    divided = run.deepspeed.optimizer
    whole = [p.grad for p in run.model.parameters() if p.grad is not None]
    if hasattr(divided, "grad_partitions_flat_buffer"):
        return [*whole, divided.grad_partitions_flat_buffer]
    return [
        *whole,
        *(g for kept in getattr(divided, "averaged_gradients", {}).values() for g in kept or [] if g is not None),
    ]


def memory(out: Path, stage: int, half: bool, zero: Mapping[str, Any] | None = None, **sections: Any) -> Any:
    """What was reckoned before there was an engine, and what lies in its tensors after training."""
    run = trainer(out, deepspeed=config(stage, zero_optimization=dict(zero or {}), **sections), bf16=half, **TWICE)
    before = run.estimate_memory()
    untouched = run.deepspeed is None and not any(hasattr(p, "ds_id") for p in run.model.parameters())
    gradients = Gradients(lambda: waiting(run))
    run.add_callback(gradients)
    run.train()
    after = run.estimate_memory()
    return {
        "before": asdict(before),
        "after": asdict(after),
        "text": str(before),
        "untouched": untouched,
        "measured": {
            "parameters": _bytes(_parameters(run)),
            "gradients": gradients.bytes,
            "weight_copies": _bytes(_copies(run)),
            "optimizer_states": _bytes(
                v for s in run.optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.numel() > 1
            ),
        },
    }


def _parameters(run: Any) -> list[torch.Tensor]:
    """Weights and buffers; at stage 3 the pieces, and those that stay whole beside them."""
    found = [*run.model.parameters(), *run.model.buffers()]
    return [*found, *(p.ds_tensor for p in found if hasattr(p, "ds_tensor"))]


def _copies(run: Any) -> list[torch.Tensor]:
    """What the optimizer steps, where that is not the model's own."""
    own = {p.data_ptr() for p in run.model.parameters()}
    divided = run.deepspeed.optimizer
    rows = getattr(divided, "fp32_partitioned_groups_flat", None) or [
        p for g in run.optimizer.param_groups for p in g["params"]
    ]
    return [row for row in rows if row.data_ptr() not in own]


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def plain_module(out: Path) -> Any:
    """The estimate of a module that is not transformers'."""

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 6)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            return {"loss": self.head.weight.square().mean()}

    run = trainer(out, Squares(), deepspeed=config(2))
    return asdict(run.estimate_memory())


def asked(shared: Path) -> Mapping[str, Ask]:
    """All that two processes are asked, by name."""
    host = {"offload_optimizer": HOST}
    return {
        **{name: partial(train, given=chosen) for name, chosen in RUNS.items()},
        "here": partial(train_here),
        **{
            f"resumes_{name}": partial(goes_on, given=RUNS[name])
            for name in ("own_1", "own_2", "own_3", "ours_2", "client_2", "client_3", "both", "groups", "hpz")
        },
        "resumes_own_2_bf16": partial(goes_on, given=RUNS["own_2"], bf16=True),
        "resumes_own_3_bf16": partial(goes_on, given=RUNS["own_3"], bf16=True),
        "keys_3": keys_of_stage_3,
        "keys_2": keys_of_stage_2,
        "said": said,
        "given": given,
        **{
            f"memory_{stage}{'_bf16' if half else ''}": partial(memory, stage=stage, half=half)
            for stage in range(4)
            for half in (False, True)
        },
        "memory_host": partial(memory, stage=3, half=False, zero={**host, "offload_param": HOST}, **LETS_OTHERS),
        "memory_kept": partial(memory, stage=3, half=False, zero={"stage3_param_persistence_threshold": 100}),
        "memory_adagrad": partial(memory, stage=2, half=False, optimizer=optimizer("Adagrad")),
        "plain_module": plain_module,
    }


def train_here(out: Path) -> dict[str, Any]:
    """The same run with everything on the device."""
    run = trainer(out, deepspeed=config(2))
    run.train()
    return series(run)
