"""Schedule-free optimizers have two sets of weights: training uses one, and everything that is kept the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.checkpoint import load_torch, load_weights
from tests.helpers.runs import same, weights
from tests.optimizers import rows

pytestmark = [
    pytest.mark.skipif(not rows.is_installed("schedule_free_adamw"), reason="schedulefree is not here"),
    pytest.mark.filterwarnings("error:.*comes on top of.*"),
]
NAMES = ("schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam")


def modes(trainer: Any) -> set[bool]:
    return {group["train_mode"] for group in trainer.optimizer.param_groups}


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a folder."""
    model = rows.tiny_llama()
    load_weights(model, folder)
    return dict(model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_and_the_model_after_training_have_the_weights_to_evaluate(tmp_path: Path, name: str) -> None:
    trainer = rows.trainer(tmp_path, name)
    trainer.train()
    assert modes(trainer) == {False}
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    state = load_torch(tmp_path / "checkpoint-12" / "optimizer.pt")
    assert {group["train_mode"] for group in state["param_groups"]} == {False}
    saved = saved_weights(tmp_path / "checkpoint-12")
    assert all(torch.equal(saved[key], value) for key, value in trainer.model.state_dict().items() if key in saved)
    trainer.save_model(str(tmp_path / "final"))
    assert same(saved_weights(tmp_path / "final"), saved)
    trainer.optimizer.train()
    assert not same(weights(trainer), {**weights(trainer), **saved})


def test_training_goes_on_with_the_other_ones_after_an_evaluation_and_a_save(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "schedule_free_adamw", eval_strategy="steps", eval_steps=3)
    seen = []

    def step(*args: Any, **kwargs: Any) -> Any:
        loss = type(trainer).training_step(trainer, *args, **kwargs)
        seen.append(modes(trainer))
        return loss

    trainer.training_step = step  # type: ignore[method-assign]
    trainer.train()
    assert seen == [{True}] * 12


def test_a_run_with_evaluations_goes_on_exactly(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": False}
    first = rows.trainer(tmp_path, "schedule_free_adamw", **options)
    first.train()
    again = rows.trainer(tmp_path, "schedule_free_adamw", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(weights(first), weights(again))


def test_the_best_model_is_left_as_it_was_saved(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True}
    trainer = rows.trainer(tmp_path, "schedule_free_sgd", **options)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_with_the_numbers_of_the_reference_saving_changes_nothing(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "schedule_free_adamw", compat="5")
    trainer.train()
    assert modes(trainer) == {True}


@pytest.mark.filterwarnings("default:.*comes on top of.*")
def test_another_schedule_on_top_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="lr_scheduler_type='linear' comes on top of optim='schedule_free_adamw'"):
        rows.trainer(tmp_path, "schedule_free_adamw", lr_scheduler_type="linear")


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_share_of_warm_up_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="warmup_steps=0.1: .* warms up by itself, .*give a number of updates"):
        rows.trainer(tmp_path, name, warmup_steps=0.1, lr_scheduler_type="constant")
