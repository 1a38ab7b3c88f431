"""`on_nonfinite="raise"`: the run ends before anything is changed, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mainspring import TrainerCallback
from mainspring.errors import MainspringError, NonFiniteError
from tests.numerics import runs

NAN = float("nan")
WRONG = {runs.ORDER[10]: NAN}
"""In the third update."""


def raised(folder: Path, **changes: Any) -> tuple[Any, NonFiniteError]:
    run = runs.trainer(folder, runs.rows(wrong=WRONG), on_nonfinite="raise", **changes)
    with pytest.raises(NonFiniteError) as caught:
        run.train()
    return run, caught.value


def test_the_error_names_step_loss_norm_samples_and_cause(tmp_path: Path) -> None:
    _, error = raised(tmp_path)
    text = str(error)
    assert error.step == 3
    assert text.startswith(
        "update 3 is not finite: loss nan, gradient norm nan; on_nonfinite='raise' ends the run before"
    )
    assert f"samples: [{runs.ORDER[8:12]}]" in text
    assert "batch 2 of epoch 0" in text
    assert "nan in labels" in text
    assert "row 2 of micro-batch 0" in text
    assert isinstance(error, RuntimeError)
    assert isinstance(error, MainspringError)
    (event,) = runs.events(tmp_path)
    assert (event["action"], event["step"]) == ("raise", 3)


def test_all_is_as_after_the_update_before(tmp_path: Path) -> None:
    whole = runs.trainer(tmp_path / "two", runs.rows(wrong=WRONG), max_steps=2, lr_scheduler_type="constant")
    whole.train()
    before = runs.everything(whole)
    run, _ = raised(tmp_path / "raised", lr_scheduler_type="constant")
    after = runs.everything(run)
    assert before.pop("random") != after.pop("random")
    assert before == after
    assert run.state.global_step == 2
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_the_update_before_can_be_saved_and_gone_on_from(tmp_path: Path) -> None:
    """With the sample mended, the resumed run is one that never met it."""
    options = {"save_on_exception": True, "logging_steps": 4}
    _run, _ = raised(tmp_path / "run", **options)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    whole = runs.trainer(tmp_path / "whole", runs.rows(), **options)
    whole.train()
    resumed = runs.trainer(tmp_path / "run", runs.rows(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert runs.everything(resumed) == runs.everything(whole)
    assert runs.history(resumed) == runs.history(whole)


def test_no_event_of_an_update_is_fired(tmp_path: Path) -> None:
    fired: list[tuple[str, int]] = []

    class Tells(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            fired.append(("before", state.global_step))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            fired.append(("after", state.global_step))

    raised(tmp_path, callbacks=[Tells()])
    assert fired == [("before", 0), ("after", 0), ("before", 1), ("after", 1)]


def test_finite_numbers_pass(tmp_path: Path) -> None:
    whole = runs.trainer(tmp_path / "log", runs.rows())
    whole.train()
    run = runs.trainer(tmp_path / "raise", runs.rows(), on_nonfinite="raise")
    run.train()
    assert runs.everything(run) == runs.everything(whole)
    assert runs.history(run) == runs.history(whole)
