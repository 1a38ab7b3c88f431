"""Our own options: what they resolve to, on our arguments and on those of the reference."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import transformers

from mainspring import TrainingArguments
from mainspring.arguments.compat import BEHAVIOURS, COMPAT, Behaviour
from mainspring.arguments.own import own_options


@pytest.mark.parametrize("compat", COMPAT)
def test_a_generation_is_one_option(compat: str) -> None:
    assert own_options(TrainingArguments("out", compat=compat)) == BEHAVIOURS[compat]


def test_ours_is_the_default() -> None:
    assert own_options(TrainingArguments("out")) == BEHAVIOURS["none"] == Behaviour()


@pytest.mark.parity
def test_foreign_arguments_are_read_by_the_references_names_only() -> None:
    @dataclasses.dataclass
    class Foreign(transformers.TrainingArguments):
        compat: str = "5"
        eval_loss_reduction: str = "whatever"
        resume_log_window: bool = False

    assert own_options(transformers.TrainingArguments("out", use_cpu=True)) == Behaviour()
    assert own_options(Foreign("out", use_cpu=True)) == Behaviour()
    asked = transformers.TrainingArguments("out", use_cpu=True, restore_callback_states_from_checkpoint=True)
    assert own_options(asked).restore_callback_states is True


@pytest.mark.parametrize("compat", ["5", "4.37"])
@pytest.mark.parametrize("reduction", ["token", "batch_mean"])
def test_a_single_option_wins_over_compat(reduction: str, compat: str) -> None:
    args = TrainingArguments(
        "out",
        compat=compat,
        eval_loss_reduction=reduction,
        resume_log_window=True,
        restore_callback_states_from_checkpoint=True,
    )
    chosen = {"eval_loss_reduction": reduction, "resume_log_window": True, "restore_callback_states": True}
    assert own_options(args) == replace(BEHAVIOURS[compat], **chosen)


def test_each_can_be_given_up_alone() -> None:
    args = TrainingArguments("out", resume_log_window=False, restore_callback_states_from_checkpoint=False)
    assert own_options(args) == Behaviour(resume_log_window=False, restore_callback_states=False)
