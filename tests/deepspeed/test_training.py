"""DeepSpeed on two processes: trained as one process without it trains, divided as its stage says, resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.deepspeed.cases import ALL, CASES, HALF, KEPT, MADE, MATRIX, SCHEDULES
from tests.deepspeed.parity import PARITY
from tests.deepspeed.read import alone, found
from tests.deepspeed.runs import EVALUATES, STEPS, whole

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

RANKS = range(2)
NORMS_OF_THEIR_OWN = {f"stage{stage}_made_muon" for stage in (1, 2, 3)}
"""Where DeepSpeed knows only the norm of what Muon has made of the gradients."""


def _stage(name: str) -> int:
    return int(ALL[name].config["zero_optimization"]["stage"])


def _close(actual: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert actual["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5 * tolerance)
    assert actual["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-9)
    assert actual["eval_loss"] == pytest.approx(expected["eval_loss"], rel=tolerance)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ALL)
def test_each_process_holds_its_share(name: str, rank: int, trained: Path) -> None:
    """The engine is DeepSpeed's, at the stage asked for: from stage 1 on half of the states, at 3 half of the weights."""
    facts, stage = found(trained, name, rank=rank), _stage(name)
    assert (facts["world_size"], facts["wrapper"], facts["stage"]) == (2, "DeepSpeedEngine", stage)
    assert facts["optimizer"] == "SteppedByEngine"
    assert facts["numbers"] == (whole() / 2 if stage == 3 else whole())
    if facts["inner"] == "AdamW":  # two states for each number, and a count for each tensor
        share = 1 if stage == 0 else 2
        assert 2 * whole() / share <= facts["states"] < 2.02 * whole() / share


@pytest.mark.parametrize("name", [name for name in MATRIX if "theirs_theirs" not in name and "ours_theirs" not in name])
def test_the_matrix_is_trained_as_one_process_trains(name: str, trained: Path) -> None:
    """Losses, norms, rates and evaluations within training, with our schedule and optimizers of either side."""
    for rank in RANKS:
        _close(found(trained, name, rank=rank), alone(**EVALUATES), MATRIX[name].tolerance)


def late(rates: list[float]) -> list[float]:
    """A schedule of DeepSpeed's begins one update later than ours of the same shape."""
    return [rates[0], *rates[:-1]]


@pytest.mark.parametrize("name", [name for name in MATRIX if name.endswith("_theirs")])
def test_their_schedule_has_the_rates_of_ours_one_update_later(name: str, trained: Path) -> None:
    """WarmupDecayLR, of the linear type, is `linear`."""
    assert found(trained, name)["learning_rate"] == pytest.approx(late(alone(**EVALUATES)["learning_rate"]), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in MATRIX if name.endswith("_theirs")])
def test_optimizers_of_either_side_make_the_same_steps(name: str, trained: Path) -> None:
    """With DeepSpeed's schedule, at every stage."""
    first = found(trained, f"stage0_{name.split('_')[1]}_ours_theirs")
    _close(found(trained, name), first, HALF if "bf16" in name else 2e-5)
    assert found(trained, name)["loss"][-1] < first["loss"][0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_in_half_precision_make_the_same_steps(stage: int, trained: Path) -> None:
    """From 1 on the weights have copies in full precision, which are stepped."""
    first = found(trained, "stage1_bf16_ours_ours")
    _close(found(trained, f"stage{stage}_bf16_ours_ours"), first, 1e-4)


def test_constant_with_warmup_is_their_warmup(trained: Path) -> None:
    """WarmupLR, of the linear type; again one update later."""
    ours = alone(lr_scheduler_type="constant_with_warmup")["learning_rate"]
    assert found(trained, "schedule_WarmupLR")["learning_rate"] == pytest.approx(late(ours), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("OneCycle", [1e-3, 5.5e-3, 1e-2, 5.5e-3]),
        ("LRRangeTest", [1e-3, 1.5e-3, 2e-3, 2.5e-3]),
        ("WarmupCosineLR", [0.0, 0.0, 1e-2, 5e-3]),
    ],
)
def test_their_other_schedules_run(name: str, rates: list[float], trained: Path) -> None:
    """At the rates that their settings say."""
    assert found(trained, f"schedule_{name}")["learning_rate"] == pytest.approx(rates, rel=1e-3)


BY_HAND: dict[str, dict[str, Any]] = {
    "WarmupLR": {"warmup_min_lr": 0, "warmup_max_lr": 1e-2, "warmup_num_steps": 2, "warmup_type": "linear"},
    "WarmupLR_log": {"warmup_min_lr": 0, "warmup_max_lr": 1e-2, "warmup_num_steps": 2},
    "WarmupDecayLR": {
        "total_num_steps": STEPS,
        "warmup_min_lr": 0,
        "warmup_max_lr": 1e-2,
        "warmup_num_steps": 2,
        "warmup_type": "linear",
    },
    "WarmupCosineLR": {"total_num_steps": STEPS, "warmup_num_steps": 2},
    "OneCycle": {"cycle_min_lr": 1e-3, "cycle_max_lr": 1e-2, "cycle_first_step_size": 2},
    "LRRangeTest": {"lr_range_test_min_lr": 1e-3, "lr_range_test_step_size": 2},
}
"""What the settings that are left to the options come to."""


@pytest.mark.parametrize("name", BY_HAND)
def test_their_schedules_have_the_rates_of_their_own_classes(name: str, trained: Path) -> None:
    """Which are run by hand beside an optimizer that does nothing."""
    schedules = pytest.importorskip("deepspeed.runtime.lr_schedules")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1e-2)
    schedule = getattr(schedules, name.partition("_")[0])(optimizer, **BY_HAND[name])
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found(trained, f"schedule_{name}")["learning_rate"] == pytest.approx(rates, rel=1e-9)


def test_a_warm_up_by_the_logarithm_is_no_constant_with_warm_up(trained: Path) -> None:
    """WarmupLR's own default: only with warmup_type 'linear' are the two alike."""
    linear = alone(lr_scheduler_type="constant_with_warmup")["learning_rate"]
    assert found(trained, "schedule_WarmupLR_log")["learning_rate"] != pytest.approx(late(linear), rel=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_options_act_as_in_one_process(name: str, trained: Path) -> None:
    """Accumulation, clipping, smoothing, recomputing, optimizers, groups and schedules of ours, at every stage."""
    for rank in RANKS:
        _close(found(trained, name, rank=rank), alone(**CASES[name].alone), 5e-5)


@pytest.mark.parametrize("name", [name for name in MADE if "muon" not in name])
def test_optimizers_that_deepspeed_makes_are_ours(name: str, trained: Path) -> None:
    """Adam, which is AdamW unless it is told otherwise, and Adagrad, whose groups ZeRO forgets by itself."""
    _close(found(trained, name), alone(**MADE[name].alone), 5e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_muon_makes_the_same_steps_at_every_stage(stage: int, trained: Path) -> None:
    """Its norms are of no use once it works on pieces: none is logged."""
    first, other = found(trained, "stage0_made_muon"), found(trained, f"stage{stage}_made_muon")
    assert other["loss"] == pytest.approx(first["loss"], rel=5e-5)
    assert len(first["grad_norm"]) == STEPS
    assert other["grad_norm"] == []


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", [*MATRIX, *MADE, *SCHEDULES, *KEPT])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, rank: int, trained: Path) -> None:
    """The same bits: logs and final weights."""
    whole_run = found(trained, name, rank=rank)
    for key, value in whole_run["resumed"].items():
        assert value == whole_run[key], key


@pytest.mark.parametrize("name", MATRIX)
def test_an_evaluation_after_training_is_the_last_one_within(name: str, trained: Path) -> None:
    """The same engine goes on; every sample is predicted."""
    facts = found(trained, name)
    assert facts["after"] == pytest.approx(facts["eval_loss"][-1], rel=1e-6)
    assert facts["predicted"][0] == 11


@pytest.mark.parametrize("name", MATRIX)
def test_checkpoints_hold_what_deepspeed_writes(name: str, trained: Path) -> None:
    """Its folder and mark, whole weights unless they are in pieces, and our schedule where it is ours."""
    files = set(found(trained, name)["files"])
    assert {
        "global_step2",
        "latest",
        "manifest.json",
        "trainer_state.json",
        "rng_state_0.pth",
        "rng_state_1.pth",
    } <= files
    assert ("model.safetensors" in files) == (_stage(name) < 3)
    assert ("scheduler.pt" in files) == name.endswith("_ours")


@pytest.mark.parametrize("name", KEPT)
def test_checkpoints_of_stage_3_hold_whole_weights_where_asked(name: str, trained: Path) -> None:
    """Beside the pieces, by `stage3_gather_16bit_weights_on_model_save`."""
    assert {"model.safetensors", "global_step2"} <= set(found(trained, name)["files"])


@pytest.mark.parity
@pytest.mark.parametrize("name", PARITY)
def test_scripts_read_what_they_read_with_the_reference(name: str, trained: Path, reference: Path) -> None:
    """Accelerator, plugin, configuration and engine, before and after training."""
    expected, actual = found(reference, name, "reference"), found(trained, f"parity_{name}")
    assert actual["read"] == expected["read"]


@pytest.mark.parity
@pytest.mark.parametrize("name", PARITY)
def test_numbers_equal_the_references(name: str, trained: Path, reference: Path) -> None:
    """With compat="5": losses, norms, rates and evaluations, bit for bit, whoever makes optimizer and schedule."""
    expected, actual = found(reference, name, "reference"), found(trained, f"parity_{name}")
    assert expected["wrapper"] == actual["wrapper"] == "DeepSpeedEngine"
    for key in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        assert actual[key] == expected[key], key
