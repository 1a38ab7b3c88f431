"""Options go to the reference library and come back: as mappings, through its parser, as its enumerations."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import transformers

from mainspring import Seq2SeqTrainingArguments, TrainingArguments

pytestmark = pytest.mark.parity

PAIRS = [
    (TrainingArguments, transformers.TrainingArguments),
    (Seq2SeqTrainingArguments, transformers.Seq2SeqTrainingArguments),
]
PAIR = pytest.mark.parametrize(("ours", "theirs"), PAIRS)
GIVEN: dict[str, Any] = {"output_dir": "out", "use_cpu": True, "eval_strategy": "epoch", "learning_rate": 1e-3}


@PAIR
def test_options_that_the_reference_saved_are_taken(ours: Any, theirs: Any) -> None:
    taken = ours(**theirs(**GIVEN).to_dict()).to_dict()
    made = ours(**GIVEN).to_dict()
    # The reference writes this one although nobody gave it, and the mask of a token whether there is one or not.
    assert taken.pop("restore_callback_states_from_checkpoint") is False
    assert made.pop("restore_callback_states_from_checkpoint") is None
    assert taken == made


@PAIR
def test_the_reference_takes_options_that_we_saved(ours: Any, theirs: Any) -> None:
    names = {field.name for field in dataclasses.fields(theirs)}
    saved = {name: value for name, value in ours(**GIVEN).to_dict().items() if name in names}
    assert theirs(**saved).to_dict() == {**theirs(**GIVEN).to_dict(), "restore_callback_states_from_checkpoint": None}


LINES = [
    "",
    "--learning_rate 1e-4 --max-steps 5 --bf16",
    "--gradient_checkpointing --tf32 false",
    "--activation_checkpointing --report_to none",
    "--eval_strategy steps --eval_steps 0.1 --optim sgd --lr_scheduler_type cosine",
    "--label_names labels other --log_level info --resume_from_checkpoint checkpoint-5",
    "--no_dataloader_pin_memory --include_num_input_tokens_seen true",
    '--lr_scheduler_kwargs {"a":"1"}',
    '--accelerator_config {"non_blocking":"true"}',
]


@pytest.mark.parametrize("line", LINES)
@PAIR
def test_the_references_parser_reads_our_arguments(ours: Any, theirs: Any, line: str) -> None:
    """A script may change the import of its arguments only."""
    words = ["--output_dir", "out", "--use_cpu", *line.split()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (parsed,), (wanted,) = (
            transformers.HfArgumentParser(cls).parse_args_into_dataclasses(words) for cls in (ours, theirs)
        )
    assert isinstance(parsed, ours)
    same = {field.name for field in dataclasses.fields(theirs)} - {
        "restore_callback_states_from_checkpoint",
    }
    assert {name: _plain(getattr(parsed, name)) for name in same} == {
        name: _plain(getattr(wanted, name)) for name in same
    }


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


@PAIR
def test_the_references_help_lists_our_options(ours: Any, theirs: Any) -> None:
    text = transformers.HfArgumentParser(ours).format_help()
    for field in dataclasses.fields(theirs):
        assert f"--{field.name}" in text


def test_the_references_enumerations_are_taken() -> None:
    args = TrainingArguments(
        "out",
        eval_strategy=transformers.IntervalStrategy.EPOCH,
        lr_scheduler_type=transformers.SchedulerType.COSINE,
    )
    assert (args.eval_strategy, args.lr_scheduler_type) == ("epoch", "cosine")
