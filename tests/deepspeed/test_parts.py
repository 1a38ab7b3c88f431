"""What stands for DeepSpeed's optimizer and schedule, and what is refused before anything starts: no process, no engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mainspring.arguments.deepspeed import DeepSpeedSettings
from mainspring.arguments.deepspeed.shown import shown
from mainspring.engines.deepspeed import DeepSpeed, limits
from mainspring.engines.deepspeed.gradients import forget_gradients
from mainspring.engines.deepspeed.limits import check_evaluation, refuse_without_training
from mainspring.engines.deepspeed.parts import FromConfiguration, MovedByEngine, SteppedByEngine
from mainspring.engines.deepspeed.states import is_own, load
from mainspring.errors import CheckpointError, OptionError

pytestmark = pytest.mark.deepspeed


class Moves:
    """A schedule of DeepSpeed's: each step doubles the rate."""

    def __init__(self) -> None:
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)

    def step(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= 2


def test_the_rate_of_an_update_is_the_one_that_it_used() -> None:
    """DeepSpeed moves its schedule inside its step; what comes after the step still reads the rate before."""
    theirs = Moves()
    schedule = MovedByEngine(theirs)
    schedule.hold()
    theirs.step()
    assert schedule.get_last_lr() == [1.0]
    schedule.step()
    assert schedule.get_last_lr() == [2.0]


def test_our_step_does_not_move_it_a_second_time() -> None:
    """Only the engine does."""
    schedule = MovedByEngine(Moves())
    schedule.hold()
    schedule.step()
    assert schedule.get_last_lr() == [1.0]


def test_a_described_optimizer_takes_no_steps() -> None:
    """It is a place for groups, and for a schedule that is made early."""
    described = FromConfiguration([{"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.0}], rate=0.5)
    assert described.param_groups[0]["lr"] == 0.5
    with pytest.raises(RuntimeError, match=r"from train\(\) on"):
        described.step()


def test_the_optimizer_inside_is_found_however_it_is_wrapped() -> None:
    """Its groups are what a schedule of torch's writes into, and a step is the engine's."""
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    steps: list[str] = []
    engine = SimpleNamespace(optimizer=SimpleNamespace(optimizer=inner), step=lambda: steps.append("engine"))
    optimizer = SteppedByEngine(engine)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert inner.param_groups[0]["lr"] == schedule.get_last_lr()[0] == 0.5
    optimizer.step()
    assert steps == ["engine"]
    with pytest.raises(RuntimeError, match="load_checkpoint"):
        optimizer.load_state_dict({})


@pytest.mark.parametrize(("kind", "first"), [("DeepSpeedZeroOptimizer", -1), ("DeepSpeedZeroOptimizer_Stage3", 0)])
def test_sums_of_half_an_update_are_forgotten(kind: str, first: int) -> None:
    """The count of micro-batches begins where each kind begins it, so that the next one overwrites."""
    calls: list[str] = []
    optimizer = type(kind, (), {})()
    optimizer.__dict__.update(
        micro_step_id=2,
        averaged_gradients={0: "sum"},
        zero_grad=lambda: calls.append("parameters"),
        reset_cpu_buffers=lambda: calls.append("host"),
    )
    forget_gradients(SimpleNamespace(optimizer=optimizer, zero_grad=lambda: calls.append("module")))
    assert (optimizer.micro_step_id, optimizer.averaged_gradients) == (first, {})
    assert calls == ["module", "parameters", "host"]


def _settings(**config: Any) -> DeepSpeedSettings:
    return DeepSpeedSettings(config)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stages_without_divided_weights_do_not_evaluate_alone(stage: int) -> None:
    """Stage 3 does."""
    with pytest.raises(OptionError, match=rf"stage={stage}"):
        refuse_without_training(_settings(zero_optimization={"stage": stage}))
    refuse_without_training(_settings(zero_optimization={"stage": 3}))


@pytest.mark.parametrize(("stage", "told"), [(0, 0), (2, 1)])
def test_optimizers_that_look_at_shapes_are_warned_of(stage: int, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the stage on that lays parameters out flat."""
    warnings: list[Any] = []
    monkeypatch.setattr(limits.logger, "warning", lambda *words: warnings.append(words))
    for kind in (torch.optim.Adafactor, torch.optim.AdamW):
        limits.warn_of_flattened(kind([nn.Parameter(torch.ones(1))]), _settings(zero_optimization={"stage": stage}))
    assert [words[1] for words in warnings] == ["Adafactor"] * told


def test_evaluations_have_the_precision_of_the_configuration() -> None:
    """Weights in DeepSpeed's buffers cannot be cast."""
    check_evaluation(_settings(bf16={"enabled": True}), torch.bfloat16)
    check_evaluation(_settings(), None)
    with pytest.raises(OptionError, match="bf16_full_eval=True: the model computes in fp16"):
        check_evaluation(_settings(fp16={"enabled": True}), torch.bfloat16)


def test_deepspeed_reads_nothing_into_an_optimizer_on_nvme(tmp_path: Path) -> None:
    """And says nothing of it: it is not asked, except for a universal checkpoint."""
    (tmp_path / "latest").write_text("global_step1")
    engine = SimpleNamespace(
        mp_world_size=1, load_universal_checkpoint=lambda: False, zero_nvme_offload_optimizer=lambda: True
    )
    assert not is_own(engine, str(tmp_path))


def test_nothing_found_is_an_error() -> None:
    """DeepSpeed returns None then."""
    engine = SimpleNamespace(
        mp_world_size=1,
        load_checkpoint=lambda folder, load_module_strict: (None, {}),
        load_universal_checkpoint=lambda: False,
        _config=SimpleNamespace(load_universal_checkpoint=False),
    )
    with pytest.raises(CheckpointError, match="found no checkpoint of its own"):
        load(engine, nn.Linear(1, 1), "checkpoint-1")


class TwoSets(torch.optim.SGD):
    """Trains with other weights than it evaluates with."""

    def eval(self) -> None:
        """Put the others in."""


def test_optimizers_with_two_sets_of_weights_are_refused() -> None:
    """Whether an optimizer is passed or its class; any other is not."""
    made = TwoSets([nn.Parameter(torch.ones(1))], lr=1.0)
    for given in (made, (TwoSets, {"lr": 1.0})):
        with pytest.raises(OptionError, match="optimizers='TwoSets': it trains with other weights"):
            limits.check_given(_settings(), given, None)
    limits.check_given(_settings(), (torch.optim.SGD, {"lr": 1.0}), None)


@pytest.mark.parametrize(
    ("stage", "given", "shows"), [(0, {}, False), (2, {}, True), (2, {"optimizer": {"type": "AdamW"}}, False)]
)
def test_optimizers_that_deepspeed_has_not_tried_are_allowed_and_shown(
    stage: int, given: dict[str, Any], shows: bool
) -> None:
    """Where ZeRO divides the states of one that DeepSpeed does not make; what the user said stays."""
    rows = {row.path: row for row in shown(_settings(zero_optimization={"stage": stage}, **given))}
    assert ("zero_allow_untested_optimizer" in rows) == shows
    if shows:
        row = rows["zero_allow_untested_optimizer"]
        assert (row.value, row.source) == (True, "the optimizer is not in the configuration")
    forbidden = _settings(zero_optimization={"stage": stage}, zero_allow_untested_optimizer=False)
    assert {row.path: row.value for row in shown(forbidden)}["zero_allow_untested_optimizer"] is False


@pytest.mark.parametrize(("wanted", "kind", "told"), [(1.0, 2.0, 0), (0.5, 2.0, 1), (1.0, 1.0, 1)])
def test_a_norm_that_deepspeed_does_not_clip_to_is_warned_of(
    wanted: float, kind: float, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It clips to the one in its configuration, whoever asks for what."""
    said: list[str] = []
    monkeypatch.setattr(limits.logger, "warning_once", said.append)
    limits.say_where_not_clipped(wanted, kind, limit=1.0)
    assert len(said) == told
    assert all("to 1.0 in its configuration" in text for text in said)


def test_a_step_waits_for_no_norm() -> None:
    """The norm goes from tensor to tensor: a tensor without numbers has none to wait for."""
    engine = DeepSpeed.__new__(DeepSpeed)
    engine._leaving = engine._schedule = engine._scale = None
    engine.mends_gradients = False
    engine._norm = torch.zeros((), dtype=torch.float64, device="meta")
    found = torch.ones((), device="meta")
    engine.deepspeed = SimpleNamespace(was_step_applied=lambda: True, get_global_grad_norm=lambda: found)
    engine.step(SimpleNamespace(step=lambda: None))  # type: ignore[arg-type]
    assert engine._norm is None
    assert not engine.step_was_skipped


def test_gradients_are_summed_as_the_model_computes_without_zero() -> None:
    """DeepSpeed has no sums of another kind at stage 0."""
    summed = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    with pytest.raises(OptionError, match=r"data_types.grad_accum_dtype='fp32': the stage is 0, .*: bf16"):
        limits.check_sums(_settings(**summed))
    limits.check_sums(_settings(**summed, zero_optimization={"stage": 1}))
    limits.check_sums(_settings(data_types={"grad_accum_dtype": "fp32"}))
    limits.check_sums(_settings())


def test_what_an_engine_cannot_take_over_any_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """But its schedule, which begins anew."""
    said: list[Any] = []
    monkeypatch.setattr(limits.logger, "warning", lambda *words: said.append(words))
    limits.say_what_stays({"gradient_clipping": 1.0, "scheduler": {}}, {"gradient_clipping": 1.0})
    assert said == []
    limits.say_what_stays({"gradient_clipping": 1.0, "fp16": {}}, {"gradient_clipping": 2.0, "bf16": {}})
    assert [words[1] for words in said] == ["gradient_clipping, fp16, bf16"]
