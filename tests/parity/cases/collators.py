"""What collators make of texts, up to the weights of the models that are trained on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.helpers import data, models
from tests.helpers.sides import Side
from tests.parity.harness import Case, Task
from tests.parity.tasks import EVAL_SEED, EVALUATES, LM

_NOT_AN_OPTION = "a collator is an argument, not an option"
_WORKERS = {"dataloader_num_workers": 2}


def collating() -> list[Case]:
    """Collators of both sides on the same ragged texts."""
    seeded, other = _masked(seed=3), _masked(seed=4)
    return [
        Case("masks_with_a_seed", seeded, LM, {"num_train_epochs": 1}),
        Case("other_masks_with_a_seed", other, LM, {"num_train_epochs": 1}),
        Case("masks_with_a_seed_in_workers", seeded, {**LM, **_WORKERS}, {"dataloader_num_workers": 1}),
        Case("masks_of_the_workers_generators", _masked(), {**LM, **_WORKERS}, {"dataloader_num_workers": 1}),
        Case("texts_predicted_as_they_are", _causal(), {**LM, **EVALUATES}, why=_NOT_AN_OPTION),
        Case("texts_laid_end_to_end", _flattened(), LM, why=_NOT_AN_OPTION),
        Case("labelled_tokens", _labelled(), {**LM, **EVALUATES}, why=_NOT_AN_OPTION),
    ]


def _task(model: Callable[[], Any], collator: Callable[[Side], Any], labels: bool = False) -> Task:
    def texts(count: int, seed: int = 0) -> data.Items:
        items = data.ragged_text(count, seed)
        rows = [{key: value.tolist() for key, value in item.items()} for item in items]
        return data.Items(rows if labels else [{"input_ids": row["input_ids"]} for row in rows])

    def inputs(side: Side) -> dict[str, Any]:
        return {
            "train_dataset": texts(14),
            "eval_dataset": texts(7, EVAL_SEED),
            "data_collator": collator(side),
        }

    return Task(model, inputs)


def _tokenizer() -> Any:
    tokenizer = models.word_tokenizer()
    tokenizer.mask_token = "w3"
    return tokenizer


def _masked(seed: int | None = None) -> Task:
    def model() -> Any:
        from transformers import BertForMaskedLM

        return BertForMaskedLM(models.tiny_bert(0.1).config)

    def collator(side: Side) -> Any:
        return side.api.DataCollatorForLanguageModeling(_tokenizer(), seed=seed, mlm_probability=0.4)

    return _task(model, collator)


def _causal() -> Task:
    return _task(
        lambda: models.tiny_gpt2(0.1),
        lambda side: side.api.DataCollatorForLanguageModeling(_tokenizer(), mlm=False, pad_to_multiple_of=4),
    )


def _flattened() -> Task:
    return _task(lambda: models.tiny_gpt2(0.1), lambda side: side.api.DataCollatorWithFlattening(), labels=True)


def _labelled() -> Task:
    def model() -> Any:
        from transformers import BertForTokenClassification

        config = models.tiny_bert(0.1).config
        config.num_labels = config.vocab_size
        return BertForTokenClassification(config)

    return _task(model, lambda side: side.api.DataCollatorForTokenClassification(_tokenizer()), labels=True)
