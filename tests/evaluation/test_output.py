"""`predict(output_file=...)`: the files hold what would have been returned, whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring import Trainer
from mainspring.errors import MissingPackageError, OptionError
from mainspring.evaluation import StreamingAccuracy, output
from mainspring.metrics import EvalLoopOutput
from tests.evaluation.runs import accuracy, texts, timeless, trainer
from tests.helpers import data, models

try:
    import pyarrow.parquet as pyarrow_parquet
except ImportError:
    pyarrow_parquet = None

needs_pyarrow = pytest.mark.skipif(pyarrow_parquet is None, reason="needs pyarrow")
both_formats = pytest.mark.parametrize("suffix", ["npy", pytest.param("parquet", marks=needs_pyarrow)])


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("build", [trainer, texts], ids=["one width", "several widths"])
@pytest.mark.parametrize("metric", [accuracy, StreamingAccuracy(), None], ids=["all", "streaming", "none"])
def test_npy_files_hold_the_arrays(build: Any, metric: Any, tmp_path: Path) -> None:
    wanted = build(tmp_path / "run", compute_metrics=metric)
    wanted = wanted.predict(wanted.eval_dataset)
    writer = build(tmp_path / "run", compute_metrics=metric)
    found = writer.predict(writer.eval_dataset, output_file=tmp_path / "out" / "p.npy")
    assert found.predictions is found.label_ids is None
    assert timeless(found.metrics) == pytest.approx(timeless(wanted.metrics))
    assert files(tmp_path / "out") == ["p.labels.npy", "p.npy"]
    for name, array in (("p.npy", wanted.predictions), ("p.labels.npy", wanted.label_ids)):
        stored = np.load(tmp_path / "out" / name, mmap_mode="r")
        assert stored.dtype == array.dtype
        assert np.array_equal(stored, array)


def test_a_prediction_without_a_file_follows_as_ever(tmp_path: Path) -> None:
    both = trainer(tmp_path / "run")
    both.predict(both.eval_dataset, output_file=tmp_path / "p.npy")
    assert np.array_equal(both.predict(both.eval_dataset).predictions, np.load(tmp_path / "p.npy"))


@needs_pyarrow
@pytest.mark.parametrize("build", [trainer, texts], ids=["one width", "several widths"])
def test_a_parquet_file_has_a_row_for_each_sample(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "ROW_GROUP_BYTES", 40)
    wanted = build(tmp_path / "run")
    wanted = wanted.predict(wanted.eval_dataset)
    writer = build(tmp_path / "run")
    writer.predict(writer.eval_dataset, output_file=str(tmp_path / "p.parquet"))
    stored = pyarrow_parquet.ParquetFile(tmp_path / "p.parquet")
    assert stored.num_row_groups > 1
    table = stored.read()
    assert table.column_names == ["predictions", "labels"]
    for name, arrays in (("predictions", wanted.predictions), ("labels", wanted.label_ids)):
        assert len(table[name]) == len(arrays)
        for row, array in zip(table[name].to_pylist(), arrays, strict=True):
            # Rows are filled up to the widest of their batch only.
            row = np.asarray(row, dtype=array.dtype)
            assert np.array_equal(row, array[: len(row)] if array.ndim else array)
            assert not array.ndim or (array[len(row) :] == -100).all()


@both_formats
def test_outputs_of_several_parts(suffix: str, tmp_path: Path) -> None:
    def two_parts(loss: Any, prediction: Any) -> Any:
        return (loss, prediction, prediction.unsqueeze(-1) * 2) if loss is not None else (prediction,)

    rows = data.Items(data.points(10, 5))
    writer = trainer(tmp_path / "run", models.Regressor(outputs=two_parts), eval_dataset=rows)
    first, second = writer.predict(rows).predictions
    writer.predict(rows, output_file=tmp_path / "out" / f"p.{suffix}")
    if suffix == "npy":
        assert files(tmp_path / "out") == ["p.0.npy", "p.1.npy", "p.labels.npy"]
        assert np.array_equal(np.load(tmp_path / "out" / "p.0.npy"), first)
        assert np.array_equal(np.load(tmp_path / "out" / "p.1.npy"), second)
    else:
        table = pyarrow_parquet.read_table(tmp_path / "out" / "p.parquet")
        assert table.column_names == ["predictions_0", "predictions_1", "labels"]
        assert table["predictions_1"].to_pylist() == second.tolist()


@both_formats
def test_a_prediction_that_fails_leaves_nothing_and_harms_nothing(suffix: str, tmp_path: Path) -> None:
    class Failing(Trainer):
        steps = 0

        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            if self.steps == 3:
                raise ZeroDivisionError
            return super().prediction_step(*args, **kwargs)

    target = tmp_path / "out" / f"p.{suffix}"
    target.parent.mkdir()
    target.write_text("of before")
    writer = trainer(tmp_path / "run", kind=Failing, eval_accumulation_steps=1)
    with pytest.raises(ZeroDivisionError):
        writer.predict(writer.eval_dataset, output_file=target)
    assert files(tmp_path / "out") == [target.name]
    assert target.read_text() == "of before"
    assert writer.predict(writer.eval_dataset).predictions.shape == (10, 2)


@pytest.mark.parametrize("ending", [".partial", ".padded.partial"])
@pytest.mark.parametrize("build", [trainer, texts], ids=["one width", "several widths"])
def test_what_a_killed_prediction_left_does_no_harm(build: Any, ending: str, tmp_path: Path) -> None:
    target = tmp_path / "out" / "p.npy"
    target.parent.mkdir()
    for name in ("p.npy", "p.labels.npy", "p.1.npy"):
        target.with_name(name + ending).write_bytes(b"of before" * 1000)
    wanted = build(tmp_path / "run")
    wanted = wanted.predict(wanted.eval_dataset)
    writer = build(tmp_path / "run")
    writer.predict(writer.eval_dataset, output_file=target)
    assert files(target.parent) == ["p.labels.npy", "p.npy"]
    assert np.array_equal(np.load(target), wanted.predictions)
    assert np.array_equal(np.load(target.with_name("p.labels.npy")), wanted.label_ids)


def test_files_of_an_earlier_prediction_that_this_one_lacks_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of this name only, and not before this one is complete."""
    earlier = ["p.labels.0.npy", "p.labels.1.npy", "p.labels.npy", "p.0.npy", "p.1.npy"]
    others = ["p.first.npy", "p.labels.txt", "p2.npy", "q.0.npy", "p.0.npy.old", "xp.0.npy"]
    for name in earlier + others:
        (tmp_path / name).write_text("of before")
    writer = trainer(tmp_path / "run")
    unlabelled = data.Items(data.without(data.sentences(6, 99), "label"))
    writer.predict(unlabelled, output_file=tmp_path / "p.npy")
    assert files(tmp_path) == sorted([*others, "p.npy", "run"])
    assert all(str(tmp_path / name) in caplog.text for name in earlier)


@both_formats
@pytest.mark.parametrize("rows", [data.Items([]), data.Stream([])], ids=["items", "stream"])
def test_a_prediction_of_nothing_is_an_error(rows: Any, suffix: str, tmp_path: Path) -> None:
    target = tmp_path / "out" / f"p.{suffix}"
    target.parent.mkdir()
    target.write_text("of before")
    with pytest.raises(OptionError, match=r"^output_file=.*no predictions to write: the data set is empty"):
        trainer(tmp_path / "run").predict(rows, output_file=target)
    assert files(target.parent) == [target.name]
    assert target.read_text() == "of before"


def test_labels_alone_are_no_prediction(tmp_path: Path) -> None:
    class LabelsOnly(Trainer):
        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            loss, _, labels = super().prediction_step(*args, **kwargs)
            return loss, None, labels

    writer = trainer(tmp_path / "run", kind=LabelsOnly)
    with pytest.raises(OptionError, match="^output_file=.*no predictions to write"):
        writer.predict(writer.eval_dataset, output_file=tmp_path / "p.npy")
    assert files(tmp_path) == ["run"]


def test_a_prediction_of_losses_alone_is_refused_before_anything_runs(tmp_path: Path) -> None:
    writer = trainer(tmp_path / "run", prediction_loss_only=True)
    with pytest.raises(OptionError, match="^output_file=.*prediction_loss_only=True"):
        writer.predict(None, output_file=tmp_path / "p.npy")


def test_a_loop_of_the_users_own_is_written_too(tmp_path: Path) -> None:
    class Own(Trainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
            return EvalLoopOutput(np.arange(6.0).reshape(3, 2), np.arange(3), {}, 3)

    writer = trainer(tmp_path / "run", kind=Own)
    writer.predict(writer.eval_dataset, output_file=tmp_path / "p.npy")
    assert np.load(tmp_path / "p.npy").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert np.load(tmp_path / "p.labels.npy").tolist() == [0, 1, 2]


def test_names_of_no_known_format_are_refused_before_anything_runs(tmp_path: Path) -> None:
    writer = trainer(tmp_path / "run")
    with pytest.raises(OptionError, match=r"output_file=.*\.npy or \.parquet"):
        writer.predict(None, output_file=tmp_path / "p.csv")


def test_a_missing_pyarrow_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = trainer(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match="pip install pyarrow"):
        writer.predict(None, output_file=tmp_path / "p.parquet")


def test_the_header_is_one_that_numpy_reads(tmp_path: Path) -> None:
    for array in (np.zeros((0, 3), dtype=np.float16), np.arange(4, dtype=">i4"), np.ones((2, 1, 2), dtype=bool)):
        file = tmp_path / "a.npy"
        file.write_bytes(output._npy_header(array.dtype, array.shape) + array.tobytes())
        found = np.load(file)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert np.array_equal(found, array)
