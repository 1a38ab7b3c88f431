"""The drop-in promise of `Seq2SeqTrainer`: signatures, and what subclasses of public scripts override and call."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.data import Items
from tests.helpers.seq2seq import collate_pairs, pairs, tiny_bart
from tests.helpers.sides import QUIET, REFERENCE, SUBJECT, Side, forget_process_state

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    "name", ["evaluate", "predict", "prediction_step", "_pad_tensors_to_max_len", "load_generation_config"]
)
def test_methods_take_what_the_references_take(name: str) -> None:
    """And so do positional calls and keywords of subclasses."""

    def shape(side: Side) -> list[Any]:
        parameters = inspect.signature(getattr(side.api.Seq2SeqTrainer, name)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters if p.name != "output_file"]  # ours alone, keyword-only

    assert shape(SUBJECT) == shape(REFERENCE)


def test_the_trainers_are_made_alike() -> None:
    ours, theirs = (inspect.signature(side.api.Seq2SeqTrainer.__init__).parameters for side in (SUBJECT, REFERENCE))
    assert theirs.keys() <= ours.keys()
    assert list(ours)[:12] == list(theirs)[:12], "what scripts pass by position"


def build(folder: Path, mixin: type | None = None, **options: Any) -> Any:
    """A trainer of the side under test, with `mixin` before its class."""
    forget_process_state()
    torch.manual_seed(0)
    base: Any = SUBJECT.api.Seq2SeqTrainer
    made = base if mixin is None else type("Mine", (mixin, base), {})
    options = {**QUIET, **SUBJECT.own_options, "predict_with_generate": True, **options}
    return made(
        tiny_bart(),
        SUBJECT.api.Seq2SeqTrainingArguments(str(folder), **options),
        data_collator=collate_pairs,
        eval_dataset=Items(pairs(5)),
        compute_metrics=lambda prediction: {
            "sum": float(prediction.predictions.sum()),
            "rows": len(prediction.label_ids),
        },
    )


class OwnStep:
    """Changes what every batch gives."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: Any, ignore_keys: Any = None, **kw: Any
    ) -> Any:
        loss, texts, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kw)  # type: ignore[misc]
        return loss * 0 + 5, texts * 0, labels


class OwnPadding:
    """Fills up with a token of its own."""

    def _pad_tensors_to_max_len(self, tensor: Any, max_length: int) -> Any:
        return torch.nn.functional.pad(tensor, (0, max(max_length - tensor.shape[-1], 0)), value=7)


class OwnGenerationConfig:
    """Ignores what it is asked to load."""

    @staticmethod
    def load_generation_config(gen_config_arg: Any) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(max_length=6, pad_token_id=0, decoder_start_token_id=1, eos_token_id=2)


class OwnEvaluate:
    """As in the reference's script of question answering: keywords are kept, and the loop is called."""

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **kw: Any
    ) -> Any:
        self._gen_kwargs = {**kw, "max_length": 4, "num_beams": self.args.generation_num_beams}
        output = self.evaluation_loop(
            self.get_eval_dataloader(eval_dataset),
            description="Evaluation",
            prediction_loss_only=None,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        return {**output.metrics, "length": (output.predictions[:, 4:] != 0).sum()}


def test_an_overridden_step_is_what_counts(tmp_path: Path) -> None:
    metrics = build(tmp_path, OwnStep).evaluate(max_length=6)
    assert (metrics["eval_loss"], metrics["eval_sum"]) == (5.0, 0.0)


def test_overridden_padding_is_used(tmp_path: Path) -> None:
    ends = list(range(3, 40))
    plain = build(tmp_path).predict(Items(pairs(5)), max_length=24, eos_token_id=ends).predictions
    own = build(tmp_path, OwnPadding).predict(Items(pairs(5)), max_length=24, eos_token_id=ends).predictions
    assert own.shape == plain.shape
    assert (own[:, -1] == 7).all()
    assert not (plain[:, -1] == 7).any()


def test_an_overridden_configuration_is_used(tmp_path: Path) -> None:
    trainer = build(tmp_path, OwnGenerationConfig, generation_config="anything")
    assert trainer.predict(Items(pairs(5))).predictions.shape == (5, 6)


def test_keywords_that_a_subclass_keeps_reach_generation(tmp_path: Path) -> None:
    metrics = build(tmp_path, OwnEvaluate, generation_num_beams=2).evaluate()
    assert metrics["length"] == 0
    assert metrics["eval_rows"] == 5
    assert math.isfinite(metrics["eval_loss"])


def test_a_step_takes_keywords_of_its_own(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    batch = collate_pairs(pairs(3))
    loss, texts, labels = trainer.prediction_step(trainer.model, batch, False, max_length=30)
    assert texts.shape[0] == 3
    assert texts.shape[1] > 21, "longer than by default"
    assert labels.shape[0] == 3
    assert loss.ndim == 0
