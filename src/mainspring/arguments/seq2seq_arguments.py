"""Arguments of sequence-to-sequence training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mainspring.arguments.construction import takes_every_spelling
from mainspring.arguments.option import option, positive
from mainspring.arguments.training_arguments import TrainingArguments


def _is_generation_config(value: Any) -> str | None:
    """Whether it can stand for one. Whether there is one, and what it says, is for the trainer to find out."""
    if isinstance(value, Mapping):
        return _are_settings(value)
    stands = isinstance(value, (str, os.PathLike)) or callable(getattr(value, "to_dict", None))
    return None if stands and value != "" else "is neither a GenerationConfig nor settings, a file or a folder"


def _are_settings(value: Mapping[Any, Any]) -> str | None:
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        return f"holds what no generation configuration can: {error}"
    return None


@dataclass(kw_only=True)
class GenerationArguments:
    """Generation while evaluating."""

    sortish_sampler: bool = option(False, "Sort training samples roughly by length.")
    predict_with_generate: bool = option(False, "Predictions of `Seq2SeqTrainer` are generated texts.")
    generation_max_length: int | None = option(
        None, "Longest text, in tokens with those that it starts from; default: the model's.", check=positive
    )
    generation_num_beams: int | None = option(None, "Beams of the search; default: the model's.", check=positive)
    generation_config: Any = option(
        None,
        "Generation configuration of the model: an object or its settings, a file, a folder, or a name on the hub.",
        check=_is_generation_config,
    )


@takes_every_spelling
@dataclass(kw_only=True, repr=False)
class Seq2SeqTrainingArguments(GenerationArguments, TrainingArguments):
    """`TrainingArguments`, and how evaluations generate."""
