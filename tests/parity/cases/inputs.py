"""What comes in: seeds, order, kinds of data, columns, label names, whose loss a subclass returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.helpers import data, models
from tests.helpers.sides import Side
from tests.parity.harness import Case, Task
from tests.parity.tasks import (
    EVALUATES,
    LM,
    classifier,
    language_model,
    mean_error,
    regression,
    with_inputs,
    with_model,
)


def randomness() -> list[Case]:
    """Seeds, order and kinds of data."""
    stream = data.Stream(data.points(22))
    even, uneven = (data.Stream(data.points(count)) for count in (16, 10))
    by_two = {"max_steps": 8, "gradient_accumulation_steps": 2}
    workers = {"dataloader_num_workers": 2, "num_train_epochs": 1}
    return [
        Case("seed", regression(0.1), {"seed": 7}, {"seed": 8}),
        Case("data_seed", regression(0.1), {"data_seed": 11}, {"data_seed": 12}),
        Case("seed_and_data_seed", classifier(0.1), {"seed": 3, "data_seed": 5}, {"data_seed": 6}),
        Case(
            "sequential_order",
            regression(),
            {"train_sampling_strategy": "sequential"},
            {"train_sampling_strategy": "random"},
        ),
        *(
            Case(
                f"{strategy}_{seed}",
                language_model(0.1),
                {
                    **LM,
                    **EVALUATES,
                    "train_sampling_strategy": strategy,
                    "gradient_accumulation_steps": 3,
                    "seed": seed,
                },
                {"train_sampling_strategy": "random"},
                drive=_train_and_predict,
            )
            for strategy in ("group_by_length", "batch_rebalance")
            for seed in (42, 7)
        ),
        Case("model_init", _from_model_init(), {"seed": 21}, {"seed": 22}),
        Case("iterable", regression(0.1, train_dataset=stream), {"max_steps": 4}, {"max_steps": 5}),
        Case("iterable_over_epochs", regression(0.1, train_dataset=even), by_two, _ONE_BATCH),
        Case("iterable_ending_inside_an_update", regression(0.1, train_dataset=uneven), by_two, _ONE_BATCH),
        Case("workers_dropout", regression(0.1), workers, {"dataloader_num_workers": 0, "seed": 1}),
    ]


def _train_and_predict(side: Side, build: Any) -> tuple[Any, Any]:
    """Also shows the order in which an evaluation goes."""
    trainer = build()
    return trainer, (trainer.train(), trainer.predict(data.Items(data.ragged_text(7, 5))))


def _from_model_init() -> Task:
    def inputs(side: Side) -> dict[str, Any]:
        return {"model_init": lambda: models.Regressor(0.1)}

    task = with_inputs(regression(), inputs)
    return with_model(task, lambda model: None)


def inputs() -> list[Case]:
    """What the Trainer makes of datasets, columns and label names, and whose loss a subclass returns."""
    three = {**LM, "gradient_accumulation_steps": 3}
    scaled = {flag: _with_mean_loss(language_model(), flag) for flag in (None, False, True)}
    return [
        Case("unused_columns_of_a_table", _with_table(), dict(EVALUATES), {"eval_strategy": "no"}),
        Case("unused_columns_of_items", _with_extra_column(), dict(EVALUATES), {"eval_strategy": "no"}),
        Case("padding_by_a_tokenizer", _with_tokenizer(), {**EVALUATES}, {"eval_strategy": "no"}),
        Case("label_names", _with_targets(), {**EVALUATES, "label_names": ["target"]}, {"label_names": None}),
        *(Case(f"mean_loss_scaled_{flag}", task, three, _ONE_BATCH) for flag, task in scaled.items()),
    ]


_ONE_BATCH = {"gradient_accumulation_steps": 1}


def _with_table() -> Task:
    def table(side: Side) -> dict[str, Any]:
        from datasets import Dataset

        rows = [{**item, "text": f"sentence {index}"} for index, item in enumerate(data.sentences(22))]
        return {"train_dataset": Dataset.from_list(rows), "eval_dataset": Dataset.from_list(rows[:9])}

    return with_inputs(classifier(0.1), table)


def _with_extra_column() -> Task:
    rows = [{**item, "text": f"sentence {index}"} for index, item in enumerate(data.sentences(22))]
    return classifier(0.1, train_dataset=data.Items(rows), eval_dataset=data.Items(rows[:9]))


def _with_tokenizer() -> Task:
    rows = [{**item, "input_ids": item["input_ids"][: 3 + index % 5]} for index, item in enumerate(data.sentences(22))]
    return with_inputs(
        classifier(0.1, train_dataset=data.Items(rows), eval_dataset=data.Items(rows[:9])),
        lambda side: {"processing_class": models.word_tokenizer()},
    )


class _TargetRegressor(models.Regressor):
    """A network whose label argument has a name that nothing suggests is a label."""

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        return super().forward(x, target)


def _with_targets() -> Task:
    rows = [{"x": item["x"], "target": item["labels"]} for item in data.points(22)]
    task = regression(train_dataset=data.Items(rows), eval_dataset=data.Items(rows[:9]), compute_metrics=mean_error)
    return Task(lambda: _TargetRegressor(0.1), task.inputs)


def _with_mean_loss(task: Task, scaled: bool | None) -> Task:
    """A subclass of the first generation: its loss is the micro-batch's mean, and it says so or not."""

    def subclass(side: Side) -> Any:
        trainer: Any = side.api.Trainer

        class MeanLoss(trainer):  # type: ignore[misc]
            loss_is_scaled_for_ga = scaled

            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
                outputs = model(**inputs)
                return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

        return MeanLoss

    return Task(task.model, task.inputs, subclass)
