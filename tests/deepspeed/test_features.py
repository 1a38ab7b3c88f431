"""Everything else that a run can have, beside DeepSpeed: it acts as with plain data parallelism, or is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.deepspeed.features import FEATURES, STAGES
from tests.deepspeed.read import found

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

RANKS = range(2)
ACTING = [(name, stage) for name, one in FEATURES.items() for stage in one.stages if stage not in one.refused]
REFUSED = [(name, stage) for name, one in FEATURES.items() for stage in one.refused]


def _run(features: Path, name: str, stage: int | None, rank: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = found(features, name, "features", rank)[str(stage)]
    said = facts["said"]
    if name.startswith("fp16") and said is not None:
        assert "does not compute in fp16" in said or "float16" in said, said
        pytest.skip(said)
    return facts


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("name", "stage"), ACTING)
def test_it_acts_as_without_deepspeed(name: str, stage: int, rank: int, features: Path) -> None:
    """Losses, norms, rates, evaluations, and what else it logs."""
    feature, actual, plain = (
        FEATURES[name],
        _run(features, name, stage, rank),
        _run(features, name, None, rank),
    )
    assert actual["said"] is None, actual["said"]
    assert (actual["wrapper"], plain["wrapper"]) == ("DeepSpeedEngine", "DistributedDataParallel")
    assert actual["loss"]
    for key in ("loss", "learning_rate", "eval_loss", *feature.logs, "seen"):
        assert actual[key] == pytest.approx(plain[key], rel=feature.tolerance, nan_ok=True), key
    norms, plain_norms = ([n for n in one["grad_norm"] if n < float("inf")] for one in (actual, plain))
    assert norms == pytest.approx(plain_norms, rel=5 * feature.tolerance)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("name", "stage"), REFUSED)
def test_it_is_refused(name: str, stage: int, rank: int, features: Path) -> None:
    """With an error of ours that names the option and the reason, on every process."""
    said = _run(features, name, stage, rank)["said"]
    assert said is not None
    assert said.startswith(("OptionError: ", "NonFiniteError: "))
    for words in FEATURES[name].why:
        assert words in said


@pytest.mark.parametrize(("name", "stage"), [place for place in ACTING if FEATURES[place[0]].resumes])
def test_it_goes_on_exactly(name: str, stage: int, features: Path) -> None:
    """Bit for bit, from a checkpoint in the middle."""
    facts = _run(features, name, stage)
    assert facts["again"] == {key: facts[key] for key in facts["again"]}


@pytest.mark.parametrize("name", ["skips_loss", "skips_gradient", "skips_half", "skips_offloaded", "skips_spike"])
def test_only_the_spoiled_update_is_left_out(name: str, features: Path) -> None:
    """Not one more, whatever DeepSpeed knows of norms before its step."""
    for stage in FEATURES[name].stages:
        facts = _run(features, name, stage)
        assert all(norm == norm for norm in facts["grad_norm"])
        assert facts["skipped_steps"][-1] == 1


def test_a_compiled_model_is_compiled(features: Path) -> None:
    """By torch, inside the engine."""
    for stage in FEATURES["compiled"].stages:
        assert _run(features, "compiled", stage)["graphs"] > 0


# ---- fp16 ----


@pytest.mark.parametrize("stage", STAGES)
def test_settings_of_the_loss_scale_reach_the_engine(stage: int, features: Path) -> None:
    """All of them."""
    facts = _run(features, "fp16", stage)
    assert facts["scales_by"] == {"init_scale": 256, "scale_window": 100, "min_scale": 1, "delayed_shift": 1} | {
        key: value for key, value in facts["scales_by"].items() if key == "consecutive_hysteresis"
    }
    assert facts["scale"] == 256


@pytest.mark.parametrize("stage", STAGES)
def test_an_overflow_lowers_the_loss_scale(stage: int, features: Path) -> None:
    """DeepSpeed leaves the update out, and it is counted as an overflow; so it is where on_nonfinite would leave it out."""
    for name in ("fp16_overflows", "fp16_skips"):
        facts = _run(features, name, stage)
        assert facts["scale"] == 128
        assert (facts["overflow_steps"][-1], facts["nonfinite_steps"][-1]) == (1, 0)


@pytest.mark.parametrize("stage", [0, 2])
def test_the_loss_scale_grows(stage: int, features: Path) -> None:
    """After a window of updates without an overflow."""
    assert _run(features, "fp16_grows", stage)["scale"] == 512


def test_a_loss_scale_may_stay(features: Path) -> None:
    """A static one, and one that waits for a second overflow."""
    assert _run(features, "fp16_static", 2)["scale"] == 32
    assert _run(features, "fp16_patient", 2)["scale"] == 256
