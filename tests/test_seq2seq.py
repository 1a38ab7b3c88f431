"""Evaluations that generate: what reaches `generate`, what comes back, and what the loss is meanwhile."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from mainspring.errors import OptionError
from tests.helpers.data import IGNORED, Item, Items
from tests.helpers.models import POSITIONS, Regressor, word_tokenizer
from tests.helpers.seq2seq import BEGIN, PAD, collate_joined, collate_pairs, pairs, tiny_bart, tiny_decoder, tiny_t5

ROWS = 7  # in batches of four: the last one is short
Model = Callable[[], Any]

ENCODER_DECODER = pytest.mark.parametrize("model", [tiny_bart, tiny_t5])


class Seen:
    """A `compute_metrics` that keeps what it was given."""

    def __call__(self, prediction: Any) -> dict[str, float]:
        self.predictions, self.labels = prediction.predictions, prediction.label_ids
        return {"rows": float(len(self.predictions))}


class Calls:
    """Notes the keywords of every call of a model's `generate`."""

    def __init__(self, model: Any) -> None:
        self.keywords: list[dict[str, Any]] = []
        generate = model.generate

        def noting(**keywords: Any) -> Any:
            self.keywords.append(keywords)
            return generate(**{name: value for name, value in keywords.items() if name != "synced_gpus"})

        model.generate = noting

    def plain(self) -> list[dict[str, Any]]:
        """The keywords that are no inputs."""
        return [{k: v for k, v in one.items() if isinstance(v, (int, type(None)))} for one in self.keywords]


def build(
    folder: Path, model: Any = None, kind: type[Seq2SeqTrainer] = Seq2SeqTrainer, collate: Any = None, **options: Any
) -> Seq2SeqTrainer:
    torch.manual_seed(0)
    model = tiny_bart() if model is None else model() if callable(model) and not hasattr(model, "forward") else model
    inputs = {name: options.pop(name) for name in ("processing_class", "eval_dataset") if name in options}
    args = Seq2SeqTrainingArguments(
        str(folder),
        **{
            "predict_with_generate": True,
            "per_device_eval_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            **options,
        },
    )
    return kind(
        model,
        args,
        data_collator=collate or (collate_pairs if model.config.is_encoder_decoder else collate_joined),
        compute_metrics=Seen(),
        **{"eval_dataset": Items(pairs(ROWS)), **inputs},
    )


def seen(trainer: Seq2SeqTrainer) -> Seen:
    assert isinstance(trainer.compute_metrics, Seen)
    return trainer.compute_metrics


def alone(model: Any, item: Item, **keywords: Any) -> list[int]:
    """What the model generates from one source, without any batch around it."""
    source = item["input_ids"][None]
    generated = model.generate(input_ids=source, attention_mask=torch.ones_like(source), **keywords)[0]
    return (generated if model.config.is_encoder_decoder else generated[source.shape[1] :]).tolist()


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_bart, tiny_t5, tiny_decoder])
def test_every_row_is_what_the_model_says_of_its_source_alone(model: Model, tmp_path: Path) -> None:
    """Whatever else is in the batch; and without the prompt."""
    trainer = build(tmp_path, model)
    trainer.evaluate(max_new_tokens=6)
    rows = seen(trainer).predictions
    for row, item in zip(rows, pairs(ROWS), strict=True):
        expected = alone(trainer.model, item, max_new_tokens=6)
        assert row.tolist() == expected + [PAD] * (rows.shape[1] - len(expected))


@pytest.mark.parametrize(
    ("model", "options", "keywords", "width"),
    [
        (tiny_bart, {}, {}, 21),  # the start, and what `generate` adds by default
        (tiny_bart, {"generation_max_length": 9}, {}, 9),
        (tiny_bart, {"generation_max_length": 9}, {"max_length": 30}, 30),
        (tiny_bart, {"generation_max_length": 9}, {"max_new_tokens": 30}, 31),
        (tiny_decoder, {}, {}, 20),
        (tiny_decoder, {"generation_max_length": 14}, {}, 14),
        (tiny_decoder, {}, {"max_new_tokens": 5}, 5),
    ],
)
def test_texts_have_one_width_and_are_tokens_throughout(
    model: Model, options: dict[str, Any], keywords: dict[str, Any], width: int, tmp_path: Path
) -> None:
    trainer = build(tmp_path, model, **options)
    for _ in range(2):
        trainer.evaluate(**keywords)
        assert seen(trainer).predictions.shape == (ROWS, width)
        assert (seen(trainer).predictions >= 0).all()


def test_texts_that_end_early_are_filled_up_with_padding(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    trainer.evaluate(max_new_tokens=3, eos_token_id=list(range(3, 40)))
    rows = seen(trainer).predictions
    assert rows.shape == (ROWS, 4)
    assert (rows == PAD).any()


def test_labels_come_back_as_they_were(tmp_path: Path) -> None:
    trainer = build(tmp_path, generation_max_length=9)
    trainer.evaluate()
    for row, item in zip(seen(trainer).labels, pairs(ROWS), strict=True):
        assert [token for token in row.tolist() if token not in (IGNORED, PAD)] == item["labels"].tolist()


def test_predict_without_labels(tmp_path: Path) -> None:
    sources = [{"input_ids": item["input_ids"]} for item in pairs(ROWS)]
    output = build(tmp_path).predict(Items(sources), max_new_tokens=4)
    assert output.predictions.shape == (ROWS, 5)
    assert output.label_ids is None
    assert "test_loss" not in output.metrics


def test_padding_is_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w7"
    trainer = build(tmp_path, processing_class=tokenizer, collate=collate_pairs)
    assert trainer._pad_tensors_to_max_len(torch.tensor([[5]]), 3).tolist() == [[5, 7, 7]]


# ---- keywords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "given", "found"),
    [
        ({"generation_max_length": 9, "generation_num_beams": 2}, {}, {"max_length": 9, "num_beams": 2}),
        ({"generation_max_length": 9}, {"max_length": 7}, {"max_length": 7}),
        ({"generation_max_length": 9}, {"max_new_tokens": 7}, {"max_new_tokens": 7}),
        ({"generation_num_beams": 2}, {"num_beams": 3, "max_length": 5}, {"num_beams": 3, "max_length": 5}),
    ],
)
def test_keywords_win_over_options(
    options: dict[str, Any], given: dict[str, Any], found: dict[str, Any], tmp_path: Path
) -> None:
    trainer = build(tmp_path, **options)
    calls = Calls(trainer.model)
    trainer.evaluate(**given)
    trainer.predict(trainer.eval_dataset, **given)
    assert calls.plain() == [found] * 4


def test_keywords_hold_for_one_evaluation(tmp_path: Path) -> None:
    trainer = build(tmp_path, generation_max_length=9)
    calls = Calls(trainer.model)
    trainer.evaluate(max_length=5)
    trainer.evaluate()
    assert [keywords["max_length"] for keywords in calls.plain()] == [5, 5, 9, 9]


def test_keywords_reach_every_data_set_of_a_mapping(tmp_path: Path) -> None:
    trainer = build(tmp_path, eval_dataset={"one": Items(pairs(2)), "two": Items(pairs(3))})
    calls = Calls(trainer.model)
    metrics = trainer.evaluate(max_length=5)
    assert {"eval_one_rows", "eval_two_rows"} <= metrics.keys()
    assert [keywords["max_length"] for keywords in calls.plain()] == [5, 5]


def test_options_reach_a_step_that_is_called_by_itself(tmp_path: Path) -> None:
    trainer = build(tmp_path, generation_max_length=5)
    batch = collate_pairs(pairs(2))
    loss, texts, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    assert loss is not None
    assert texts.shape == (2, 5)
    assert trainer.prediction_step(trainer.model, batch, False, max_length=6)[1].shape == (2, 6)


@pytest.mark.parametrize("compat", ["none", "5"])
def test_an_evaluation_leaves_nothing_behind_for_a_step_after_it(compat: str, tmp_path: Path) -> None:
    """Neither its keywords nor what gathers: also where it failed."""
    trainer = build(tmp_path, generation_max_length=5, compat=compat)
    calls, gather = Calls(trainer.model), trainer.gather_function
    trainer.evaluate(max_length=7, num_beams=2)
    trainer.predict(trainer.eval_dataset, max_length=6)
    trainer.compute_metrics = lambda prediction: {}["missing"]
    with pytest.raises(KeyError, match="missing"):
        trainer.evaluate(max_length=8)
    calls.keywords.clear()
    trainer.prediction_step(trainer.model, collate_pairs(pairs(2)), prediction_loss_only=False)
    assert calls.plain() == [{"max_length": 5}]
    assert trainer.gather_function == gather


def test_a_length_wins_over_new_tokens_of_the_configuration(tmp_path: Path) -> None:
    trainer = build(tmp_path, generation_config={"max_new_tokens": 12}, generation_max_length=5)
    trainer.evaluate()
    assert seen(trainer).predictions.shape == (ROWS, 5)


def test_nothing_is_generated_where_nobody_reads_it(tmp_path: Path) -> None:
    for options in ({"prediction_loss_only": True}, {"predict_with_generate": False}):
        trainer = build(tmp_path, **options)
        calls = Calls(trainer.model)
        assert "eval_loss" in trainer.evaluate()
        assert calls.keywords == []
    trainer = build(tmp_path)
    calls = Calls(trainer.model)
    trainer.compute_metrics = None
    assert "eval_loss" in trainer.evaluate()
    assert calls.keywords == []


def test_processes_that_share_parameters_go_on_together(tmp_path: Path) -> None:
    """Each gathers its parameters for all: who stopped early would leave the others waiting."""
    trainer = build(tmp_path)
    trainer.is_fsdp_enabled = True
    calls = Calls(trainer.model)
    trainer.evaluate(max_length=4)
    trainer.evaluate(max_length=4, synced_gpus=False)
    assert [keywords["synced_gpus"] for keywords in calls.plain()] == [True, True, False, False]


# ---- what the model is shown -----------------------------------------------------------------------------------------


def with_decoder_inputs(items: list[Item]) -> dict[str, Any]:
    batch = collate_pairs(items)
    targets = batch["labels"].clamp(min=0)
    return {**batch, "decoder_input_ids": targets, "decoder_attention_mask": (targets != 0).long()}


@ENCODER_DECODER
def test_the_answer_is_never_shown(model: Model, tmp_path: Path) -> None:
    plain, full = build(tmp_path, model), build(tmp_path, model, collate=with_decoder_inputs)
    calls = Calls(full.model)
    plain.evaluate(max_length=6)
    full.evaluate(max_length=6)
    assert all(keywords.keys().isdisjoint({"labels", "decoder_input_ids"}) for keywords in calls.keywords)
    assert np.array_equal(seen(plain).predictions, seen(full).predictions)


def test_other_labels_change_no_prediction(tmp_path: Path) -> None:
    """Of a decoder-only model, whose input holds the answer: what is generated depends on the prompt alone."""
    others = [{**item, "labels": torch.full((5,), 9)} for item in pairs(ROWS)]
    first, second = build(tmp_path, tiny_decoder), build(tmp_path, tiny_decoder, eval_dataset=Items(others))
    first.evaluate(max_new_tokens=6)
    second.evaluate(max_new_tokens=6)
    assert np.array_equal(seen(first).predictions, seen(second).predictions)


def test_a_start_for_the_decoder_is_kept(tmp_path: Path) -> None:
    def collate(items: list[Item]) -> dict[str, Any]:
        batch = collate_pairs([{"input_ids": item["input_ids"]} for item in items])
        return {**batch, "decoder_input_ids": torch.tensor([[BEGIN, 11, 12]] * len(items))}

    output = build(tmp_path, collate=collate).predict(Items(pairs(ROWS)), max_new_tokens=4)
    assert output.predictions[:, :3].tolist() == [[BEGIN, 11, 12]] * ROWS
    assert output.predictions.shape == (ROWS, 7)


def test_references_beside_a_prompt_give_no_loss(tmp_path: Path) -> None:
    """A decoder-only model cannot be held against labels that do not stand on its input."""
    trainer = build(tmp_path, tiny_decoder, collate=collate_pairs)
    metrics = trainer.evaluate(max_new_tokens=4)
    assert metrics["eval_rows"] == ROWS
    assert "eval_loss" not in metrics


# ---- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@ENCODER_DECODER
def test_the_loss_is_that_of_an_evaluation_without_generation(model: Model, beams: int, tmp_path: Path) -> None:
    """To the last bit, although the encoder runs once for both passes."""
    generating = build(tmp_path, model, generation_num_beams=beams)
    plain = build(tmp_path, model, predict_with_generate=False)
    assert generating.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


@ENCODER_DECODER
def test_the_encoder_runs_once_a_batch(model: Model, tmp_path: Path) -> None:
    trainer = build(tmp_path, model)
    runs = []
    trainer.model.get_encoder().register_forward_hook(lambda *_: runs.append(1))
    trainer.evaluate(max_length=6)
    assert len(runs) == 2
    once = seen(trainer).predictions
    trainer.evaluate(max_length=6, num_beams=2)

    class OwnLoss(Seq2SeqTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            assert "encoder_outputs" not in inputs, "a loss of the user's gets the batch as it is"
            return super().compute_loss(model, inputs, *args, **kwargs)

    twice = build(tmp_path, model, OwnLoss)
    twice.evaluate(max_length=6)
    assert np.array_equal(seen(twice).predictions, once)


def test_an_override_of_the_loss_is_used(tmp_path: Path) -> None:
    class Seven(Seq2SeqTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            return (torch.tensor(7.0), None) if return_outputs else torch.tensor(7.0)

    assert build(tmp_path, kind=Seven).evaluate(max_length=4)["eval_loss"] == 7.0


def test_bfloat16_generates_too(tmp_path: Path) -> None:
    metrics = build(tmp_path, bf16=True).evaluate(max_length=5)
    full = build(tmp_path).evaluate(max_length=5)
    assert metrics["eval_loss"] == pytest.approx(full["eval_loss"], rel=0.05)


# ---- construction ----------------------------------------------------------------------------------------------------


def test_the_configuration_becomes_the_models(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=3, eos_token_id=[2, 5])
    trainer = build(tmp_path, generation_config=config)
    trainer.evaluate()
    assert seen(trainer).predictions.shape == (ROWS, 4)
    trainer.save_model()
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["max_new_tokens"], saved["eos_token_id"]) == (3, [2, 5])
    assert (saved["decoder_start_token_id"], saved["pad_token_id"]) == (BEGIN, PAD), (
        "the model's, where it leaves them open"
    )
    assert config.pad_token_id is None, "the user's own object stays as it was"


def test_a_fresh_model_gets_the_configuration_too(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(
        str(tmp_path), generation_config={"max_new_tokens": 3}, max_steps=1, use_cpu=True, disable_tqdm=True
    )
    data = Items(pairs(4))
    trainer = Seq2SeqTrainer(model_init=lambda: tiny_bart(), args=args, data_collator=collate_pairs, train_dataset=data)
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert trainer.model.generation_config.max_new_tokens == 3


def test_an_invalid_configuration_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="^generation_config=.*early_stopping"):
        build(tmp_path, generation_config={"early_stopping": True, "num_beams": 1})
    with pytest.raises(OptionError, match="^generation_config=.*no such file"):
        build(tmp_path, generation_config=str(tmp_path / "none.json"))


def test_saved_options_make_the_same_trainer(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=3, num_beams=2)
    options = {"predict_with_generate": True, "generation_config": config, "generation_num_beams": 4, "use_cpu": True}
    args = Seq2SeqTrainingArguments(str(tmp_path), generation_max_length=9, **options)
    saved = json.loads(args.to_json_string())
    again = Seq2SeqTrainingArguments(**saved)
    kept = [field.name for field in dataclasses.fields(args) if "generat" in field.name and field.name[-3:] != "fig"]
    assert [getattr(again, name) for name in kept] == [getattr(args, name) for name in kept]
    loaded = Seq2SeqTrainer.load_generation_config(again.generation_config)
    assert (loaded.max_new_tokens, loaded.num_beams) == (3, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("generation_config", 5), ("generation_config", ""), ("generation_max_length", 0), ("generation_num_beams", -1)],
)
def test_what_cannot_be_an_option_is_refused(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name}="):
        Seq2SeqTrainingArguments("out", **{name: value})


def test_a_model_that_cannot_generate_is_refused(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, use_cpu=True)
    with pytest.raises(ValueError, match="^predict_with_generate=True: Regressor has no method generate"):
        Seq2SeqTrainer(Regressor(), args)


def test_a_plain_trainer_says_that_it_does_not_generate(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, use_cpu=True)
    with pytest.warns(UserWarning, match="^predict_with_generate=True is not used"):
        Trainer(tiny_bart(), args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Seq2SeqTrainer(tiny_bart(), args)


def test_plain_arguments_make_a_plain_trainer(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True)
    trainer = Seq2SeqTrainer(tiny_bart(), args, data_collator=collate_pairs, eval_dataset=Items(pairs(3)))
    calls = Calls(trainer.model)
    assert trainer.predict(trainer.eval_dataset).predictions is not None
    assert calls.keywords == []


# ---- in training -----------------------------------------------------------------------------------------------------


def test_training_chooses_the_best_model_by_what_it_generates(tmp_path: Path) -> None:
    trainer = build(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        generation_max_length=POSITIONS // 4,
        load_best_model_at_end=True,
        metric_for_best_model="rows",
    )
    trainer.train_dataset = Items(pairs(8, seed=1))
    trainer.train()
    logged = [logs for logs in trainer.state.log_history if "eval_rows" in logs]
    assert [(logs["step"], logs["eval_rows"]) for logs in logged] == [(2, ROWS), (4, ROWS)]
    assert trainer.state.best_global_step == 2


@pytest.mark.parametrize("model", [tiny_bart, tiny_decoder])
def test_texts_are_written_to_a_file_as_they_are_returned(model: Model, tmp_path: Path) -> None:
    trainer = build(tmp_path / "run", model)
    returned = trainer.predict(trainer.eval_dataset, max_new_tokens=5).predictions
    trainer.predict(trainer.eval_dataset, max_new_tokens=5, output_file=tmp_path / "texts.npy")
    assert np.array_equal(np.load(tmp_path / "texts.npy"), returned)


def test_the_references_arguments_are_read_by_their_names(tmp_path: Path) -> None:
    import transformers

    args = transformers.Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, generation_max_length=6, generation_num_beams=2, use_cpu=True
    )
    trainer = Seq2SeqTrainer(tiny_bart(), args, data_collator=collate_pairs)
    calls = Calls(trainer.model)
    assert trainer.predict(Items(pairs(3))).predictions.shape == (3, 6)
    assert calls.plain() == [{"max_length": 6, "num_beams": 2}]
