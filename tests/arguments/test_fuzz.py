"""Whatever is given to the arguments and their parser, they are built, or an error names an option that was given.

What is tried here is the same in every run; `conftest.py` says how to try more. A defect that was found gets a test of
its own, with the smallest example, in the file of what was wrong.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import io
import json
import math
import re
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from mainspring import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments import not_yet
from mainspring.arguments.spellings import OLDER_NAMES, OLDER_TYPES, RENAMED
from mainspring.arguments.translations import TRANSLATED
from mainspring.errors import OptionError, Problem

FIELDS = {field.name: field for field in dataclasses.fields(Seq2SeqTrainingArguments)}
HINTS = typing.get_type_hints(Seq2SeqTrainingArguments)
NEWER = sorted(FIELDS)
OLDER = sorted(OLDER_NAMES)
CLASSES = (TrainingArguments, Seq2SeqTrainingArguments)
MISSPELT = ["learning_rat", "evaluation_stategy", "Seed", "no_such_option", ""]


def fuzzed(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many examples, always the same ones, unless a longer profile is asked for."""
    longer = settings.default.max_examples > 1000
    return settings(
        max_examples=settings.default.max_examples if longer else examples,
        derandomize=not longer,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


# ---- values ----


class Colour(enum.Enum):
    RED = "red"
    NUMBER = 1


class Shade(str, enum.Enum):
    DARK = "steps"
    LIGHT = "no such word"


class Level(enum.IntEnum):
    LOW = 1


class Thing:
    """Something that nobody expects."""


NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**400, -(10**400)]),
    st.floats(0, 1),
    st.floats(),
)
WORDS = st.one_of(
    st.sampled_from(
        ["", "true", "no", "steps", "epoch", "cosine", "sgd", "all", "none", "nan", "-inf", "1e400", "0.1"]
    ),
    st.sampled_from(
        [
            "3",
            "-1",
            " 7 ",
            "1" * 5000,
            "a=1,b=2",
            "a=1,a=2",
            "{}",
            '{"a": 1}',
            "{'a': 1}",
            "[1]",
            "{" * 2000,
            '{"a":' * 700 + "1" + "}" * 700,
        ]
    ),
    st.sampled_from(
        ["~", "~nobody/x", "a\0b", "~\0", "\ud800", ".", "/no/such/file.json", "full_shard auto_wrap", "offload"]
    ),
    st.sampled_from(["inputs", "loss", "<HUB_TOKEN>", "org/name", "inductor", "O2", "auto", "underflow_overflow"]),
    st.text(max_size=8),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
ODD = st.one_of(
    st.binary(max_size=4),
    st.builds(Path, st.sampled_from(["out", "/no/such/file.json", "a b"])),
    st.sampled_from([*Colour, *Shade, Level.LOW, Thing(), Thing, object(), ..., 1j, range(3), str, int]),
    st.sampled_from(
        [np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.str_("steps"), np.longdouble(1)]
    ),
    st.sampled_from(
        [np.array(2), np.array([1, 2]), np.array([]), np.array(["a"]), np.datetime64("2020-01-01"), np.bytes_(b"a")]
    ),
)
KEYS = st.one_of(
    st.sampled_from(["a", "num_cycles", "rope", "non_blocking", "split_batches", "version", "min_num_params"]),
    st.text(max_size=4),
    st.none(),
    st.integers(),
    st.tuples(st.integers()),
)
NESTED = st.recursive(
    st.one_of(SCALARS, ODD),
    lambda within: st.one_of(
        st.lists(within, max_size=3),
        st.lists(within, max_size=2).map(tuple),
        st.dictionaries(KEYS, within, max_size=3),
        st.frozensets(SCALARS, max_size=2),
    ),
    max_leaves=6,
)
CIRCLE: dict[str, Any] = {"a": {}}
CIRCLE["a"]["b"] = CIRCLE
ANYTHING = st.one_of(SCALARS, ODD, NESTED, st.sampled_from([CIRCLE, [CIRCLE]]))


def fitting(name: str) -> st.SearchStrategy[Any]:
    """Values that an option may well have, so that it gets as far as the options beside it."""
    choices = FIELDS[name].metadata["choices"] if name in FIELDS else None
    if choices is not None:
        values = [getattr(choice, "value", choice) for choice in choices]
        return st.sampled_from(values)
    newer = RENAMED.get(name, name)
    return of_type(HINTS[newer] if newer in HINTS else OLDER_TYPES.get(name, bool))


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return st.one_of(*map(of_type, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    simple: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 50),
        float: st.one_of(st.floats(0, 1), st.integers(0, 50)),
        str: st.sampled_from(["none", "", "a=1", "no", "all", "loss", "{}", '{"a": 1}']),
        list: st.lists(st.sampled_from(["inputs", "loss"]), max_size=2),
        dict: st.dictionaries(st.sampled_from(["a", "b"]), st.booleans(), max_size=2),
    }
    return simple.get(typing.get_origin(kind) or kind, st.none())


def given_options(
    *kinds: list[str], most: int, odd: st.SearchStrategy[Any] = ANYTHING
) -> st.SearchStrategy[dict[str, Any]]:
    """Options most of which are right, and up to two that may be anything, or what is said."""
    right = [name for names in kinds for name in names if name not in {*not_yet.OPTIONS, *MISSPELT}]
    fit = st.lists(st.sampled_from(right), max_size=most, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: fitting(name) for name in chosen})
    )
    others = st.dictionaries(st.sampled_from([name for names in kinds for name in names]), odd, max_size=2)
    return st.builds(lambda fit, others: {**fit, **others}, fit, others)


# ---- what must hold ----


UNKNOWN = "there is no such option"
"""What stands after a name that is none."""


def check_error(error: Exception, names: Collection[str], beside: Collection[str] = ()) -> None:
    """It is one that a user expects, and it says which option."""
    assert isinstance(error, (ValueError, TypeError)), repr(error)
    said = str(error)
    assert any(name in said for name in [*names, *beside]), said


def check_exit(exit_: SystemExit, said: str) -> None:
    assert exit_.code == 2
    assert re.search(r"error: .*--", said)


def check_built(args: TrainingArguments) -> None:
    check_values(args)
    assert type(args)(**args.to_dict()) == args


def check_values(args: TrainingArguments) -> None:
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        assert not (isinstance(value, float) and math.isnan(value)), field.name
    assert json.loads(args.to_json_string(), parse_constant=pytest.fail).keys() == args.to_dict().keys()
    assert str(args)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@fuzzed(1200)
@given(st.sampled_from(CLASSES), given_options(NEWER, OLDER, MISSPELT, most=6))
def test_arguments_are_built_or_an_option_is_named(cls: type[TrainingArguments], options: dict[str, Any]) -> None:
    with quiet():
        try:
            args = cls(**options)
        except Exception as error:  # noqa: BLE001 - which one it is is what is tested
            check_error(error, options)
        else:
            check_built(args)


ALL = [
    *(None, True, False, 0, -1, 2**63, 10**400, 0.5, float("nan"), float("inf"), 1j, "", "nan", "inf", "a", "{", "~\0"),
    *(
        b"a",
        Path("out"),
        Colour.RED,
        Shade.DARK,
        Level.LOW,
        Thing(),
        Thing,
        ...,
        [],
        [None],
        ("a", 1),
        {"a"},
        {},
        {1: 2},
    ),
    *({"a": float("nan")}, CIRCLE, [CIRCLE], np.int64(3), np.float64("nan"), np.longdouble(1), np.bool_(True)),
    *(np.str_("steps"), np.bytes_(b"a"), np.array(2), np.array([1, 2]), np.array([]), np.datetime64("2020-01-01")),
]


@pytest.mark.parametrize("name", [*NEWER, *OLDER])
def test_every_option_is_tried_with_everything(name: str) -> None:
    for value in ALL:
        with quiet():
            try:
                args = Seq2SeqTrainingArguments(**{name: value})
            except Exception as error:  # noqa: BLE001 - as above
                check_error(error, [name])
            else:
                check_built(args)


@fuzzed(400)
@given(given_options(NEWER, most=4), st.sampled_from(OLDER), ANYTHING)
def test_an_older_name_is_set_or_refused(options: dict[str, Any], older: str, value: Any) -> None:
    with quiet():
        try:
            args = TrainingArguments(**options)
        except (TypeError, ValueError):
            args = TrainingArguments()
        before = copy.copy(args)
        newer = RENAMED.get(older) or (TRANSLATED[older].option if older in TRANSLATED else older)
        try:
            setattr(args, older, value)
        except Exception as error:  # noqa: BLE001 - as above
            check_error(error, [older, newer])
            assert args == before
        else:
            check_values(args)
        if older != "_n_gpu":  # which asks the machine
            getattr(args, older)


# ---- the parser ----

PARSER = HfArgumentParser(Seq2SeqTrainingArguments)
OPTIONS = [name for name in [*NEWER, *OLDER] if name not in ("", "_n_gpu")]


def spelled(name: str, how: str) -> str:
    return {
        "snake": f"--{name}",
        "kebab": f"--{name.replace('_', '-')}",
        "short": f"--{name[:-2]}",
        "wrong": f"--{name[:2]}{name[3:]}",
        "no": f"--no_{name}",
        "equals": f"--{name}=1",
        "dash": f"-{name}",
    }[how]


FLAGS = st.builds(
    spelled,
    st.sampled_from(OPTIONS),
    st.sampled_from(["snake", "snake", "kebab", "short", "wrong", "no", "equals", "dash"]),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["1", "0.5", "-1", "true", "no", "steps", "nan", "1e999", "", "--", "-", "---", "=", "--=", "a b", "-5e-5"]
    ),
    st.sampled_from(['{"a":1}', "{'a'", "[", "%s", "%(x)d", "--\0place", "\ud800", "out", "x.args"]),
    WORDS.filter(lambda word: not word.startswith("-h")),
)


WRITTEN = st.sampled_from(OPTIONS).flatmap(
    lambda name: fitting(name).map(
        lambda value: [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    )
)
"""An option and its value as words. None and dicts are not written like this, but a user may try."""


@fuzzed(500)
@given(st.lists(st.one_of(WRITTEN, WRITTEN, st.lists(st.one_of(FLAGS, TEXTS), max_size=2)), max_size=5))
def test_words_are_parsed_or_an_option_is_named(parts: list[list[str]]) -> None:
    words = [word for part in parts for word in part]
    said = io.StringIO()
    with quiet(), contextlib.redirect_stderr(said):
        try:
            (args,) = PARSER.parse_args_into_dataclasses(words, look_for_args_file=False)
        except SystemExit as exit_:
            check_exit(exit_, said.getvalue())
        except Exception as error:  # noqa: BLE001 - as above
            names = [word.lstrip("-").partition("=")[0].replace("-", "_") for word in words if word.startswith("-")]
            abbreviated = [name for name in OPTIONS for given in names if len(given) > 2 and name.startswith(given)]
            masked = [f"<{name.upper()}>" for name in [*names, *abbreviated]]
            check_error(
                error, [*filter(None, names), *abbreviated, *masked], beside=[UNKNOWN, *(repr(word) for word in words)]
            )
        else:
            check_built(args)


PLAIN = st.recursive(
    SCALARS,
    lambda within: st.one_of(st.lists(within, max_size=3), st.dictionaries(st.text(max_size=4), within, max_size=3)),
    max_leaves=5,
)
CONTENT = given_options(NEWER, OLDER, MISSPELT, most=5, odd=PLAIN)


def check_reading(read: Callable[[], Any], names: Collection[str], beside: Collection[str] = ()) -> None:
    with quiet():
        try:
            (args,) = read()
        except Exception as error:  # noqa: BLE001 - as above
            check_error(error, names, beside)
        else:
            check_built(args)


@fuzzed(250)
@given(st.one_of(CONTENT, st.dictionaries(KEYS, NESTED, max_size=2)))
def test_a_mapping_is_read_or_an_option_is_named(content: Mapping[Any, Any]) -> None:
    check_reading(lambda: PARSER.parse_dict(content), [str(name) for name in content])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def damaged(text: str, position: int, by: str) -> str:
    """The text with something put in, or, where nothing is, with a character left out."""
    position %= len(text) + 1
    return text[:position] + by + text[position + (not by) :]


DAMAGE = st.tuples(
    st.integers(0, 500), st.sampled_from(["", ",", "'", "{", "]", "#", "//", "\n", "\t", "&a", "*a", "!!int", "\0"])
)


@fuzzed(250)
@given(CONTENT, st.none() | DAMAGE)
def test_a_file_is_read_or_it_or_an_option_is_named(folder: Path, content: Any, damage: tuple[int, str] | None) -> None:
    for kind, dumped in (("json", _as_json(content)), ("yaml", _as_yaml(content))):
        text = dumped if damage is None else damaged(dumped, *damage)
        file = folder / f"options.{kind}"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        read = getattr(PARSER, f"parse_{kind}_file")
        check_reading(lambda read=read, file=file: read(file), content, beside=[str(file), UNKNOWN])


def _as_json(content: Any) -> str:
    with contextlib.suppress(ValueError):  # a number of thousands of digits
        return json.dumps(content, indent=1)
    return "{"


def _as_yaml(content: Any) -> str:
    with contextlib.suppress(ValueError):
        return yaml.safe_dump(content, allow_unicode=False)
    return "{"


@fuzzed(200)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_a_file_of_anything_is_read_or_named(folder: Path, content: bytes) -> None:
    for kind in ("json", "yaml"):
        file = folder / f"anything.{kind}"
        file.write_bytes(content)
        read = getattr(PARSER, f"parse_{kind}_file")
        check_reading(lambda read=read, file=file: read(file), [str(file)], beside=[UNKNOWN])


@pytest.mark.parametrize("name", [*NEWER, *OLDER])
def test_values_that_fit_are_of_the_right_type(name: str) -> None:
    @fuzzed(20)
    @given(fitting(name))
    def build(value: Any) -> None:
        assert not [problem for problem in problems_of({name: value}) if problem.why.startswith("is a ")]

    build()


def problems_of(options: dict[str, Any]) -> tuple[Problem, ...]:
    with quiet():
        try:
            Seq2SeqTrainingArguments(**options)
        except OptionError as error:
            return error.problems
    return ()
