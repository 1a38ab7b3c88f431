"""The text classification example on sentences of its own making."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from examples import text_classification as example
from tests.examples.models import tiny_encoder
from tests.examples.runs import QUIET, Runner, assert_files, assert_resumes, losses, printed_losses, results, write_rows

GOOD, BAD = ("fine", "lovely", "great"), ("poor", "awful", "dull")
NEUTRAL = ("the", "film", "was", "and", "so")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model and data: one word of each sentence tells what it feels."""
    folder = tmp_path_factory.mktemp("sentences")
    tiny_encoder(folder / "model", [*GOOD, *BAD, *NEUTRAL])
    draw = random.Random(0)
    for name, count in {"train": 192, "validation": 33, "test": 17}.items():
        rows = []
        for _ in range(count):
            label = draw.randrange(2)
            words = [draw.choice((BAD, GOOD)[label]), *draw.choices(NEUTRAL, k=draw.randint(1, 8))]
            draw.shuffle(words)
            rows.append({"text": " ".join(words), "label": ("bad", "good")[label]})
        write_rows(folder / f"{name}.jsonl", rows)
    return [
        *("--model_name_or_path", str(folder / "model"), "--train_file", str(folder / "train.jsonl")),
        *("--validation_file", str(folder / "validation.jsonl"), "--test_file", str(folder / "test.jsonl")),
        *("--max_seq_length", "16", "--per_device_train_batch_size", "16", "--learning_rate", "4e-3"),
        *("--num_train_epochs", "6", "--save_steps", "36", "--logging_steps", "12"),
    ]


@pytest.fixture
def run(options: list[str], capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(example, options, capsys)


def test_it_learns_evaluates_predicts_and_goes_on(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    output = run(folder, "--do_train", "--do_eval", "--do_predict")
    assert_files(folder, "predict_results.json", "predictions.txt", "config.json", "model.safetensors", "checkpoint-72")
    series = losses(folder)
    assert len(series) == 6
    assert series[-1] < series[0] / 2
    metrics = results(folder)
    assert metrics["train_samples_per_second"] > 0
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["predict_accuracy"] > 0.9
    rows = [line.split("\t") for line in (folder / "predictions.txt").read_text().splitlines()]
    assert len(rows) == 17
    assert sum(guess == truth for guess, truth, _ in rows) / 17 == pytest.approx(metrics["predict_accuracy"])
    assert f"Accuracy on 33 sentences for validation: {metrics['eval_accuracy']:.3f}" in output
    assert_resumes(run, folder, 72)


def test_without_training_the_trained_model_is_measured(options: list[str], run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(folder, "--do_train", "--do_eval")
    trained = results(folder)["eval_accuracy"]
    run(folder, "--do_eval", "--model_name_or_path", str(folder))
    assert results(folder)["eval_accuracy"] == trained
    files = options[options.index("--train_file") : options.index("--max_seq_length")]
    run.with_words("--output_dir", str(folder), "--do_predict", *files, *QUIET)
    assert results(folder)["predict_accuracy"] > 0.9, "what the output folder holds is the default"


def test_a_run_that_was_cut_short_goes_on_to_the_same_end(run: Runner, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        run(folder, "--do_train", "--save_total_limit", "2")
    shutil.rmtree(parts / "checkpoint-72")
    (parts / "model.safetensors").unlink()
    output = run(parts, "--do_train", "--save_total_limit", "2")
    assert f"Going on from {parts / 'checkpoint-36'}" in output
    assert printed_losses(output) == 3, "the second half"
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(parts) == losses(whole)


def test_a_folder_of_something_else_is_not_written_into(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty and holds no checkpoint"):
        run(tmp_path, "--do_train")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    run(tmp_path, "--do_train", "--overwrite_output_dir", "--max_steps", "1")
    assert {"thesis.txt", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_overwriting_begins_anew(run: Runner, tmp_path: Path) -> None:
    run(tmp_path, "--do_train", "--max_steps", "2", "--save_steps", "2")
    output = run(tmp_path, "--do_train", "--max_steps", "1", "--save_steps", "1", "--overwrite_output_dir")
    assert "Going on" not in output
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 1


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_options_may_stand_in_a_file(suffix: str, options: list[str], run: Runner, tmp_path: Path) -> None:
    pairs = {flag.removeprefix("--"): value for flag, value in zip(options[::2], options[1::2], strict=True)}
    numbers = {"max_seq_length": 16, "per_device_train_batch_size": 16, "learning_rate": 0.01, "save_steps": 36}
    numbers |= {"num_train_epochs": 1, "logging_steps": 12, "max_eval_samples": 5}
    switches = {"do_train": True, "do_eval": True, "use_cpu": True, "disable_tqdm": True}
    file = tmp_path / f"options.{suffix}"
    file.write_text(json.dumps({**pairs, **numbers, **switches, "output_dir": str(tmp_path / "out")}))
    assert "Accuracy on 5 sentences" in run.with_words(str(file))


def test_nothing_to_do_and_missing_files_are_said(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Nothing to do"):
        run(tmp_path / "out")
    with pytest.raises(SystemExit, match="none.jsonl is missing"):
        run(tmp_path / "out", "--do_eval", "--validation_file", str(tmp_path / "none.jsonl"))
    assert not (tmp_path / "out").exists()


def test_sentences_of_two_parts_are_encoded_as_pairs(options: list[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options[1])
    row = {"text": "the film", "text_pair": "was great", "label": "b"}
    (encoded,) = example.encode([row], tokenizer, {"a": 0, "b": 1}, 16)
    assert encoded["labels"] == 1
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
