"""Options whose machinery is not here yet: each refuses every value but its default, naming itself."""

from __future__ import annotations

import dataclasses

import pytest

from mainspring import Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments import not_yet
from mainspring.arguments.docstring import default_of
from mainspring.errors import NotAvailableError
from tests.arguments.values import FIELDS, another_value


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


@pytest.mark.parametrize("services", ["tensorboard", "all", ["wandb", "mlflow"]])
def test_reporting_services_are_not_available(services: object) -> None:
    with pytest.raises(NotAvailableError, match="report_to"):
        TrainingArguments("out", report_to=services)


def test_all_that_is_not_available_comes_together() -> None:
    with pytest.raises(NotAvailableError) as error:
        TrainingArguments("out", push_to_hub=True, report_to="wandb", hub_model_id="mine")
    assert {p.option for p in error.value.problems} == {"push_to_hub", "report_to", "hub_model_id"}


def test_every_listed_name_is_an_option() -> None:
    assert set(FIELDS) >= not_yet.OPTIONS


def test_a_default_changed_in_a_subclass_is_refused_too() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        hub_model_id: str = "mine"

    with pytest.raises(NotAvailableError, match="hub_model_id"):
        Mine("out")
