from __future__ import annotations

import pytest
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from mainspring.names import OPTIMIZER_NAMES, SCHEDULER_NAMES

OLDER_GENERATION = {"adamw_hf", "adamw_apex_fused"}


@pytest.mark.parity
def test_optimizer_names_are_those_of_both_generations() -> None:
    assert set(OPTIMIZER_NAMES) == {name.value for name in OptimizerNames} | OLDER_GENERATION


@pytest.mark.parity
def test_scheduler_names_are_the_reference_s() -> None:
    assert set(SCHEDULER_NAMES) == {name.value for name in SchedulerType}


@pytest.mark.parametrize("names", [OPTIMIZER_NAMES, SCHEDULER_NAMES])
def test_no_name_stands_twice(names: tuple[str, ...]) -> None:
    assert len(set(names)) == len(names)


def test_the_enumerations_of_the_options_have_the_same_names() -> None:
    from mainspring.arguments import enums

    assert {name.value for name in enums.OptimizerNames} == set(OPTIMIZER_NAMES)
    assert {name.value for name in enums.SchedulerType} == set(SCHEDULER_NAMES)
