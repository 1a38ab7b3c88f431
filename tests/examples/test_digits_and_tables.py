"""The examples whose data comes with scikit-learn: images, and a table for a plain module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples import image_classification as images, tabular_regression as table
from mainspring import EvalPrediction
from tests.examples.runs import Runner, assert_files, assert_resumes, losses, results


@pytest.mark.parametrize(("kind", "steps", "rate"), [("vit", 80, "2e-3"), ("resnet", 60, "2e-3")])
def test_images_are_learned_read_and_gone_on_with(
    kind: str, steps: int, rate: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--model_type", kind, "--max_steps", str(steps), "--learning_rate", rate, "--logging_steps", "20"]
    run = Runner(images, [*options, "--save_strategy", "steps", "--save_steps", str(steps // 2)], capsys)
    folder = tmp_path / "out"
    output = run(folder, "--do_train", "--do_eval", "--do_predict", "--max_predict_samples", "50")
    assert_files(folder, "predict_results.json", "predictions.txt", "config.json", "model.safetensors")
    series, metrics = losses(folder), results(folder)
    assert len(series) == steps // 20
    assert series[-1] < series[0] - 0.3
    assert metrics["eval_accuracy"] > 0.25, "guessing gives 0.1"
    rows = [line.split("\t") for line in (folder / "predictions.txt").read_text().splitlines()]
    assert sum(guess == truth for guess, truth in rows) / 50 == pytest.approx(metrics["predict_accuracy"])
    assert f"Accuracy on 50 images of the test: {metrics['predict_accuracy']:.3f}" in output
    assert_resumes(run, folder, steps)
    run(folder, "--do_eval")
    assert results(folder)["eval_accuracy"] == metrics["eval_accuracy"], "the trained model is measured"


def test_a_table_is_learned_and_gone_on_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = Runner(table, ["--num_train_epochs", "8", "--logging_steps", "10"], capsys)
    output = run(tmp_path, "--do_train", "--do_eval", "--do_predict")
    assert_files(tmp_path, "predict_results.json", "predictions.txt", "model.safetensors", "checkpoint-80")
    series, metrics = losses(tmp_path), results(tmp_path)
    assert len(series) == 8
    assert series[-1] < series[0] / 1.5
    assert metrics["predict_r2"] > 0.2, "the mean alone gives 0"
    assert f"Share of the variance explained, 88 patients: {metrics['predict_r2']:.3f}" in output
    assert_resumes(run, tmp_path, 80)
    run(tmp_path, "--do_eval")
    assert results(tmp_path)["eval_r2"] == metrics["eval_r2"], "the trained model is measured"


def test_r2_is_one_for_the_truth_and_zero_for_the_mean() -> None:
    truth = np.array([1.0, 2.0, 6.0])
    assert table.r2(EvalPrediction(truth, truth)) == {"r2": 1.0}
    assert table.r2(EvalPrediction(np.full(3, 3.0), truth)) == {"r2": 0.0}


@pytest.mark.parametrize("module", [images, table])
def test_no_example_is_in_two_parts(module: object) -> None:
    parts = {name: range(2000)[part] for name, part in module.PARTS.items()}  # type: ignore[attr-defined]
    assert sorted(number for part in parts.values() for number in part) == list(range(2000))
