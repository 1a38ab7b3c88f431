"""Options that are saved and read again are the same: as a mapping, as JSON, as YAML, as words of a command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mainspring import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments import not_yet
from mainspring.arguments.docstring import default_of
from mainspring.errors import NotAvailableError
from tests.arguments.values import BESIDE, FIELDS, another_value

pytestmark = pytest.mark.filterwarnings("ignore")

Options = Mapping[str, Any]
Way = Callable[[type[TrainingArguments], Options, Path], TrainingArguments]


def as_keywords(cls: type[TrainingArguments], options: Options, folder: Path) -> TrainingArguments:
    return cls(**options)


def as_json(cls: type[TrainingArguments], options: Options, folder: Path) -> TrainingArguments:
    file = folder / "options.json"
    file.write_text(json.dumps(options, allow_nan=False))
    (args,) = HfArgumentParser(cls).parse_json_file(file)
    return args


def as_yaml(cls: type[TrainingArguments], options: Options, folder: Path) -> TrainingArguments:
    file = folder / "options.yaml"
    file.write_text(yaml.safe_dump(dict(options)))
    (args,) = HfArgumentParser(cls).parse_yaml_file(file)
    return args


def as_words(
    cls: type[TrainingArguments], options: Options, folder: Path, spelled: Callable[[str], str] = str
) -> TrainingArguments:
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value != []:  # what is left out has no words
            words += [f"--{spelled(name)}", *map(written, value if isinstance(value, list) else [value])]
    (args,) = HfArgumentParser(cls).parse_args_into_dataclasses(words, look_for_args_file=False)
    return args


def as_words_with_dashes(cls: type[TrainingArguments], options: Options, folder: Path) -> TrainingArguments:
    return as_words(cls, options, folder, lambda name: name.replace("_", "-"))


def written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


WAYS = pytest.mark.parametrize(
    "way", [as_keywords, as_json, as_yaml, as_words, as_words_with_dashes], ids=lambda way: way.__name__
)
AVAILABLE = sorted(set(FIELDS) - not_yet.OPTIONS - {"report_to"})


def classes_with(name: str) -> list[type[TrainingArguments]]:
    return [cls for cls in (TrainingArguments, Seq2SeqTrainingArguments) if name in cls.__dataclass_fields__]


@WAYS
@pytest.mark.parametrize("name", AVAILABLE)
def test_an_option_comes_back(name: str, way: Way, tmp_path: Path) -> None:
    for cls in classes_with(name):
        args = cls(**{"output_dir": "out", **BESIDE.get(name, {}), name: another_value(name)})
        plain = cls(**{"output_dir": "out", **BESIDE.get(name, {})})
        assert getattr(args, name) != getattr(plain, name)
        assert way(cls, args.to_dict(), tmp_path) == args


@WAYS
@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments])
def test_all_defaults_come_back(cls: type[TrainingArguments], way: Way, tmp_path: Path) -> None:
    assert way(cls, cls("out").to_dict(), tmp_path) == cls("out")


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_saved_text_is_what_json_says(name: str, tmp_path: Path) -> None:
    cls = classes_with(name)[0]
    args = cls(**{"output_dir": "out", **BESIDE.get(name, {}), name: another_value(name)})
    file = tmp_path / "saved.json"
    file.write_text(args.to_json_string())
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == args.to_dict()
    assert HfArgumentParser(cls).parse_json_file(file) == (args,)


UNAVAILABLE = [
    *((name, another_value(name)) for name in sorted(not_yet.OPTIONS)),
    ("report_to", "tensorboard"),
    ("report_to", ["tensorboard", "wandb"]),
]


@pytest.mark.parametrize(("name", "value"), UNAVAILABLE, ids=str)
def test_what_is_not_available_is_refused_alike(name: str, value: Any, tmp_path: Path) -> None:
    said = set()
    options = {"output_dir": "out", name: value}
    for way in (as_keywords, as_json, as_yaml, as_words):
        with pytest.raises(NotAvailableError, match=f"^{name}=") as error:
            way(Seq2SeqTrainingArguments, options, tmp_path)
        said.add(str(error.value))
    assert len(said) == 1


@WAYS
@pytest.mark.parametrize("name", sorted(not_yet.OPTIONS))
def test_the_default_of_what_is_not_available_comes_back(name: str, way: Way, tmp_path: Path) -> None:
    options = {"output_dir": "out", name: default_of(FIELDS[name])}
    assert way(Seq2SeqTrainingArguments, options, tmp_path) == Seq2SeqTrainingArguments("out")


def test_an_infinite_limit_comes_back_from_json(tmp_path: Path) -> None:
    """JSON has no such number; in the text it is a word."""
    args = TrainingArguments("out", max_grad_norm=float("inf"))
    assert json.loads(args.to_json_string(), parse_constant=pytest.fail)["max_grad_norm"] == "inf"
    for way in (as_keywords, as_yaml, as_words):
        assert way(TrainingArguments, args.to_dict(), tmp_path) == args
    assert as_json(TrainingArguments, json.loads(args.to_json_string()), tmp_path) == args


def test_settings_of_a_subclass_are_saved_whatever_they_are() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        table: dict[Any, Any] = dataclasses.field(default_factory=lambda: {(1, 2): float("nan"), 3: object})

    saved = json.loads(Mine("out").to_json_string(), parse_constant=pytest.fail)
    assert saved["table"] == {"(1, 2)": "nan", "3": str(object)}
