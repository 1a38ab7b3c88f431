"""The two language model examples on a small text of its own making."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from examples import causal_language_model as causal, masked_language_model as masked
from tests.examples.runs import Runner, assert_files, assert_resumes, losses, results

PHRASES = ("and it came to pass", "in those days", "the king of the land", "spake unto the people", "saying, Go forth")
SIZES = ["--vocabulary_size", "300", "--max_steps", "30", "--save_steps", "15", "--logging_steps", "10"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    for name, count in {"train": 150, "validation": 12}.items():
        lines = [" ".join(draw.choices(PHRASES, k=6)) for _ in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    files = ["--train_file", str(folder / "train.txt"), "--validation_file", str(folder / "validation.txt")]
    return [*files, *SIZES, "--per_device_train_batch_size", "8", "--learning_rate", "3e-3"]


@pytest.fixture
def run_causal(options: list[str], capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(causal, [*options, "--block_size", "32"], capsys)


@pytest.fixture
def run_masked(options: list[str], capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(masked, [*options, "--max_seq_length", "32"], capsys)


def test_causal_learns_continues_texts_and_goes_on(run_causal: Runner, tmp_path: Path) -> None:
    output = run_causal(tmp_path, "--do_train", "--do_eval", "--do_predict", "--max_predict_samples", "2")
    assert_files(tmp_path, "continuations.txt", "config.json", "tokenizer.json", "model.safetensors", "checkpoint-30")
    series, metrics = losses(tmp_path), results(tmp_path)
    assert len(series) == 3
    assert series[-1] < series[0] - 1
    assert metrics["eval_loss"] < series[0]
    assert 0 < metrics["eval_bits_per_byte"] < metrics["eval_loss"] / 0.69
    lines = (tmp_path / "continuations.txt").read_text().splitlines()
    assert len(lines) == 2
    assert all(" |" in line and len(line) > 60 for line in lines)
    assert "Loss on held-out text" in output
    assert_resumes(run_causal, tmp_path, 30)
    run_causal(tmp_path, "--do_eval")
    assert results(tmp_path)["eval_loss"] == metrics["eval_loss"], "without training, the trained model is measured"


def test_masked_learns_fills_in_words_and_goes_on(run_masked: Runner, tmp_path: Path) -> None:
    output = run_masked(tmp_path, "--do_train", "--do_eval", "--do_predict", "--max_predict_samples", "3")
    assert_files(tmp_path, "filled.txt", "config.json", "tokenizer.json", "model.safetensors", "checkpoint-30")
    series, metrics = losses(tmp_path), results(tmp_path)
    assert len(series) == 3
    assert series[-1] < series[0] - 0.5
    assert metrics["eval_accuracy"] > 0.1, "guessing gives 0.01"
    rows = [line.split("\t") for line in (tmp_path / "filled.txt").read_text().splitlines()]
    assert len(rows) == 3
    assert all("[MASK]" in text and truth and likely for text, truth, likely in rows)
    assert f"accuracy {metrics['eval_accuracy']:.3f}" in output
    assert_resumes(run_masked, tmp_path, 30)


def test_training_goes_on_with_a_trained_model(run_causal: Runner, tmp_path: Path) -> None:
    run_causal(tmp_path / "first", "--do_train", "--save_strategy", "no")
    source = ("--model_name_or_path", str(tmp_path / "first"))
    run_causal(tmp_path / "second", "--do_train", "--save_strategy", "no", "--max_steps", "10", *source)
    assert losses(tmp_path / "second")[0] < losses(tmp_path / "first")[-1]


def test_blocks_hold_the_text_in_order_and_leave_out_the_rest(options: list[str]) -> None:
    paragraphs = [" ".join(PHRASES)] * 4
    tokenizer = causal.new_tokenizer(paragraphs, 300)
    found = causal.blocks(paragraphs, tokenizer, 16, None)
    text = tokenizer.decode([token for block in found for token in block["input_ids"]])
    assert (causal.END.join(paragraphs) + causal.END).startswith(text)
    assert {len(block["input_ids"]) for block in found} == {16}
    assert len(causal.blocks(paragraphs, tokenizer, 16, 2)) == 2

    tokenizer = masked.new_tokenizer(paragraphs, 300)
    found = masked.blocks(paragraphs, tokenizer, 16, None)
    assert all(block["input_ids"][0] == tokenizer.cls_token_id for block in found)
    assert all(block["input_ids"][-1] == tokenizer.sep_token_id for block in found)
    inner = tokenizer.decode([token for block in found for token in block["input_ids"][1:-1]])
    whole = tokenizer.decode(tokenizer(" ".join(paragraphs), add_special_tokens=False)["input_ids"])
    assert whole.startswith(inner)


def test_every_process_makes_the_same_tokenizer() -> None:
    paragraphs = [" ".join(PHRASES), *PHRASES]
    for module in (causal, masked):
        first, *others = (module.new_tokenizer(paragraphs, 300).get_vocab() for _ in range(5))
        assert others == [first] * 4
