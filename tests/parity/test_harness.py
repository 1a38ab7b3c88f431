"""The comparison sees every kind of difference that a wrong Trainer could make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.sides import REFERENCE
from tests.parity.harness import Case, Trace, differences, run, without_clock
from tests.parity.tasks import accuracy, classifier

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A short run of the reference with evaluation."""
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    case = Case("short", classifier(0.1, compute_metrics=accuracy), options, {"seed": 1})
    return run(REFERENCE, case, tmp_path_factory.mktemp("short"))


def _one_ulp(trace: Trace) -> None:
    weight = trace.weights["classifier.bias"]
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))


def _loss_ulp(trace: Trace) -> None:
    trace.logs[0]["loss"] = float(np.nextafter(trace.logs[0]["loss"], 9.0))


SEEDED: dict[str, Callable[[Trace], object]] = {
    "a weight one unit in the last place off": _one_ulp,
    "a loss one unit in the last place off": _loss_ulp,
    "a log missing": lambda trace: trace.logs.pop(2),
    "a log key missing": lambda trace: trace.logs[0].pop("grad_norm"),
    "a log key too many": lambda trace: trace.logs[0].update(extra=1.0),
    "an integer where a float was": lambda trace: trace.logs[-1].update(epoch=1),
    "a loss that is not a number": lambda trace: trace.logs[0].update(loss=float("nan")),
    "a weight missing": lambda trace: trace.weights.pop("classifier.bias"),
    "a weight of another type": lambda trace: trace.weights.update(
        {"classifier.bias": trace.weights["classifier.bias"].double()}
    ),
    "a weight that is not a number": lambda trace: trace.weights["classifier.bias"].fill_(float("nan")),
    "another step count": lambda trace: trace.state.update(global_step=4),
    "a checkpoint too many": lambda trace: trace.checkpoints.append("checkpoint-9"),
    "another training loss": lambda trace: trace.output.__setitem__(1, 0.5),
    "a random number drawn more": lambda trace: trace.random_state.add_(1),
}


@pytest.mark.parametrize("what", SEEDED)
def test_a_seeded_difference_is_named(trace: Trace, what: str) -> None:
    """Each way to be wrong gives at least one line; the untouched copy gives none."""
    wrong = copy.deepcopy(trace)
    assert differences(trace, wrong) == []
    SEEDED[what](wrong)
    assert differences(trace, wrong)


def test_a_tolerance_allows_that_much_and_no_more(trace: Trace) -> None:
    """A relative tolerance covers logs and weights, not counts."""
    near = copy.deepcopy(trace)
    near.logs[0]["loss"] *= 1 + 1e-7
    near.weights["classifier.bias"] *= 1 + 1e-6
    assert differences(trace, near)
    assert differences(trace, near, tolerance=1e-5) == []
    near.logs[0]["loss"] *= 1 + 1e-4
    assert differences(trace, near, tolerance=1e-5)


def test_only_clock_readings_are_left_out() -> None:
    """Losses and counts stay; runtimes and rates go, at any depth."""
    logs = [{"eval_loss": 1.0, "eval_runtime": 2.0, "eval_samples_per_second": 3.0, "step": 4}]
    assert without_clock({"metrics": logs}) == {"metrics": [{"eval_loss": 1.0, "step": 4}]}


def test_two_runs_of_the_reference_are_equal(tmp_path: Path) -> None:
    """What the suite asks of Mainspring the reference grants itself: nothing else in the process leaks into a run."""
    case = Case("twice", classifier(0.1), {"max_steps": 3, "bf16": True}, {"seed": 1})
    first, second = (run(REFERENCE, case, tmp_path / name) for name in ("first", "second"))
    assert differences(first, second) == []


def test_a_case_without_a_way_to_fail_is_refused() -> None:
    """A case must name what switches its feature off, or say why nothing does."""
    with pytest.raises(ValueError, match="say why"):
        Case("vacuous", classifier())
