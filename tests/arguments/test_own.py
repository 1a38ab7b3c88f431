"""Our own options: what they resolve to, on our arguments and on those of the reference."""

from __future__ import annotations

import dataclasses

import pytest
import transformers

from mainspring import TrainingArguments
from mainspring.arguments.own import OwnOptions, own_options


def test_our_defaults_are_those_for_foreign_arguments() -> None:
    assert own_options(TrainingArguments("out")) == OwnOptions()


@pytest.mark.parity
def test_foreign_arguments_are_read_by_the_references_names_only() -> None:
    @dataclasses.dataclass
    class Foreign(transformers.TrainingArguments):
        compat: str = "5"
        eval_loss_reduction: str = "whatever"
        resume_log_window: bool = False

    assert own_options(transformers.TrainingArguments("out", use_cpu=True)) == OwnOptions()
    assert own_options(Foreign("out", use_cpu=True)) == OwnOptions()
    asked = transformers.TrainingArguments("out", use_cpu=True, restore_callback_states_from_checkpoint=True)
    assert own_options(asked).restore_callback_states is True


def test_the_references_numbers_are_one_option() -> None:
    resolved = own_options(TrainingArguments("out", compat="5"))
    assert resolved.eval_loss_reduction == "sample"
    flags = dataclasses.asdict(resolved)
    del flags["eval_loss_reduction"]
    assert not any(flags.values())


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_a_single_option_wins_over_compat(reduction: str) -> None:
    args = TrainingArguments(
        "out",
        compat="5",
        eval_loss_reduction=reduction,
        resume_log_window=True,
        restore_callback_states_from_checkpoint=True,
    )
    resolved = own_options(args)
    assert (resolved.eval_loss_reduction, resolved.resume_log_window, resolved.restore_callback_states) == (
        reduction,
        True,
        True,
    )


def test_each_can_be_given_up_alone() -> None:
    args = TrainingArguments("out", resume_log_window=False, restore_callback_states_from_checkpoint=False)
    assert own_options(args) == OwnOptions(resume_log_window=False, restore_callback_states=False)
