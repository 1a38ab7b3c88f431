"""The settings of Accelerate's loaders: read from every form, read back as an object, refused where nothing does them."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from accelerate.utils import GradientAccumulationPlugin
from transformers.trainer_pt_utils import AcceleratorConfig as ReferencesConfig

from mainspring import TrainingArguments
from mainspring.arguments.accelerator_config import AcceleratorConfig
from mainspring.errors import OptionError
from mainspring.trainer_pt_utils import AcceleratorConfig as FromTheDoor


def read(value: Any) -> Any:
    return TrainingArguments("out", use_cpu=True, accelerator_config=value).accelerator_config


def test_the_settings_are_the_references() -> None:
    ours, theirs = dataclasses.fields(AcceleratorConfig), dataclasses.fields(ReferencesConfig)
    assert [(field.name, field.default) for field in ours] == [(field.name, field.default) for field in theirs]
    assert FromTheDoor is AcceleratorConfig


GIVEN: list[Any] = [
    None,
    {},
    {"non_blocking": True},
    {"dispatch_batches": False},
    {"gradient_accumulation_kwargs": {"sync_each_batch": False}},
    '{"non_blocking": "true", "even_batches": true}',
    ReferencesConfig(non_blocking=True),
]


@pytest.mark.parity
@pytest.mark.parametrize("value", GIVEN, ids=str)
def test_it_reads_back_as_in_the_reference(value: Any) -> None:
    ours = TrainingArguments("out", use_cpu=True, accelerator_config=copy.deepcopy(value))
    theirs = transformers.TrainingArguments("out", use_cpu=True, accelerator_config=value)
    assert isinstance(ours.accelerator_config, AcceleratorConfig)
    assert str(ours.accelerator_config) == str(theirs.accelerator_config)
    saved = ours.to_dict()["accelerator_config"]
    assert type(saved) is dict
    assert saved.items() >= theirs.to_dict()["accelerator_config"].items()
    assert f"accelerator_config={saved}," in str(ours)


def test_a_file_may_hold_it(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.json"
    file.write_text('{"non_blocking": true}')
    for path in (file, str(file)):
        assert read(path) == AcceleratorConfig.from_json_file(path) == AcceleratorConfig(non_blocking=True)
    file.write_text('{"non_blockin": true}')
    with pytest.raises(OptionError, match="^json_file=.*did you mean 'non_blocking'"):
        AcceleratorConfig.from_json_file(file)


def test_the_given_object_is_not_the_options_own() -> None:
    given = AcceleratorConfig(non_blocking=True)
    args = TrainingArguments("out", accelerator_config=given)
    assert args.accelerator_config == given
    given.non_blocking = False
    assert args.accelerator_config.non_blocking is True


def test_saved_options_are_taken_again() -> None:
    args = TrainingArguments("out", use_cpu=True, accelerator_config={"non_blocking": True})
    assert TrainingArguments(**args.to_dict()) == args
    assert TrainingArguments(**json.loads(args.to_json_string())) == args
    assert copy.deepcopy(args) == args
    later = TrainingArguments("out", use_cpu=True)
    later.accelerator_config.non_blocking = True
    assert later == args


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"even_baches": True}, r"\{'even_baches': True\}: there is no such setting.*did you mean 'even_batches'"),
        ({"split_batches": "perhaps"}, "split_batches is a str, not bool; give bool"),
        ({"gradient_accumulation_kwargs": 4}, "gradient_accumulation_kwargs is a int, not None or dict"),
        ('{"split_batches": tru}', "is not JSON: Expecting value at line 1, column 19"),
        ("absent.json", "cannot be read"),
        ("[1]", "is JSON, but no object"),
        (5, "is a int, not None or dict or str"),
        (AcceleratorConfig, "is a type, not None or dict or str"),
        (GradientAccumulationPlugin(num_steps=1), "there is no such setting"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_a_problem(value: Any, said: str) -> None:
    with pytest.raises(OptionError, match=f"^accelerator_config=.*{said}") as error:
        read(value)
    assert {problem.option for problem in error.value.problems} == {"accelerator_config"}


def test_all_wrong_settings_come_together() -> None:
    with pytest.raises(OptionError) as error:
        TrainingArguments("out", seed="x", accelerator_config={"one": 1, "even_batches": "perhaps"})
    assert [(problem.option, problem.value) for problem in error.value.problems] == [
        ("seed", "x"),
        ("accelerator_config", {"one": 1}),
        ("accelerator_config", {"even_batches": "perhaps"}),
    ]


OTHERS: dict[str, Any] = {
    "split_batches": True,
    "dispatch_batches": True,
    "even_batches": False,
    "use_seedable_sampler": False,
    "non_blocking": True,
    "use_configured_state": True,
    "gradient_accumulation_kwargs": {"sync_each_batch": True},
}
"""For each setting a value that is not the default."""


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(AcceleratorConfig)])
def test_every_setting_is_taken_with_any_value(name: str) -> None:
    assert getattr(AcceleratorConfig(), name) != OTHERS[name]
    assert getattr(read({name: OTHERS[name]}), name) == OTHERS[name]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_settings_that_were_options_of_their_own_read_back_as_such() -> None:
    args = TrainingArguments("out", accelerator_config={"dispatch_batches": False, "non_blocking": True})
    assert (args.split_batches, args.dispatch_batches) == (False, False)
    assert TrainingArguments("out").dispatch_batches is None
    args.split_batches = True
    assert args.accelerator_config.split_batches is True
    args.split_batches = False
    assert args.accelerator_config == AcceleratorConfig(dispatch_batches=False, non_blocking=True)


def test_a_number_of_micro_batches_is_that_of_the_option() -> None:
    """As in the reference, but for the same number given twice, which it refuses."""
    given = {"gradient_accumulation_kwargs": {"num_steps": 4}}
    args = TrainingArguments("out", use_cpu=True, accelerator_config=given)
    assert args.gradient_accumulation_steps == 4
    assert TrainingArguments(**args.to_dict()) == args
    with pytest.raises(OptionError, match="num_steps.*gradient_accumulation_steps is 2; give one of the two"):
        TrainingArguments("out", gradient_accumulation_steps=2, accelerator_config=given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_step": 4}, "there is no such keyword; leave it out; did you mean 'num_steps'"),
        ({"num_steps": 0}, "is no number of micro-batches"),
        ({"num_steps": True}, "is no number of micro-batches"),
        ({"sync_each_batch": "yes"}, "is neither True nor False"),
    ],
    ids=str,
)
def test_wrong_keywords_of_accumulation_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read({"gradient_accumulation_kwargs": given})


@pytest.mark.parametrize("name", ["adjust_scheduler", "sync_with_dataloader"])
def test_what_only_scripts_follow_is_told(name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name}.*only what a script prepares follows it"):
        read({"gradient_accumulation_kwargs": {name: False}})


def test_accelerates_own_ways_of_accumulating_are_taken() -> None:
    defaults = GradientAccumulationPlugin(num_steps=1)
    given = {name: getattr(defaults, name) for name in ("adjust_scheduler", "sync_with_dataloader", "sync_each_batch")}
    assert read({"gradient_accumulation_kwargs": given}).gradient_accumulation_kwargs == given
