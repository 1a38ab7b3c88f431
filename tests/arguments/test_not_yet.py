"""Options whose machinery is not here yet: each refuses every value but its default, naming itself."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from mainspring import Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments import not_yet
from mainspring.arguments.docstring import default_of
from mainspring.errors import NotAvailableError

FIELDS = {field.name: field for field in dataclasses.fields(Seq2SeqTrainingArguments)}
HINTS = typing.get_type_hints(Seq2SeqTrainingArguments)
OTHER_VALUES: dict[str, object] = {
    "liger_kernel_config": {"rope": True},
    "accelerator_config": {"split_batches": True},
    "fsdp_config": {"version": 2},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "debug": "underflow_overflow",
    "hub_strategy": "end",
    "optim_target_modules": "all-linear",
    "fsdp": "full_shard",
}


def another_value(name: str) -> object:
    """A value that the option may have, other than its default."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    default = default_of(FIELDS[name])
    kinds = {HINTS[name], *typing.get_args(HINTS[name])}
    return (not default) if bool in kinds else 3 if kinds & {int, float} else "other"


@pytest.mark.parametrize("name", sorted(not_yet.OPTIONS))
def test_an_option_that_is_not_available_says_so(name: str) -> None:
    with pytest.raises(NotAvailableError, match=f"^{name}=.*not available yet") as error:
        Seq2SeqTrainingArguments("out", **{name: another_value(name)})
    assert len(error.value.problems) == 1
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("name", sorted(not_yet.OPTIONS))
def test_its_default_written_out_is_accepted(name: str) -> None:
    written = Seq2SeqTrainingArguments("out", **{name: default_of(FIELDS[name])})
    assert getattr(written, name) == getattr(Seq2SeqTrainingArguments("out"), name)


@pytest.mark.parametrize("name", sorted(not_yet.AVAILABLE))
def test_values_that_are_not_available_say_so(name: str) -> None:
    for choice in FIELDS[name].metadata["choices"]:
        options = {name: choice, "eval_strategy": "epoch"}
        if str(choice) in not_yet.AVAILABLE[name]:
            assert getattr(TrainingArguments("out", **options), name) == choice
        else:
            with pytest.raises(NotAvailableError, match=f"^{name}="):
                TrainingArguments("out", **options)


@pytest.mark.parametrize("services", ["tensorboard", "all", ["wandb", "mlflow"]])
def test_reporting_services_are_not_available(services: object) -> None:
    with pytest.raises(NotAvailableError, match="report_to"):
        TrainingArguments("out", report_to=services)


def test_all_that_is_not_available_comes_together() -> None:
    with pytest.raises(NotAvailableError) as error:
        TrainingArguments("out", push_to_hub=True, optim="lomo", neftune_noise_alpha=5)
    assert {p.option for p in error.value.problems} == {"push_to_hub", "optim", "neftune_noise_alpha"}


def test_every_listed_name_is_an_option() -> None:
    assert set(FIELDS) >= not_yet.OPTIONS | set(not_yet.AVAILABLE)


def test_a_default_changed_in_a_subclass_is_refused_too() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        neftune_noise_alpha: float = 5.0

    with pytest.raises(NotAvailableError, match="neftune_noise_alpha"):
        Mine("out")
