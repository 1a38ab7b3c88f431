"""Slips in JSON are told with their place, in text and in files, for every option that JSON may stand for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mainspring import HfArgumentParser, TrainingArguments
from mainspring.arguments.jsontext import JsonSlipError, read_json
from mainspring.errors import OptionError

JSON_OPTIONS = [field.name for field in dataclasses.fields(TrainingArguments) if field.metadata["json"]]

SLIPS = [
    ('{"a": 1,}', "a comma after the last item at line 1, column 8"),
    ('{"a": [1, 2,\n  ]}', "a comma after the last item at line 1, column 12"),
    ('{"a": 1\n ,  }', "a comma after the last item at line 2, column 2"),
    ("{'a': 1}", "a single quote, where JSON has double ones at line 1, column 2"),
    ("{\"a\": 'b'}", "a single quote, where JSON has double ones at line 1, column 7"),
    ('{"a": 1', "the end of the text, where a closing bracket is missing at line 1, column 8"),
    ('{"a": {"b": 1}\n\n', "the end of the text, where a closing bracket is missing at line 1, column 15"),
    ('{"a": 1} // so', "a comment, which JSON has not at line 1, column 10"),
    ('{"a": 1, # so\n"b": 2}', "a comment, which JSON has not at line 1, column 10"),
    ('{\n/* so */ "a": 1}', "a comment, which JSON has not at line 2, column 1"),
    ('{"a": True}', "True, which JSON writes true at line 1, column 7"),
    ('{"a": None}', "None, which JSON writes null at line 1, column 7"),
    ('{"a" 1}', "Expecting ':' delimiter at line 1, column 6"),
    ('{"a": 1}\n}', "Extra data at line 2, column 1"),
]
"""Text that is not JSON, and what is said of it."""


@pytest.mark.parametrize(("text", "said"), SLIPS)
def test_a_slip_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(JsonSlipError) as error:
        read_json(text)
    assert str(error.value) == said


@pytest.mark.parametrize("name", JSON_OPTIONS)
@pytest.mark.parametrize(("text", "said"), SLIPS[:4])
def test_every_option_of_json_tells_it(name: str, text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    parser = HfArgumentParser(TrainingArguments)
    for given in (text, str(file)):
        with pytest.raises(OptionError) as error:
            TrainingArguments("out", **{name: given})
        assert f"{name}={given!r}: is not JSON: {said}" in str(error.value)
        with pytest.raises(OptionError) as error:
            parser.parse_args_into_dataclasses([f"--{name}", given], look_for_args_file=False)
        assert f"{name}={given!r}: is not JSON: {said}" in str(error.value)


def test_the_options_of_json_are_these() -> None:
    assert {"lr_scheduler_kwargs", "fsdp_config", "deepspeed", "accelerator_config", "liger_kernel_config"} <= set(
        JSON_OPTIONS
    )
    assert {"gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"} <= set(JSON_OPTIONS)


def test_what_is_too_much_to_read_is_a_slip_too() -> None:
    with pytest.raises(JsonSlipError, match="too many brackets"):
        read_json("[" * 100_000)
    with pytest.raises(JsonSlipError, match="a number that cannot be read"):
        read_json("1" * 5000)


def test_a_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"num_cycles": 2}', encoding="utf-8-sig")
    assert TrainingArguments("out", lr_scheduler_kwargs=file).lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_file_of_other_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(OptionError, match=r"lr_scheduler_kwargs='.*settings.json': cannot be read \('utf-8' codec"):
        TrainingArguments("out", lr_scheduler_kwargs=file)


def test_numbers_in_text_that_json_does_not_have_stay_text() -> None:
    given = '{"a": "inf", "b": "nan", "c": "1e-3", "d": "7", "e": "1_0"}'
    read = TrainingArguments("out", lr_scheduler_kwargs=given).lr_scheduler_kwargs
    assert read == {"a": "inf", "b": "nan", "c": 1e-3, "d": 7, "e": 10}
