"""Everything else that a run can have, beside DeepSpeed: each acts as with plain data parallelism, or is refused with the reason."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mainspring import Trainer, TrainerCallback
from tests.deepspeed.runs import EVALUATES, SAVED, SAVES, config, logged, series, trainer

STAGES = (0, 1, 2, 3)
AUTO = {"enabled": "auto"}
ENDED = ("NonFiniteError: update 2 is not finite", "batch 1 of epoch 0")


# ---- trainers and callbacks of users ----


class OwnLoss(Trainer):
    """Whose losses are half of the model's, normalised as always."""

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Half of it."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (0.5 * loss, outputs) if return_outputs else 0.5 * loss


class OwnStep(Trainer):
    """Whose training step has the body of an older one."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward, backward, through the accelerator."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class OwnOptimizer(Trainer):
    """Who makes an optimizer with groups of its own."""

    def create_optimizer(self, model: Any = None) -> Any:
        """Two rates."""
        if self.optimizer is None:
            own = [*self.model.parameters()]
            groups = [{"params": own[:2], "lr": 1e-3}, {"params": own[2:], "lr": 1e-2}]
            self.optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)
        return self.optimizer


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A loss function, summed over tokens that are counted."""
    scores = outputs["logits"][:, :-1].flatten(0, 1).float()
    total = nn.functional.cross_entropy(scores, labels[:, 1:].flatten(), reduction="sum")
    return total / num_items_in_batch


class Reads(TrainerCallback):
    """Reads what callbacks are given."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The rates, and of what."""
        groups = given["optimizer"].param_groups
        self.seen += [groups[0]["lr"], given["lr_scheduler"].get_last_lr()[0], groups[0]["weight_decay"], len(groups)]


class Writes(TrainerCallback):
    """Changes settings of the optimizer by hand."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The weight decay of every group is 0 from now on."""
        for group in given["optimizer"].param_groups:
            group["weight_decay"] = 0.0


class Infinite(torch.autograd.Function):
    """A loss that is as it was, and whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        """The same."""
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Infinite."""
        return grads[0] * float("inf")


class Spoiled(Trainer):
    """One of whose micro-batches is spoiled, on one process."""

    call, rank, bad = 1, 1, "gradient"

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Its loss is NaN, or only its gradient is infinite."""
        loss = super().compute_loss(model, inputs, False, num_items_in_batch)
        call = self.__dict__.setdefault("_calls", 0)
        self._calls = call + model.training
        if model.training and call == self.call and self.args.process_index == self.rank:
            loss = loss * float("nan") if self.bad == "loss" else Infinite.apply(loss)
        return loss


class SpoiledLoss(Spoiled):
    """Whose loss is NaN."""

    bad = "loss"


class Jumps(Spoiled):
    """One of whose losses is very large, in all processes."""

    call = 52

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Times a thousand."""
        loss = Trainer.compute_loss(self, model, inputs, False, num_items_in_batch)
        call = self.__dict__.setdefault("_calls", 0)
        self._calls = call + model.training
        return loss * 1000 if model.training and call == self.call else loss


def tokens_right(prediction: Any) -> dict[str, float]:
    """A metric of the whole predictions."""
    scores, labels = prediction.predictions, prediction.label_ids
    return {"right": float((scores[:, :-1].argmax(-1) == labels[:, 1:]).mean())}


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """torch's compiler is on in the body; the launch has it off for DeepSpeed's own uses of it."""
    before = os.environ.pop("TORCHDYNAMO_DISABLE", None)
    torch._dynamo.config.disable = False
    try:
        yield
    finally:
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before
            torch._dynamo.config.disable = True


# ---- the table ----


@dataclass(frozen=True)
class Feature:
    """What a run is asked beside DeepSpeed.

    Attributes:
        options: Its options.
        cls: Its trainer.
        given: What the trainer is passed.
        callbacks: Makers of its callbacks.
        sections: Of its DeepSpeed configuration.
        stages: Stages at which it is tried.
        refused: Those at which it is refused.
        why: Words of the refusal.
        within: A context that is not part of the run.
        logs: Keys of its logs that are compared too.
        tolerance: How far numbers may be from those without DeepSpeed, relatively.
        resumes: Whether it saves, and a second run goes on from there.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    cls: Any = Trainer
    given: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callable[[], Any]] = ()
    sections: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[int] = (0, 2, 3)
    refused: Sequence[int] = ()
    why: Sequence[str] = ()
    within: Callable[[], Any] = contextlib.nullcontext
    logs: Sequence[str] = ()
    tolerance: float = 5e-5
    resumes: bool = False


def refused(*why: str, stages: Sequence[int] = (2,), **options: Any) -> Feature:
    """Options that cannot be, at these stages."""
    return Feature(options, stages=stages, refused=stages, why=why)


SKIPS = {"on_nonfinite": "skip"}
COUNTS = ("skipped_steps", "nonfinite_steps")
SPIKES = {"on_loss_spike": "skip", "loss_spike_threshold": 4.0, "max_steps": 54, "learning_rate": 1e-4}
OFFLOADS = {"offload_optimizer": {"device": "cpu"}}
HALF = 2e-2
FP16 = {"fp16": True}
SCALES = {
    "enabled": "auto",
    "loss_scale": 0,
    "initial_scale_power": 8,
    "loss_scale_window": 100,
    "hysteresis": 1,
    "min_loss_scale": 1,
}
OVERFLOWS = ("overflow_steps", "nonfinite_steps")

FEATURES: Mapping[str, Feature] = {
    # losses and models
    "neftune": Feature({"neftune_noise_alpha": 5.0, **SAVES}, resumes=True),
    "chunked_cross_entropy": Feature({"chunked_cross_entropy": True, **EVALUATES}),
    "chunked_accumulated": Feature({"chunked_cross_entropy": True, "gradient_accumulation_steps": 2}),
    "compute_loss": Feature(cls=OwnLoss),
    "compute_loss_func": Feature(given={"compute_loss_func": own_loss}),
    "training_step": Feature({"gradient_accumulation_steps": 2}, OwnStep),
    "compiled": Feature({"torch_compile_backend": "eager", "max_steps": 2}, within=compiling, stages=(2, 3)),
    # optimizers, schedules, and who reads them
    "create_optimizer": Feature({"weight_decay": 0.0}, OwnOptimizer),
    "reading_callback": Feature(callbacks=(Reads,)),
    "writing_callback": Feature(callbacks=(Writes,)),
    "averages": Feature(
        {"ema_decay": 0.5, **EVALUATES, **SAVES}, refused=(3,), why=("ema_decay=0.5", "at stage 3"), resumes=True
    ),
    "averages_half": Feature(
        {"ema_decay": 0.5, "bf16": True, **EVALUATES}, sections={"bf16": AUTO}, stages=(0, 1), tolerance=HALF
    ),
    # numbers
    "fp16": Feature(FP16, sections={"fp16": SCALES}, stages=STAGES, tolerance=HALF),
    "fp16_grows": Feature(FP16, sections={"fp16": {**SCALES, "loss_scale_window": 2}}, stages=(0, 2), tolerance=HALF),
    "fp16_static": Feature(FP16, sections={"fp16": {**SCALES, "loss_scale": 32}}, stages=(2,), tolerance=HALF),
    "fp16_patient": Feature(FP16, Spoiled, sections={"fp16": {**SCALES, "hysteresis": 2}}, stages=(2,), tolerance=HALF),
    "fp16_overflows": Feature(FP16, Spoiled, sections={"fp16": SCALES}, stages=STAGES, logs=OVERFLOWS, tolerance=HALF),
    "fp16_skips": Feature(
        {**FP16, **SKIPS}, Spoiled, sections={"fp16": SCALES}, stages=STAGES, logs=OVERFLOWS, tolerance=HALF
    ),
    **{
        f"communicates_{kind}": Feature(
            sections={"communication_data_type": kind}, stages=(0, 2, 3), tolerance=1e-6 if kind == "fp32" else HALF
        )
        for kind in ("fp32", "fp16", "bf16")
    },
    "accumulates_fp32": Feature(
        {"bf16": True, "gradient_accumulation_steps": 2},
        sections={"bf16": AUTO, "data_types": {"grad_accum_dtype": "fp32"}},
        stages=(1, 2, 3),
        tolerance=HALF,
    ),
    "accumulates_bf16": Feature(
        {"bf16": True, "gradient_accumulation_steps": 2},
        sections={"bf16": AUTO, "data_types": {"grad_accum_dtype": "bf16"}},
        stages=(1, 2, 3),
        tolerance=HALF,
    ),
    # data
    "group_by_length": Feature({"train_sampling_strategy": "group_by_length"}, stages=(2,)),
    "batch_rebalance": Feature({"train_sampling_strategy": "batch_rebalance"}, stages=(2,)),
    "token_budget": Feature({"train_sampling_strategy": "token_budget", "max_tokens_per_batch": 64}),
    "data_seed": Feature({"data_seed": 7}, stages=(2,)),
    "drop_last": Feature({"dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 1}, stages=(2,)),
    "split_batches": Feature({"accelerator_config": {"split_batches": True}}, stages=(2,)),
    "dispatch_batches": Feature({"accelerator_config": {"dispatch_batches": True}}, stages=(2,)),
    # what is measured
    "compute_metrics": Feature(EVALUATES, given={"compute_metrics": tokens_right}, logs=("eval_right",)),
    "counts_tokens": Feature({"include_num_input_tokens_seen": "all"}, stages=(2,), logs=("num_input_tokens_seen",)),
    "counts_numerics": Feature({"max_grad_norm": 1.5}, logs=("clipped_fraction", "nonfinite_steps")),
    "profile": Feature({"profile_steps": "1:2"}, stages=(3,)),
    "watches": Feature({"debug": "underflow_overflow"}, refused=(3,), why=("debug='underflow_overflow'", "at stage 3")),
    # updates that are not made
    "skips_loss": Feature(SKIPS, SpoiledLoss, stages=STAGES, logs=COUNTS),
    "skips_gradient": Feature(SKIPS, Spoiled, stages=STAGES, logs=COUNTS),
    "skips_accumulated": Feature({**SKIPS, "gradient_accumulation_steps": 2}, Spoiled, stages=STAGES),
    "skips_unclipped": Feature({**SKIPS, "max_grad_norm": 0.0}, Spoiled),
    "skips_half": Feature(
        {**SKIPS, "bf16": True}, Spoiled, sections={"bf16": AUTO}, stages=STAGES, logs=COUNTS, tolerance=HALF
    ),
    "skips_offloaded": Feature(
        SKIPS,
        Spoiled,
        sections={"zero_optimization": OFFLOADS, "zero_force_ds_cpu_optimizer": False},
        stages=(2, 3),
        logs=COUNTS,
    ),
    "skips_spike": Feature(SPIKES, Jumps, stages=(2,), logs=("skipped_steps",)),
    "raises_loss": Feature({"on_nonfinite": "raise"}, SpoiledLoss, refused=(0, 2, 3), why=ENDED),
    "raises_gradient": Feature({"on_nonfinite": "raise"}, Spoiled, refused=(0, 2, 3), why=ENDED),
    # what cannot be
    "rollback": refused("on_loss_spike='rollback'", "DeepSpeed", on_loss_spike="rollback"),
    "auto_find_batch_size": refused("auto_find_batch_size=True", "'deepspeed'", auto_find_batch_size=True),
    "optimizer_in_backward": refused("optimizer_in_backward=True", "deepspeed", optimizer_in_backward=True),
    "lomo": refused("optim='lomo'", "deepspeed", optim="lomo"),
    "schedule_free": refused(
        "optim='schedule_free_adamw'", "deepspeed", optim="schedule_free_adamw", lr_scheduler_type="constant"
    ),
    "galore": refused("optim='galore_adamw'", "stage 2", optim="galore_adamw", optim_target_modules=["attn"]),
    "save_on_each_node": refused("save_on_each_node=True", save_on_each_node=True, save_strategy="epoch"),
}


def of_engine(run: Any) -> dict[str, Any]:
    """What DeepSpeed's engine says of itself."""
    engine = run.deepspeed
    if engine is None:
        return {}
    scale = getattr(engine.optimizer, "loss_scale", None)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if engine.is_compiled else 0
    return {"scale": scale, "scales_by": engine.dynamic_loss_scale_args(), "graphs": graphs}


def run_feature(feature: Feature, out: Path, stage: int | None) -> dict[str, Any]:
    """A run of it; without DeepSpeed where there is no stage."""
    callbacks = [make() for make in feature.callbacks]
    divided = {} if stage is None else {"deepspeed": config(stage, **copy.deepcopy(dict(feature.sections)))}
    numbers: dict[str, Any] = {}
    with feature.within():
        try:
            run = trainer(
                out, callbacks=callbacks, cls=feature.cls, given=feature.given, **{**feature.options, **divided}
            )
            run.train()
        except Exception as error:  # noqa: BLE001 (whatever it is, the test reads it)
            return {"said": f"{type(error).__name__}: {error}"}
        numbers = {**series(run), **{key: logged(run, key) for key in feature.logs}, **of_engine(run)}
        if feature.resumes and stage is not None:
            again = trainer(out.with_name(f"{out.name}-again"), callbacks=callbacks, **{**feature.options, **divided})
            again.train(resume_from_checkpoint=str(out / f"checkpoint-{SAVED}"))
            numbers["again"] = series(again)
    seen = [value for callback in callbacks for value in getattr(callback, "seen", [])]
    return {**numbers, "wrapper": type(run.model_wrapped).__name__, "seen": seen, "said": None}


def each_stage(feature: Feature, out: Path) -> dict[str, Any]:
    """Runs at its stages, and one without DeepSpeed."""
    return {str(stage): run_feature(feature, out / str(stage), stage) for stage in (None, *feature.stages)}


WORK: Mapping[str, Callable[[Path], Any]] = {
    name: functools.partial(each_stage, feature) for name, feature in FEATURES.items()
}
