"""The evaluation loop: every sample once, whatever the batch; what is kept, what is given to metrics, what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from mainspring import Trainer
from mainspring.arguments.own import bytes_of
from mainspring.evaluation import EvaluationLoop
from tests.evaluation.runs import accuracy, texts, timeless, trainer
from tests.helpers import data, models


def regression(folder: Path, rows: Any, **options: Any) -> Trainer:
    return trainer(folder, models.Regressor(), eval_dataset=rows, **options)


# --- counts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 17),
    batch=st.integers(1, 6),
    accumulation=st.one_of(st.none(), st.integers(1, 4)),
    concat=st.booleans(),
    stream=st.booleans(),
)
def test_every_sample_counts_once(
    rows: int, batch: int, accumulation: int | None, concat: bool, stream: bool, tmp_path: Path
) -> None:
    seen = []

    def count(prediction: Any) -> dict[str, float]:
        labels = prediction.label_ids if concat else np.concatenate(prediction.label_ids)
        seen.append(labels)
        return {"rows": len(labels)}

    points = data.points(rows, 3)
    evaluated = regression(
        tmp_path,
        data.Stream(points) if stream else data.Items(points),
        compute_metrics=count,
        per_device_eval_batch_size=batch,
        eval_accumulation_steps=accumulation,
        eval_do_concat_batches=concat,
    )
    metrics = evaluated.evaluate()
    assert metrics["eval_rows"] == rows
    assert seen[0].tolist() == [np.float32(point["labels"]) for point in points]
    with torch.no_grad():
        x, y = torch.stack([p["x"] for p in points]), torch.tensor([p["labels"] for p in points])
        wanted = nn.functional.mse_loss(evaluated.model(x)["logits"], y)
    assert metrics["eval_loss"] == pytest.approx(float(wanted), rel=1e-5)


class Divided(data.Stream):
    """A stream whose workers share its rows."""

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        rows = self.items if worker is None else self.items[worker.id :: worker.num_workers]
        return iter(rows)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [data.Items, Divided])
def test_workers_neither_repeat_nor_lose_a_sample(kind: Any, workers: int, tmp_path: Path) -> None:
    seen: list[Any] = []

    def keep(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {}

    points = data.points(11, 3)  # in batches of four: with two workers, one of them has the short one
    evaluated = regression(tmp_path, kind(points), compute_metrics=keep, dataloader_num_workers=workers)
    loss = evaluated.evaluate()["eval_loss"]
    with torch.no_grad():
        wanted = evaluated.model(torch.stack([point["x"] for point in points]))["logits"]
    labels = np.float32([point["labels"] for point in points])
    rows = np.arange(11) if kind is data.Items else np.argsort(labels)  # a divided stream has no order
    found = np.arange(11) if kind is data.Items else np.argsort(seen[0].label_ids)
    assert seen[0].label_ids[found].tolist() == labels[rows].tolist()
    assert seen[0].predictions[found] == pytest.approx(wanted.numpy()[rows], rel=1e-5)
    assert loss == pytest.approx(float(((wanted.numpy() - labels) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("longer", [True, False])
def test_a_length_that_is_not_true_does_no_harm(longer: bool, tmp_path: Path) -> None:
    """Data sets that say they are longer, or shorter, than what a loader of the user's gives."""

    class Own(Trainer):
        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            rows = data.points(10, 3)
            loader = torch.utils.data.DataLoader(data.Stream(rows), batch_size=4)
            loader.dataset.__class__ = type("Sized", (data.Stream,), {"__len__": lambda self: 15 if longer else 6})
            return loader

    seen: list[Any] = []

    def keep(prediction: Any) -> dict[str, float]:
        seen.append(prediction.label_ids)
        return {}

    trainer(tmp_path, models.Regressor(), Own, compute_metrics=keep).evaluate()
    assert seen[0].tolist() == [np.float32(point["labels"]) for point in data.points(10, 3)]


# --- losses ----------------------------------------------------------------------------------------------------------


def test_a_loss_by_token_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    losses = [
        texts(tmp_path, eval_loss_reduction=reduction, per_device_eval_batch_size=batch).evaluate()["eval_loss"]
        for reduction in ("token", "auto", "batch_mean")
        for batch in (1, 2, 4, 9)
    ]
    by_token, by_default, by_batch = losses[:4], losses[4:8], losses[8:]
    assert by_token == pytest.approx([by_token[0]] * 4, rel=1e-5)
    assert by_default == by_token
    assert len({round(loss, 5) for loss in by_batch}) == 4
    assert by_batch[-1] == pytest.approx(by_token[-1])  # one batch: its mean is that of its tokens


@pytest.mark.parametrize("reduction", ["token", "auto"])
def test_a_loss_by_token_depends_on_neither_order_nor_padding(reduction: str, tmp_path: Path) -> None:
    rows = data.ragged_text(9, seed=1)

    def loss(items: list[Any], collate: Any) -> float:
        torch.manual_seed(1)
        run = trainer(
            tmp_path,
            models.tiny_gpt2(),
            eval_dataset=data.Items(items),
            data_collator=collate,
            eval_loss_reduction=reduction,
        )
        return run.evaluate()["eval_loss"]

    wanted = loss(rows, data.collate_text)
    assert loss(rows[::-1], data.collate_text) == pytest.approx(wanted, rel=1e-5)
    assert loss(rows, data.collate_to_full_length) == pytest.approx(wanted, rel=1e-5)


def test_batch_means_are_weighted_by_samples(tmp_path: Path) -> None:
    evaluated = texts(tmp_path, eval_loss_reduction="batch_mean", per_device_eval_batch_size=4)
    rows = evaluated.eval_dataset.items
    means = []
    for start in range(0, len(rows), 4):
        batch = data.collate_text(rows[start : start + 4])
        with torch.no_grad():
            means += [float(evaluated.model.eval()(**batch).loss)] * len(rows[start : start + 4])
    assert evaluated.evaluate()["eval_loss"] == pytest.approx(np.mean(means), rel=1e-5)


@pytest.mark.parametrize("reduction", ["auto", "token", "batch_mean"])
@pytest.mark.parametrize("hides", [True, False])
def test_a_loss_that_is_not_finite(reduction: str, hides: bool, tmp_path: Path) -> None:
    points = data.points(6, 3)
    points[1]["labels"] = float("nan")
    evaluated = regression(
        tmp_path,
        data.Items(points),
        per_device_eval_batch_size=2,
        eval_loss_reduction=reduction,
        logging_nan_inf_filter=hides,
    )
    loss = evaluated.evaluate()["eval_loss"]
    if hides:
        rest = regression(tmp_path, data.Items(points[2:]), per_device_eval_batch_size=2).evaluate()
        assert loss == pytest.approx(rest["eval_loss"])
    else:
        assert np.isnan(loss)


# --- what is kept ----------------------------------------------------------------------------------------------------


class Spy:
    """What an evaluation has kept, in bytes, when it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved: list[int] = []
        self.in_files: list[bool] = []
        finish = EvaluationLoop.finish

        def spy(loop: EvaluationLoop, prefix: str) -> Any:
            shelf = loop.kept._trees[0]._shelf
            of_losses = sum(len(held) for held in vars(loop.losses).values() if isinstance(held, list))
            self.reserved.append(shelf._reserved + 4 * of_losses)
            self.in_files.append(shelf.in_files)
            return finish(loop, prefix)

        monkeypatch.setattr(EvaluationLoop, "finish", spy)


def test_without_a_metric_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    trainer(tmp_path).evaluate()
    texts(tmp_path).evaluate()
    trainer(tmp_path, compute_metrics=accuracy, prediction_loss_only=True).evaluate()
    trainer(tmp_path, prediction_loss_only=True).predict(data.Items(data.sentences(5)))
    assert spy.reserved == [0, 0, 0, 0]
    trainer(tmp_path, compute_metrics=accuracy).evaluate()
    assert spy.reserved[-1] == 10 * 2 * 4 + 10 * 8  # logits and labels


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("limit", [0, 120, "1KB"])
def test_beyond_the_limit_the_same_arrays_lie_in_a_file(
    limit: Any, concat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    given: list[Any] = []

    def keep(prediction: Any) -> dict[str, float]:
        given.append(prediction)
        return {}

    for eval_memory_limit in (limit, "2GB"):
        texts(
            tmp_path,
            compute_metrics=keep,
            eval_memory_limit=eval_memory_limit,
            eval_do_concat_batches=concat,
            include_for_metrics=["inputs", "loss"],
        ).evaluate()
    assert spy.in_files == [True, False]
    for found, wanted in zip(given[0], given[1], strict=True):
        pairs = [(found, wanted)] if concat else zip(found, wanted, strict=True)
        for one, other in pairs:
            assert isinstance(one, np.memmap)
            assert type(other) is np.ndarray
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("2GB", 2 * 10**9),
        ("2 GiB", 2**31),
        ("1.5m", 1_500_000),
        ("10", 10),
        (7, 7),
        ("10B", 10),
        ("many", None),
        ("1PB", None),
        (float("inf"), None),
        ("9" * 400, None),
    ],
)
def test_sizes(size: Any, wanted: int | None) -> None:
    assert bytes_of(size) == wanted


# --- what metrics are given, and what comes out ----------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Several outputs, two labels, and objects."""

    main_input_name = "x"

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(models.FEATURES, 3)
        self.named = named

    def forward(self, x: Tensor, labels: Tensor, side: Tensor | None = None) -> dict[str, Any]:
        logits = self.head(x)
        names = {"names": [f"row {float(row):.3f}" for row in labels]} if self.named else {}
        return {"loss": logits.mean(), "logits": logits, "hidden": x, **names}


def two_labels(count: int) -> data.Items:
    return data.Items([{**item, "side": float(index)} for index, item in enumerate(data.points(count, 3))])


def test_keys_can_be_left_out_and_labels_named(tmp_path: Path) -> None:
    rows = two_labels(6)
    evaluated = trainer(tmp_path, TwoHeads(), eval_dataset=rows)
    whole = evaluated.predict(rows)
    assert [part.shape for part in whole.predictions] == [(6, 3), (6, 4)]
    assert whole.label_ids.shape == (6,)
    assert evaluated.predict(rows, ignore_keys=["hidden"]).predictions.shape == (6, 3)
    named = trainer(tmp_path, TwoHeads(), eval_dataset=rows, label_names=["labels", "side"]).predict(rows)
    assert named.label_ids[1].tolist() == [0, 1, 2, 3, 4, 5]


def test_outputs_that_are_no_tensors(tmp_path: Path) -> None:
    rows = two_labels(5)
    wanted = [f"row {item['labels']:.3f}" for item in rows.items]
    for concat in (True, False):
        evaluated = trainer(tmp_path, TwoHeads(named=True), eval_use_gather_object=True, eval_do_concat_batches=concat)
        found = evaluated.predict(rows).predictions
        names = found[2] if concat else [name for batch in found for name in batch[2]]
        assert names == wanted
    with pytest.raises(TypeError):
        trainer(tmp_path, TwoHeads(named=True)).predict(rows)


@pytest.mark.parametrize("half", ["fp16_full_eval", "bf16_full_eval"])
def test_half_precision_in_full(half: str, tmp_path: Path) -> None:
    dtypes = []

    class Net(models.Regressor):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            dtypes.append(self.hidden.weight.dtype)
            return super().forward(x.to(dtypes[-1]), None if labels is None else labels.to(dtypes[-1]))

    rows = data.Items(data.points(5, 3))
    found = trainer(tmp_path, Net(), eval_dataset=rows, **{half: True}).predict(rows)
    assert set(dtypes) == {torch.float16 if half.startswith("fp16") else torch.bfloat16}
    assert found.predictions.dtype == (np.float16 if half.startswith("fp16") else np.float32)


# --- the best model among several data sets --------------------------------------------------------------------------


def several(folder: Path, metric: str, compute_metrics: Any) -> Trainer:
    return trainer(
        folder,
        train_dataset=data.Items(data.sentences(8)),
        eval_dataset={"near": data.Items(data.sentences(5, 1)), "far": data.Items(data.sentences(6, 2))},
        compute_metrics=compute_metrics,
        metric_for_best_model=metric,
        eval_strategy="epoch",
        save_strategy="no",
        num_train_epochs=1,
    )


@pytest.mark.parametrize("metric", ["near_accuracy", "eval_far_accuracy", "far_loss"])
def test_a_metric_of_any_data_set_may_choose(metric: str, tmp_path: Path) -> None:
    run = several(tmp_path, metric, accuracy)
    run.train()
    key = f"eval_{metric.removeprefix('eval_')}"
    evaluated = next(entry for entry in run.state.log_history if key in entry)
    assert run.state.best_metric == evaluated[key]


@pytest.mark.parametrize(
    ("metric", "function"), [("accuracy", accuracy), ("wide_accuracy", accuracy), ("accuracy", None), ("loss", None)]
)
def test_a_metric_of_no_data_set_is_refused_at_once(metric: str, function: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metric_for_best_model=.*far_.*near_|metric_for_best_model=.*near_.*far_"):
        several(tmp_path, metric, function)


def test_a_metric_that_is_not_returned_is_refused_at_the_first_evaluation(tmp_path: Path) -> None:
    run = several(tmp_path, "near_f1", accuracy)
    with pytest.raises(KeyError, match="eval_far_accuracy, .*eval_near_accuracy"):
        run.train()


# --- memory of recurrent models --------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Gives the number of its call, which it is given again as its memory."""

    def __init__(self, outputs: type) -> None:
        super().__init__()
        self.head = nn.Linear(models.FEATURES, 1)
        self.outputs = outputs
        self.calls = 0
        self.given: list[float | None] = []

    def forward(self, x: Tensor, labels: Tensor | None = None, mems: Any = None) -> Any:
        self.calls += 1
        self.given.append(None if mems is None else float(mems[0][0].detach()))
        assert mems is None or not mems[0].requires_grad
        prediction = self.head(x).squeeze(-1)
        memory = [prediction * 0 + self.calls]
        found = {"logits": prediction, "mems": memory}
        if labels is not None:
            found = {"loss": nn.functional.mse_loss(prediction, labels), **found}
        return found if self.outputs is dict else tuple(found.values())


@pytest.mark.parametrize("outputs", [dict, tuple])
def test_a_memory_goes_from_batch_to_batch_and_begins_anew(outputs: type, tmp_path: Path) -> None:
    rows = data.Items(data.points(8, 3))
    model = Recurrent(outputs)
    run = trainer(
        tmp_path,
        model,
        train_dataset=rows,
        eval_dataset=data.Items(data.points(8, 4)),
        past_index=2,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
    )
    run.train()
    # Four batches an epoch, evaluations of two batches after updates 3, 6 and 8.
    assert model.given == [None, 1, 2, None, 4, 3, None, 7, None, 9, 8, 11, None, 13]
    model.given.clear()
    for _ in range(2):
        run.predict(rows)
    assert model.given == [None, 15, None, 17]
    model.given.clear()
    run.predict(data.Items(data.without(rows.items, "labels")))  # the parts move up where there is no loss
    assert model.given == [None, 19]


def test_a_part_that_the_output_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"past_index=2: the model's output has no such part \(loss, logits\)"):
        regression(tmp_path, data.Items(data.points(4)), past_index=2).evaluate()


def test_without_the_option_there_is_no_memory(tmp_path: Path) -> None:
    model = Recurrent(dict)
    trainer(tmp_path, model, eval_dataset=data.Items(data.points(8, 4))).evaluate()
    assert model.given == [None, None]


def test_metrics_come_with_the_prefix_asked_for(tmp_path: Path) -> None:
    found = trainer(tmp_path, compute_metrics=accuracy).evaluate(metric_key_prefix="dev")
    assert set(timeless(found)) == {"dev_accuracy", "dev_loss", "epoch"}
