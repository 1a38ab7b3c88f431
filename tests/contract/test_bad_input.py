"""Each mistake is one clear error that names the option or argument and the way out, before training time is spent."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import data, models
from tests.helpers.sides import SUBJECT
from tests.parity.tasks import accuracy, mean_error

pytestmark = pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own messages")


class Untouched(models.Regressor):
    """A model that counts how often it is asked for anything."""

    calls = 0

    def forward(self, x: Any, labels: Any = None) -> Any:
        """Count, then compute."""
        type(self).calls += 1
        return super().forward(x, labels)


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    Untouched.calls = 0


def build(folder: Path, options: dict[str, Any] | None = None, **inputs: Any) -> Any:
    """A Trainer that would work, but for `options` and `inputs`."""
    args = SUBJECT.arguments(folder, **{"max_steps": 2, **(options or {})})
    good = {"model": Untouched(), "train_dataset": data.Items(data.points(8))}
    return SUBJECT.api.Trainer(args=args, **{**good, **inputs})


def says(*parts: str) -> str:
    """A pattern that finds every one of `parts`, in any order and case."""
    return "(?is)" + "".join(f"(?=.*{re.escape(part)})" for part in parts)


Mistake = tuple[Callable[[Path], Any], Any, tuple[str, ...]]
"""What a script does wrong, the kinds of error that may say so, and the words that the message must hold."""

AT_CONSTRUCTION: dict[str, Mistake] = {
    "no model": (lambda f: build(f, model=None), Exception, ("model", "model_init")),
    "model and model_init": (lambda f: build(f, model_init=Untouched), ValueError, ("model", "model_init")),
    "model is a class": (lambda f: build(f, model=Untouched), TypeError, ("model", "model_init")),
    "no length, no max_steps": (
        lambda f: build(f, {"max_steps": -1}, train_dataset=data.Stream(data.points(8))),
        ValueError,
        ("train_dataset", "max_steps"),
    ),
    "evaluation without data": (
        lambda f: build(f, {"eval_strategy": "steps", "eval_steps": 1}),
        ValueError,
        ("eval_strategy", "steps", "eval_dataset"),
    ),
    "model_init and optimizers": (
        lambda f: build(f, model=None, model_init=lambda: Untouched(), optimizers=(object(), None)),
        (RuntimeError, ValueError),
        ("model_init", "optimizers"),
    ),
    "optimizers twice": (
        lambda f: build(f, optimizers=(object(), None), optimizer_cls_and_kwargs=(torch.optim.SGD, {})),
        (RuntimeError, ValueError),
        ("optimizers", "optimizer_cls_and_kwargs"),
    ),
    "collator that cannot be called": (lambda f: build(f, data_collator=3), TypeError, ("data_collator",)),
    "label argument called label": (
        lambda f: build(f, model=_TakesLabel()),
        (TypeError, ValueError),
        ("label", "labels"),
    ),
    "batched metrics without compute_result": (
        lambda f: build(
            f,
            {"batch_eval_metrics": True, "eval_strategy": "steps", "eval_steps": 1},
            eval_dataset=data.Items(data.points(4)),
            compute_metrics=accuracy,
        ),
        ValueError,
        ("compute_metrics", "compute_result"),
    ),
    "save best without a metric": (
        lambda f: build(
            f,
            {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": None},
            eval_dataset=data.Items(data.points(4)),
        ),
        ValueError,
        ("save_strategy", "metric_for_best_model"),
    ),
    "unknown option": (lambda f: build(f, {"learning_rte": 1e-3}), TypeError, ("learning_rte", "learning_rate")),
    "unknown schedule": (
        lambda f: build(f, {"lr_scheduler_type": "consine"}),
        ValueError,
        ("lr_scheduler_type", "consine", "cosine"),
    ),
    "unknown optimizer": (
        lambda f: build(f, {"optim": "adamw_troch"}),
        ValueError,
        ("optim", "adamw_troch", "adamw_torch"),
    ),
    "unknown strategy": (
        lambda f: build(f, {"logging_strategy": "step"}),
        ValueError,
        ("logging_strategy", "step", "steps"),
    ),
    "wrong type": (lambda f: build(f, {"learning_rate": "fast"}), (TypeError, ValueError), ("learning_rate", "fast")),
    "batch size of zero": (
        lambda f: build(f, {"per_device_train_batch_size": 0}),
        ValueError,
        ("per_device_train_batch_size", "0"),
    ),
    "negative accumulation": (
        lambda f: build(f, {"gradient_accumulation_steps": -2}),
        ValueError,
        ("gradient_accumulation_steps", "-2"),
    ),
    "negative warm-up": (lambda f: build(f, {"warmup_steps": -1}), ValueError, ("warmup_steps", "-1")),
    "fractional interval above one": (lambda f: build(f, {"logging_steps": 1.5}), ValueError, ("logging_steps", "1.5")),
    "both half precisions": (lambda f: build(f, {"bf16": True, "fp16": True}), ValueError, ("bf16", "fp16")),
    "prefetching without workers": (
        lambda f: build(f, {"dataloader_prefetch_factor": 2}),
        ValueError,
        ("dataloader_prefetch_factor", "dataloader_num_workers"),
    ),
    "strategies that do not match": (
        lambda f: build(
            f,
            {
                "load_best_model_at_end": True,
                "save_strategy": "epoch",
                "eval_strategy": "steps",
                "eval_steps": 1,
            },
            eval_dataset=data.Items(data.points(4)),
        ),
        ValueError,
        ("load_best_model_at_end", "save_strategy", "eval_strategy"),
    ),
    "plateau schedule without evaluation": (
        lambda f: build(f, {"lr_scheduler_type": "reduce_lr_on_plateau"}),
        ValueError,
        ("reduce_lr_on_plateau", "eval_strategy"),
    ),
    "output_dir is a file": (lambda f: build(_file(f)), (ValueError, OSError), ("output_dir",)),
    "output_dir below a file": (lambda f: build(_file(f) / "out"), (ValueError, OSError), ("output_dir",)),
}


class _TakesLabel(torch.nn.Module):
    """The Trainer renames the column `label` to `labels`, so this argument can never be filled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: Any, label: Any = None) -> Any:
        """Never reached."""
        raise AssertionError


def _file(folder: Path) -> Path:
    path = folder / "taken"
    path.write_text("here already")
    return path


@pytest.mark.parametrize("mistake", AT_CONSTRUCTION)
def test_mistake_is_named_at_construction(mistake: str, tmp_path: Path) -> None:
    """What can be known from the arguments alone is said before `train` is called."""
    make, error, parts = AT_CONSTRUCTION[mistake]
    with pytest.raises(error, match=says(*parts)) as caught:
        make(tmp_path)
    assert len(str(caught.value)) < 1000
    assert Untouched.calls == 0


def test_several_mistakes_are_collected(tmp_path: Path) -> None:
    """Whoever wrote three wrong options reads of all three at once, a line each."""
    wrong = {"warmup_steps": -1, "per_device_train_batch_size": 0, "logging_steps": 1.5}
    with pytest.raises(ValueError, match=says(*wrong)) as caught:
        SUBJECT.arguments(tmp_path, **wrong)
    assert len(str(caught.value).splitlines()) >= 3


EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}
BEST = {**EVALUATES, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}

BEFORE_TRAINING: dict[str, Mistake] = {
    "no training data": (lambda f: build(f, train_dataset=None), (ValueError, TypeError), ("train_dataset",)),
    "empty training data": (lambda f: build(f, train_dataset=data.Items([])), ValueError, ("train_dataset", "empty")),
    "no columns left": (
        lambda f: build(f, train_dataset=data.Items([{"text": "a", "note": 1}] * 8)),
        ValueError,
        ("remove_unused_columns", "text"),
    ),
    "no columns left in a table": (
        lambda f: build(f, train_dataset=_table([{"text": "a", "note": 1}] * 8)),
        ValueError,
        ("remove_unused_columns", "text"),
    ),
    "nothing left after drop_last": (
        lambda f: build(f, {"dataloader_drop_last": True}, train_dataset=data.Items(data.points(3))),
        ValueError,
        ("dataloader_drop_last",),
    ),
    "metric that nobody computes": (
        lambda f: build(f, {**BEST, "metric_for_best_model": "acuracy"}, eval_dataset=data.Items(data.points(4))),
        (ValueError, KeyError),
        ("metric_for_best_model", "acuracy"),
    ),
}


def _table(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


@pytest.mark.parametrize("mistake", BEFORE_TRAINING)
def test_mistake_is_named_before_the_first_update(mistake: str, tmp_path: Path) -> None:
    """At construction or at the start of `train`, and before the model is run."""
    make, error, parts = BEFORE_TRAINING[mistake]
    with pytest.raises(error, match=says(*parts)):
        make(tmp_path).train()
    assert Untouched.calls == 0


def test_a_metric_that_compute_metrics_lacks_is_named_with_the_choices(tmp_path: Path) -> None:
    """Only running it shows which keys a metric function returns: the first evaluation says so, with the choices."""
    options = {**BEST, "metric_for_best_model": "acuracy"}
    trainer = build(tmp_path, options, eval_dataset=data.Items(data.points(4)), compute_metrics=mean_error)
    with pytest.raises(KeyError, match=says("acuracy", "eval_mae")):
        trainer.train()
    assert trainer.state.global_step <= 1


def test_resuming_without_a_checkpoint(tmp_path: Path) -> None:
    """`resume_from_checkpoint=True` names the folder that holds none; so does a path that is not there."""
    with pytest.raises(ValueError, match=says("resume_from_checkpoint", str(tmp_path))):
        build(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises((ValueError, OSError), match=says(str(tmp_path / "checkpoint-7"))):
        build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert Untouched.calls == 0


def test_a_batch_without_labels_says_what_the_outputs_hold(tmp_path: Path) -> None:
    """The model returns no loss: the error lists what it returned and which inputs it was given."""
    rows = data.without(data.points(8), "labels")
    with pytest.raises(ValueError, match=says("loss", "logits", "labels")):
        build(tmp_path, train_dataset=data.Items(rows)).train()
    assert Untouched.calls <= 1


def test_evaluating_without_a_dataset(tmp_path: Path) -> None:
    """`evaluate()` needs one from the constructor or the call."""
    with pytest.raises(ValueError, match=says("eval_dataset")):
        build(tmp_path).evaluate()


def test_an_unknown_eval_set_is_named_with_the_choices(tmp_path: Path) -> None:
    """`evaluate("name")` picks from the mapping of eval sets."""
    sets = {"near": data.Items(data.points(4)), "far": data.Items(data.points(4))}
    with pytest.raises((ValueError, KeyError), match=says("nere", "near", "far")):
        build(tmp_path, eval_dataset=sets).evaluate("nere")


@pytest.mark.parametrize("answer", ["stop", 3, ["should_save"]])
def test_a_callback_that_returns_nonsense_is_named(answer: object, tmp_path: Path) -> None:
    """Neither None, a control nor a mapping of flags."""

    class Odd(SUBJECT.api.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            return answer

    with pytest.raises(TypeError, match=says("Odd", "on_step_end")):
        build(tmp_path, callbacks=[Odd()]).train()


def test_a_callback_of_another_kind_is_refused_at_construction(tmp_path: Path) -> None:
    """A function in place of a callback is a common slip."""
    with pytest.raises(TypeError, match=says("callback")):
        build(tmp_path, callbacks=[print])


def test_an_option_that_is_not_available_yet_names_itself(tmp_path: Path) -> None:
    """Never ignored."""
    with pytest.raises(ValueError, match=says("hub_model_id", "not available yet")):
        SUBJECT.arguments(tmp_path, hub_model_id="mine")
