"""The token classification example on sentences of its own making."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from examples import token_classification as example
from mainspring import EvalPrediction
from tests.examples.models import tiny_encoder
from tests.examples.runs import Runner, assert_files, assert_resumes, losses, results, write_rows

WORDS = ("trains", "are", "late", "again", "today")
NAMES = ("Paris", "Rome", "Oslo")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Names are capital, and the last word of a sentence is always the same one."""
    tiny_encoder(tmp_path / "model", [*WORDS, *map(str.lower, NAMES), "end", "which"])
    draw = random.Random(0)
    for name, count in {"train": 160, "validation": 20, "test": 7}.items():
        rows = [
            {"text": f"{draw.choice(NAMES)} {' '.join(draw.choices(WORDS, k=draw.randint(1, 5)))}, which end."}
            for _ in range(count)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    files = [("train_file", "train"), ("validation_file", "validation"), ("test_file", "test")]
    options = [word for option, name in files for word in (f"--{option}", str(tmp_path / f"{name}.jsonl"))]
    options += ["--model_name_or_path", str(tmp_path / "model"), "--learning_rate", "1e-2"]
    return Runner(example, [*options, "--max_steps", "30", "--save_steps", "15", "--logging_steps", "10"], capsys)


def test_it_learns_restores_sentences_and_goes_on(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    output = run(folder, "--do_train", "--do_eval", "--do_predict")
    assert_files(folder, "predict_results.json", "restored.txt", "config.json", "model.safetensors", "checkpoint-30")
    series, metrics = losses(folder), results(folder)
    assert len(series) == 3
    assert series[-1] < series[0] / 2
    assert metrics["predict_period_f1"] > 0.9
    assert metrics["predict_capital_f1"] > 0.9
    assert metrics["predict_question_f1"] == 0
    lines = (folder / "restored.txt").read_text().splitlines()
    assert len(lines) == 7
    assert all(line[0].isupper() and line.endswith("end.") for line in lines)
    assert f"Accuracy on the words of 7 sentences: {metrics['predict_accuracy']:.3f}" in output
    assert_resumes(run, folder, 30)


def test_what_a_word_lost_is_its_label() -> None:
    words, labels = example.words_and_labels("On Dec. 19, it's \"new\" (so), isn't it?")
    assert words == ["on", "dec", "19", "it's", "new", "so", "isn't", "it"]
    assert labels == [
        *("capital", "capital period", "lower comma", "lower", "lower", "lower comma", "lower", "lower question"),
    ]
    assert example.restored(words, labels) == "On Dec. 19, it's new so, isn't it?"


def test_only_the_first_token_of_a_word_has_a_label(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder(tmp_path, ["un", "##til", "now"]))
    (row,) = example.encode(["Until now."], tokenizer, 16)
    assert len(row["input_ids"]) == 5
    capital, period = example.LABELS.index("capital"), example.LABELS.index("lower period")
    assert row["labels"] == [-100, capital, -100, period, -100]


def test_scores_count_words_alone() -> None:
    labels = [example.LABELS.index(name) for name in ("capital", "lower comma", "capital period", "lower")]
    guesses = [example.LABELS.index(name) for name in ("capital", "lower", "lower period", "lower")]
    logits = np.eye(len(example.LABELS))[[*guesses, 0]][None]
    found = example.scores(EvalPrediction(logits, np.array([[*labels, -100]])))
    wanted = {"accuracy": 0.5, "capital_f1": 2 / 3, "comma_f1": 0.0, "period_f1": 1.0, "question_f1": 0.0}
    assert found == pytest.approx(wanted)
