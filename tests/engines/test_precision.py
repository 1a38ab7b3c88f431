"""Half precision on the CPU, with real loss scaling: what is computed, skipped, saved and gone on with."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import GradScalerKwargs
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from mainspring.arguments import runtime
from mainspring.engines.accelerator import build_accelerator
from mainspring.errors import OptionError
from mainspring.schedulers import get_scheduler
from tests.helpers import data, models
from tests.helpers.runs import history, same, weights
from tests.helpers.sides import REFERENCE, SUBJECT, Side

SCALE = 1024.0
GROWTH = 3
OVERFLOWS = 5
"""The update, from 1, whose gradients do not fit into float16."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_torch_fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0, fused=True),
    "adamw_torch": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


class Net(models.Regressor):
    """The regression network; notes what its layers compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[torch.dtype] = set()
        self.head.register_forward_hook(lambda module, inputs, output: self.formats.add(output.dtype))


class Scaled(Trainer):
    """Begins with a small scale that grows soon."""

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        scaling = GradScalerKwargs(init_scale=SCALE, growth_interval=GROWTH)
        return super()._build_accelerator_args(kwargs_handlers=[scaling], **kwargs)


def rows(overflows: bool = True) -> list[dict[str, Any]]:
    """Nine updates of two micro-batches of two samples; one target is far off, unless `overflows` is False."""
    items = data.points(36)
    if overflows:
        items[4 * (OVERFLOWS - 1)]["labels"] = 1e5
    return items


def trainer(folder: Path, cls: type[Trainer] = Scaled, **changes: Any) -> Trainer:
    overflows = changes.pop("overflows", True)
    options = {
        "fp16": True,
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 9,
        "learning_rate": 0.05,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_steps": 2,
        "disable_tqdm": True,
        **changes,
    }
    torch.manual_seed(3)
    return cls(
        Net(),
        TrainingArguments(str(folder), **options),
        train_dataset=data.Items(rows(overflows)),
        eval_dataset=data.Items(data.points(6, seed=1)),
    )


def by_hand(optim: str) -> tuple[nn.Module, list[float], list[float], list[float]]:
    """The same run in plain torch: the model, and scales, rates and norms of its updates."""
    torch.manual_seed(3)
    model, items = Net(), rows()
    optimizer = OPTIMIZERS[optim](model.parameters())
    schedule = get_scheduler("linear", optimizer, 0, 9)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=GROWTH)
    scales, rates, norms = [], [], []
    for update in range(9):
        for start in (4 * update, 4 * update + 2):
            part = items[start : start + 2]
            batch = {
                "x": torch.stack([item["x"] for item in part]),
                "labels": torch.tensor([i["labels"] for i in part]),
            }
            with torch.autocast("cpu", torch.float16):
                loss = model(**batch)["loss"].float()
            scaler.scale(loss / 2).backward()
        scaler.unscale_(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        rates.append(optimizer.param_groups[0]["lr"])
        if scaler.get_scale() >= before:
            schedule.step()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return model, scales, rates, norms


class Watched(Scaled):
    """Notes the scale after each update."""

    def _get_learning_rate(self) -> float:
        self.scales = [*getattr(self, "scales", []), self._engine.scaler.get_scale()]
        return super()._get_learning_rate()


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_loss_scaling_is_that_of_plain_torch(tmp_path: Path, optim: str) -> None:
    """Accumulated, clipped after unscaling, one update skipped with its step of the schedule."""
    model, scales, rates, norms = by_hand(optim)
    run = trainer(tmp_path, Watched, optim=optim)
    run.train()
    assert run.model.formats == {torch.float16}
    assert run.scales == scales
    assert scales[OVERFLOWS - 1] == scales[OVERFLOWS - 2] / 2
    assert scales[2] == 2 * SCALE
    logs = [log for log in history(run) if "grad_norm" in log]
    assert [log["learning_rate"] for log in logs] == rates
    assert rates[OVERFLOWS - 1] == rates[OVERFLOWS]
    torch.testing.assert_close([log["grad_norm"] for log in logs], norms, rtol=1e-6, atol=0.0, equal_nan=True)
    assert same(weights(run), model.state_dict())


def test_an_overflow_leaves_weights_optimizer_and_schedule_and_counts_as_an_update(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_steps=1)
    run.train()
    assert run.state.global_step == 9

    def read(step: int, name: str) -> Any:
        return torch.load(tmp_path / f"checkpoint-{step}" / name, weights_only=True)

    before, after = OVERFLOWS - 1, OVERFLOWS
    for name in ("optimizer.pt", "scheduler.pt"):
        kept, changed = (str(read(step, name)) for step in (before, after))
        assert kept == changed
        assert str(read(after + 1, name)) != changed
    weights_of = [(tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (before, after)]
    assert weights_of[0] == weights_of[1]
    assert read(after, "scaler.pt")["scale"] == read(before, "scaler.pt")["scale"] / 2


def test_a_run_goes_on_with_the_scale_and_its_count(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", overflows=False)
    whole.train()
    saved = torch.load(tmp_path / "whole" / "checkpoint-4" / "scaler.pt", weights_only=True)
    assert saved == {**torch.amp.GradScaler("cpu").state_dict(), **saved, "scale": 2 * SCALE, "_growth_tracker": 1}
    again = trainer(tmp_path / "again", Trainer, overflows=False)  # whose own scaler begins elsewhere
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert same(weights(whole), weights(again))
    assert again._engine.scaler.state_dict() == whole._engine.scaler.state_dict()
    assert again._engine.scaler.get_scale() == SCALE * 2**GROWTH
    assert history(again) == history(whole)


def test_without_settings_of_accelerates_the_scaler_is_torchs(tmp_path: Path) -> None:
    scaler = trainer(tmp_path, Trainer)._engine.scaler
    assert scaler.state_dict() == torch.amp.GradScaler("cpu").state_dict()
    assert scaler._device == "cpu"


def test_norms_are_those_of_the_unscaled_gradients_without_clipping_too(tmp_path: Path) -> None:
    found = []
    for options in ({"max_grad_norm": 0.0}, {"max_grad_norm": 1e9}):
        run = trainer(tmp_path, overflows=False, max_steps=2, **options)
        run.train()
        found.append([log["grad_norm"] for log in history(run) if "grad_norm" in log])
    assert found[0] == found[1]
    plain = trainer(tmp_path, overflows=False, max_steps=2, max_grad_norm=0.0, fp16=False)
    plain.train()
    exact = [log["grad_norm"] for log in history(plain) if "grad_norm" in log]
    assert found[0] == pytest.approx(exact, rel=1e-2)
    assert found[0] != exact


def test_evaluations_compute_in_half_precision_and_give_numbers_in_full(tmp_path: Path) -> None:
    run, plain = trainer(tmp_path), trainer(tmp_path, fp16=False)
    loss = run.evaluate()["eval_loss"]
    found = run.predict(run.eval_dataset)
    assert run.model.formats == {torch.float16}
    assert found.predictions.dtype == "float32"
    assert found.metrics["test_loss"] == loss
    assert loss == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-2)
    assert plain.model.formats == {torch.float32}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_launcher_chooses_it_where_no_option_does(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    run = trainer(tmp_path, fp16=False, max_steps=1)
    run.train()
    assert run.model.formats == {{"fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
    assert (run._engine.scaler is not None) == (precision == "fp16")


def test_a_run_keeps_its_precision_when_another_one_is_made(tmp_path: Path) -> None:
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "none": torch.float32}
    runs = {
        kind: trainer(tmp_path / kind, Trainer, fp16=kind == "fp16", bf16=kind == "bf16", max_steps=1) for kind in kinds
    }
    for kind, run in runs.items():
        with run.accelerator.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kinds[kind]
        run.train()
        assert run.model.formats == {kinds[kind]}


def test_weights_that_are_in_half_precision_themselves_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.model.half()
    with pytest.raises(
        OptionError, match="^fp16=True: it keeps .* in float32, and the model has them in float16; load"
    ):
        run.train()
    frozen = trainer(tmp_path, max_steps=1)
    frozen.model.hidden.half().requires_grad_(False)
    frozen.train()


# ---- evaluations that are half precision in full ----


class Recorded(models.Regressor):
    """Notes in which format its weights are in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, torch.dtype]] = set()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        dtype = self.hidden.weight.dtype
        self.seen.add((self.training, dtype))
        return super().forward(x.to(dtype), None if labels is None else labels.to(dtype))


def evaluated_in_full(side: Side, folder: Path, option: str) -> list[Any]:
    """What there is after training with evaluations, after an evaluation, and after a prediction."""
    torch.manual_seed(3)
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, option: True}
    run = side.api.Trainer(
        Recorded(),
        side.arguments(folder, **options),
        train_dataset=data.Items(data.points(8)),
        eval_dataset=data.Items(data.points(4, seed=1)),
    )
    found: list[Any] = []
    for act in (
        run.train,
        lambda: run.evaluate()["eval_loss"],
        lambda: run.predict(run.eval_dataset).metrics["test_loss"],
    ):
        run.model.seen = set()
        result = act()
        size = sum(parameter.numel() * parameter.element_size() for parameter in run.model.parameters())
        found.append((run.model.seen, size, result if isinstance(result, float) else None))
    return found


@pytest.mark.parity
@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_the_model_is_cast_outside_of_training_alone_as_in_the_reference(tmp_path: Path, option: str) -> None:
    found = evaluated_in_full(SUBJECT, tmp_path / "ours", option)
    assert found == evaluated_in_full(REFERENCE, tmp_path / "theirs", option)
    half = torch.bfloat16 if option.startswith("bf16") else torch.float16
    assert [seen for seen, _, _ in found] == [
        {(True, torch.float32), (False, torch.float32)},
        {(False, half)},
        {(False, half)},
    ]
    sizes = [size for _, size, _ in found]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 2]


def test_training_with_weights_that_an_evaluation_has_cast_is_told(tmp_path: Path) -> None:
    def run(**options: Any) -> Trainer:
        args = {"use_cpu": True, "max_steps": 1, "save_strategy": "no", "disable_tqdm": True, **options}
        rows = data.Items(data.points(8))
        return Trainer(Recorded(), TrainingArguments(str(tmp_path), **args), train_dataset=rows, eval_dataset=rows)

    cast = run(bf16_full_eval=True)
    cast.evaluate()
    with pytest.warns(
        UserWarning, match="bf16_full_eval=True: an evaluation has cast the weights to bfloat16, and they"
    ):
        cast.train()
    for quiet in (run(bf16_full_eval=True), run()):
        if not quiet.args.bf16_full_eval:
            quiet.evaluate()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quiet.train()


# ---- where it cannot be ----


def test_a_cpu_that_does_not_compute_in_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has_fp16_on_cpu", lambda: False)
    message = "^fp16=True: this CPU, with this release of torch, does not compute in float16; use bf16=True$"
    with pytest.raises(OptionError, match=message):
        TrainingArguments("out", fp16=True, use_cpu=True).device  # noqa: B018 - the look-up is what is tested
    with pytest.raises(OptionError, match=message):  # arguments of another library do not look
        build_accelerator(cpu=True, mixed_precision="fp16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(OptionError, match=r"^ACCELERATE_MIXED_PRECISION='fp16': this CPU.*; launch with bf16$"):
        TrainingArguments("out", use_cpu=True).device  # noqa: B018


@pytest.mark.parametrize("way", ["fails", "is turned off"])
def test_whether_a_cpu_computes_in_it_is_tried_out(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def linear(inputs: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    runtime.has_fp16_on_cpu.cache_clear()
    assert runtime.has_fp16_on_cpu()
    runtime.has_fp16_on_cpu.cache_clear()
    if way == "fails":
        monkeypatch.setattr(nn.functional, "linear", linear)
    else:
        monkeypatch.setattr(torch, "autocast", lambda device, dtype: contextlib.nullcontext())
    assert not runtime.has_fp16_on_cpu()
    runtime.has_fp16_on_cpu.cache_clear()
