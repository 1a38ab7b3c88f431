"""Generating evaluations give the reference's numbers and texts with `compat="5"`; by default, the right ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.data import IGNORED, Items
from tests.helpers.seq2seq import PAD, collate_joined, collate_pairs, pairs, tiny_bart, tiny_decoder, tiny_t5
from tests.helpers.sides import QUIET, REFERENCE, SUBJECT, Side, forget_process_state
from tests.parity.harness import SEED_OF_MODELS, seed_all, without_clock

pytestmark = pytest.mark.parity

MODELS = {
    "bart": (tiny_bart, collate_pairs),
    "t5": (tiny_t5, collate_pairs),
    "gpt2": (tiny_decoder, collate_joined),
}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # options, keywords of the evaluation
    "defaults": ({}, {}),
    "short": ({"generation_max_length": 18}, {}),
    "long": ({"generation_max_length": 30}, {}),
    "beams": ({"generation_num_beams": 3}, {"max_new_tokens": 6}),
    "sampled": ({}, {"do_sample": True, "max_length": 24}),
    "early ends": ({}, {"max_length": 24, "eos_token_id": list(range(3, 20))}),
    "no generation": ({"predict_with_generate": False}, {}),
    "loss only": ({"prediction_loss_only": True}, {}),
}


def arguments(side: Side, folder: Path, **options: Any) -> Any:
    forget_process_state()
    merged = {**QUIET, **side.own_options, "predict_with_generate": True, **options}
    return side.api.Seq2SeqTrainingArguments(str(folder), **merged)


def evaluated(
    side: Side, folder: Path, model: str, options: Mapping[str, Any], keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], Any, Any]:
    """Metrics, predictions and labels of an evaluation and a prediction after it."""
    torch.set_num_threads(1)
    seed_all(SEED_OF_MODELS)
    given: list[Any] = []

    def rows(prediction: Any) -> dict[str, float]:
        given.append(prediction)
        return {"rows": float(len(prediction.label_ids))}

    new_model, collate = MODELS[model]
    trainer = side.api.Seq2SeqTrainer(
        new_model(),
        arguments(side, folder, **options),
        data_collator=collate,
        eval_dataset=Items(pairs(7)),
        compute_metrics=rows,
    )
    metrics = trainer.evaluate(**keywords)
    output = trainer.predict(Items(pairs(5, seed=1)), **keywords)
    predictions = [*(np.asarray(one.predictions[0]) for one in given if isinstance(one.predictions, tuple))]
    predictions += [one.predictions for one in given if not isinstance(one.predictions, tuple)]
    return without_clock({**metrics, **output.metrics}), predictions, [one.label_ids for one in given]


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", MODELS)
def test_metrics_and_texts_are_the_references(model: str, case: str, tmp_path: Path) -> None:
    options, keywords = CASES[case]
    expected = evaluated(REFERENCE, tmp_path / "reference", model, options, keywords)
    found = evaluated(SUBJECT, tmp_path / "subject", model, options, keywords)
    assert found[0] == expected[0]
    assert same(found[1], expected[1])
    assert same(found[2], expected[2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_training_with_evaluations_is_the_references(smoothing: float, tmp_path: Path) -> None:
    """Losses, gradients and texts in one run, with dropout: generation draws nothing that training would miss."""

    def with_decoder_inputs(items: Any) -> Any:
        batch = collate_pairs(items)
        return {**batch, "decoder_input_ids": batch["labels"].clamp(min=0).roll(1, dims=1)}

    def logs(side: Side) -> list[Any]:
        seed_all(SEED_OF_MODELS)
        trainer = side.api.Seq2SeqTrainer(
            tiny_bart(dropout=0.1),
            arguments(
                side,
                tmp_path / side.name,
                max_steps=4,
                eval_strategy="steps",
                eval_steps=2,
                label_smoothing_factor=smoothing,
                generation_num_beams=2,
                generation_max_length=24,
            ),
            data_collator=with_decoder_inputs,
            train_dataset=Items(pairs(12, seed=2)),
            eval_dataset=Items(pairs(7)),
            compute_metrics=lambda prediction: {"sum": float(prediction.predictions.sum())},
        )
        trainer.train()
        return [{k: v for k, v in row.items() if k != "total_flos"} for row in without_clock(trainer.state.log_history)]

    assert logs(SUBJECT) == logs(REFERENCE)


def test_only_answers_come_back_by_default_and_the_reference_returns_prompts(tmp_path: Path) -> None:
    """Of a decoder-only model, and generated from the prompt, not from the answer."""
    keywords = {"max_new_tokens": 6}
    theirs = evaluated(REFERENCE, tmp_path / "reference", "gpt2", {}, keywords)[1][0]
    ours = evaluated(Side("default", SUBJECT.package), tmp_path / "ours", "gpt2", {}, keywords)[1][0]
    batch = collate_joined(pairs(4))
    assert np.array_equal(theirs[:4, : batch["input_ids"].shape[1]], batch["input_ids"]), "prompt, answer and padding"
    if SUBJECT.is_reference:
        return
    model = _seeded(tiny_decoder)
    for row, item in zip(ours, pairs(7), strict=True):
        expected = model.generate(item["input_ids"][None], **keywords)[0, len(item["input_ids"]) :].tolist()
        assert row.tolist() == expected + [PAD] * (6 - len(expected))


def test_texts_hold_no_ignored_labels_by_default_and_the_references_may(tmp_path: Path) -> None:
    theirs = evaluated(REFERENCE, tmp_path / "reference", "bart", {}, {})[1][0]
    ours = evaluated(Side("default", SUBJECT.package), tmp_path / "ours", "bart", {}, {})[1][0]
    assert (theirs == IGNORED).any()
    assert SUBJECT.is_reference or not (ours == IGNORED).any()


def _seeded(new_model: Any) -> Any:
    seed_all(SEED_OF_MODELS)
    return new_model().eval()


@pytest.mark.parametrize("source", ["object", "folder"])
def test_a_generation_config_is_loaded_as_by_the_reference(source: str, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=4, num_beams=2)
    config.save_pretrained(tmp_path)
    given = config if source == "object" else str(tmp_path)
    loaded = [side.api.Seq2SeqTrainer.load_generation_config(given).to_dict() for side in (SUBJECT, REFERENCE)]
    assert loaded[0] == loaded[1]
