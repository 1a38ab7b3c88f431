"""Arguments whose class is not ours, as far as the installed reference cannot show it: the real one is in `contract`."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from mainspring import TrainingArguments
from mainspring.arguments.foreign import check_foreign
from mainspring.errors import NotAvailableError


@dataclasses.dataclass
class OlderReference:
    """As a class of the reference in an older version: other defaults, options that have gone since."""

    output_dir: str = "out"
    trackio_space_id: str = "trackio"
    hub_private_repo: bool = False
    group_by_length: bool = False
    warmup_ratio: float = 0.0
    tpu_num_cores: int | None = None
    jit_mode_eval: bool = False


OlderReference.__module__ = "transformers.training_args"


@dataclasses.dataclass
class Derived(OlderReference):
    """A library's config."""

    hub_model_id: str = "mine"


def test_what_an_older_reference_has_by_default_was_not_asked_for() -> None:
    check_foreign(OlderReference())
    check_foreign(OlderReference(warmup_ratio=0.1))
    check_foreign(Derived())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"jit_mode_eval": True}, "jit_mode_eval"),
        ({"tpu_num_cores": 8}, "tpu_num_cores"),
        ({"trackio_space_id": "mine"}, "trackio_space_id"),
    ],
)
def test_what_an_older_reference_was_asked_for_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(NotAvailableError, match=f"^{named}="):
        check_foreign(OlderReference(**given))


def test_ours_pass_until_they_are_changed() -> None:
    args = TrainingArguments("out")
    check_foreign(args)
    args.push_to_hub = True
    args.hub_model_id = "mine"
    with pytest.raises(NotAvailableError) as error:
        check_foreign(args)
    assert {problem.option for problem in error.value.problems} == {"push_to_hub", "hub_model_id"}


def test_an_object_of_no_known_class_is_read_by_the_references_names() -> None:
    check_foreign(SimpleNamespace(compat="theirs", optim="sgd"))
    with pytest.raises(NotAvailableError, match="^hub_model_id="):
        check_foreign(SimpleNamespace(hub_model_id="mine"))
