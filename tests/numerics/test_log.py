"""What every log says of the updates since the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainerCallback
from tests.numerics import runs

NAN = float("nan")


class Measured(Trainer):
    """Notes the norms that clipping has measured."""

    norms: list[float]

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.__dict__.setdefault("norms", []).append(float(norm))
        return norm


def test_every_log_counts_what_is_not_finite_and_what_was_clipped(tmp_path: Path) -> None:
    wrong = {runs.ORDER[13]: NAN}  # in the last update of the first epoch
    run = runs.trainer(tmp_path, runs.rows(wrong=wrong), kind=Measured, logging_steps=3, max_grad_norm=8.0)
    run.train()
    bad = [norm != norm for norm in run.norms]
    assert bad == [False] * 3 + [True] * 5  # the weights are NaN from then on: nothing is left out
    assert runs.logged(run, "nonfinite_steps") == [0, 3]
    above = [norm > 8.0 for norm in run.norms]
    assert 0 < sum(above[:3]) < 3
    assert runs.logged(run, "clipped_fraction") == [sum(above[:3]) / 3, 0.0]


def test_the_logged_loss_is_that_of_the_filter(tmp_path: Path) -> None:
    """As in the reference: the filter puts the mean so far in the place of a loss that is not finite."""
    wrong = {runs.ORDER[5]: NAN}
    found = {}
    for keeps in (True, False):
        run = runs.trainer(
            tmp_path / str(keeps), runs.rows(wrong=wrong), logging_steps=2, logging_nan_inf_filter=keeps, max_steps=2
        )
        run.train()
        found[keeps], counted = runs.losses(run), runs.logged(run, "nonfinite_steps")
        assert counted == [1]
    alone = runs.trainer(tmp_path / "alone", runs.rows(wrong=wrong), max_steps=1)
    alone.train()
    assert found[True] == [pytest.approx((1 + 0.5) * runs.losses(alone)[0] / 2)]
    assert found[False][0] != found[False][0]


def test_the_first_that_were_made_all_the_same_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = runs.trainer(tmp_path, runs.rows(wrong={runs.ORDER[5]: NAN}), logging_steps=3)
    run.train()
    said = [record.getMessage() for record in caplog.records if "made all the same" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("of the last 3 updates, 2 had a NaN or infinite loss or gradient norm")


def test_a_run_that_is_too_short_for_a_log_says_at_its_end_what_went_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.trainer(tmp_path, runs.rows(wrong={runs.ORDER[5]: NAN}), logging_steps=500)
    found = run.train().metrics
    (last,) = run.state.log_history
    assert last["nonfinite_steps"] == found["nonfinite_steps"] == 7
    assert last["train_loss"] == last["train_loss"]  # the filter's, in which nothing is to be seen
    assert "of the last 8 updates, 7 had a NaN or infinite loss" in caplog.text


def test_the_last_log_adds_up_those_before_and_what_came_since(tmp_path: Path) -> None:
    wrong = {runs.ORDER[5]: NAN}
    run = runs.trainer(tmp_path, runs.rows(wrong=wrong), logging_steps=4, on_nonfinite="skip")
    run.train()
    earlier = runs.logged(run, "nonfinite_steps")
    last = run.state.log_history[-1]
    assert (earlier, last["nonfinite_steps"], last["skipped_steps"]) == ([1], 2, 2)
    assert "clipped_fraction" not in last  # a share of some updates adds up to nothing


@pytest.mark.parametrize("compat", ["5", "4.37"])
def test_the_older_generations_count_nothing(compat: str, tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, runs.rows(), compat=compat, max_steps=2, save_strategy="steps", save_steps=1)
    run.train()
    keys = set().union(*run.state.log_history)
    assert keys.isdisjoint({"nonfinite_steps", "clipped_fraction", "overflow_steps", "skipped_steps"})
    assert run._progress.numerics == {}


def test_without_clipping_there_is_no_share_of_it(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, runs.rows(), max_grad_norm=0.0, max_steps=2)
    run.train()
    assert runs.logged(run, "nonfinite_steps") == [0, 0]
    assert runs.logged(run, "clipped_fraction") == []


@pytest.mark.parametrize("step", [1, 2, 4, 5, 7])
def test_counts_go_on_inside_a_window_after_a_resume(step: int, tmp_path: Path) -> None:
    options = {"logging_steps": 3, "save_strategy": "steps", "save_steps": 1, "max_grad_norm": 8.0}
    train = runs.rows(wrong={runs.ORDER[13]: NAN})
    whole = runs.trainer(tmp_path / "whole", train, **options)
    whole.train()
    resumed = runs.trainer(tmp_path / "resumed", train, **options)
    # The weights are NaN by then, which a run of its own could not begin with.
    if step >= 4:
        with pytest.raises(ValueError, match="NaN or infinite"):
            resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}")
        return
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}")
    assert str(runs.history(resumed)) == str(runs.history(whole))  # as text, for NaN is not equal to itself


def test_counts_of_a_window_that_is_clipped_go_on_too(tmp_path: Path) -> None:
    options = {"logging_steps": 8, "save_strategy": "steps", "save_steps": 1, "max_grad_norm": 8.0}
    whole = runs.trainer(tmp_path / "whole", runs.rows(), **options)
    whole.train()
    assert 0 < runs.logged(whole, "clipped_fraction")[0] < 1
    for step in (1, 3, 7):
        resumed = runs.trainer(tmp_path / str(step), runs.rows(), **options)
        resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}")
        assert runs.history(resumed) == runs.history(whole)


def test_what_an_exception_interrupts_counts_on_when_it_is_made_again(tmp_path: Path) -> None:
    """The log had emptied the counts when a callback failed: what is saved then has them still."""

    class Fails(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise RuntimeError("no disk")

    options = {"logging_steps": 4, "save_on_exception": True, "max_grad_norm": 8.0}
    whole = runs.trainer(tmp_path / "whole", runs.rows(), **options)
    whole.train()
    broken = runs.trainer(tmp_path / "broken", runs.rows(), callbacks=[Fails()], **options)
    with pytest.raises(RuntimeError, match="no disk"):
        broken.train()
    resumed = runs.trainer(tmp_path / "broken", runs.rows(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert runs.history(resumed) == runs.history(whole)


class Overflows(Trainer):
    """Its third update overflows in fp16: the loss is finite, and some gradient is not."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 2:
            self.model.last.weight.grad.fill_(float("inf"))
        return loss


@pytest.mark.parametrize("on_nonfinite", ["log", "skip", "raise"])
def test_an_overflow_of_fp16_is_the_scalers_affair(on_nonfinite: str, tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, runs.rows(), kind=Overflows, fp16=True, on_nonfinite=on_nonfinite)
    run._engine.scaler.load_state_dict({**run._engine.scaler.state_dict(), "scale": 16.0})
    run.train()
    assert run.state.global_step == 8
    assert runs.logged(run, "overflow_steps") == [0, 0, 1, 0, 0, 0, 0, 0]
    assert runs.logged(run, "nonfinite_steps") == [0] * 8
    assert run._engine.scaler.get_scale() == 8.0


def test_a_loss_that_is_not_finite_is_left_out_in_fp16_and_the_scale_stays(tmp_path: Path) -> None:
    train = runs.rows(wrong={runs.ORDER[5]: NAN})
    run = runs.trainer(tmp_path, train, fp16=True, on_nonfinite="skip", num_train_epochs=1)
    run._engine.scaler.load_state_dict({**run._engine.scaler.state_dict(), "scale": 16.0})
    run.train()
    assert run.state.global_step == 3
    assert run._engine.scaler.get_scale() == 16.0
    assert runs.logged(run, "nonfinite_steps") == [0, 1, 0]
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
