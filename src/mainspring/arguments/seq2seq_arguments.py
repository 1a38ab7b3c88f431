"""Arguments of sequence-to-sequence training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.arguments.construction import takes_every_spelling
from mainspring.arguments.option import option
from mainspring.arguments.training_arguments import TrainingArguments


@dataclass(kw_only=True)
class GenerationArguments:
    """Generation while evaluating."""

    sortish_sampler: bool = option(False, "Sort training samples roughly by length.")
    predict_with_generate: bool = option(False, "Evaluations generate text.")
    generation_max_length: int | None = option(None, "Longest generated text, in tokens.")
    generation_num_beams: int | None = option(None, "Beams of the search.")
    generation_config: Any = option(None, "Generation configuration: an object, a file or a folder.")


@takes_every_spelling
@dataclass(kw_only=True, repr=False)
class Seq2SeqTrainingArguments(GenerationArguments, TrainingArguments):
    """`TrainingArguments`, and how evaluations generate."""
