"""Values of all kinds as the type of their option, and what is no value of any."""

from __future__ import annotations

import enum
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mainspring import TrainingArguments
from mainspring.arguments.typed import accepted_types, exact, plain_settings, typed
from mainspring.errors import NotAvailableError, OptionError

CIRCLE: dict[str, Any] = {"a": []}
CIRCLE["a"].append(CIRCLE)


def nested(depth: int, around: Any = None) -> Any:
    for _ in range(depth):
        around = [around]
    return around


# ---- what is refused, and how it is told ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        # items of lists
        ({"include_for_metrics": [1]}, "include_for_metrics=[1]: holds an item that is a int, not str; give str"),
        ({"label_names": [None]}, "label_names=[None]: holds an item that is a NoneType, not str"),
        ({"label_names": ["a", b"b"]}, "holds an item that is a bytes, not str"),
        ({"report_to": [3]}, "report_to=[3]: holds an item that is a int, not str"),
        ({"optim_target_modules": ["a", 2]}, "optim_target_modules=['a', 2]: holds an item that is a int, not str"),
        ({"debug": [True]}, "debug=[True]: holds an item that is a bool, not str"),
        ({"label_names": {"a"}}, "label_names={'a'}: is a set, not None or list"),
        ({"label_names": nested(100_000)}, "[['...']]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]: holds an item that is a list"),
        # names and values of settings
        ({"liger_kernel_config": {"rope": "perhaps"}}, "{'rope': 'perhaps'}: rope is a str, not bool; give bool"),
        ({"lr_scheduler_kwargs": 5}, "lr_scheduler_kwargs=5: is a int, not None or dict or str"),
        ({"lr_scheduler_kwargs": [("a", 1)]}, "lr_scheduler_kwargs=[('a', 1)]: is a list, not None or dict or str"),
        ({"lr_scheduler_kwargs": {1: 2}}, "has a name that is a int, not text"),
        ({"lr_scheduler_kwargs": {"a": {None: 2}}}, "has a name that is a NoneType, not text"),
        (
            {"lr_scheduler_kwargs": {"a": float("nan")}},
            "lr_scheduler_kwargs={'a': nan}: holds a number that is not a number",
        ),
        ({"lr_scheduler_kwargs": {"a": [float("inf")]}}, "holds inf, which JSON has no number for"),
        ({"lr_scheduler_kwargs": CIRCLE}, "{'a': '...'}]}]}]}]}]}]}]}]}]}]}]}]}]}]}]}: holds itself"),
        ({"lr_scheduler_kwargs": {"a": nested(100_000)}}, "holds too many things inside one another"),
        ({"lr_scheduler_kwargs": '{"a":' * 700 + "1" + "}" * 700}, "holds too many things inside one another"),
        # numbers
        ({"learning_rate": float("nan")}, "learning_rate=nan: is not a number"),
        ({"warmup_steps": "nan"}, "warmup_steps='nan': is not a number"),
        ({"max_grad_norm": np.float32("nan")}, "max_grad_norm=nan: is not a number"),
        ({"learning_rate": float("inf")}, "learning_rate=inf: must be finite"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs=inf: must be finite"),
        ({"num_train_epochs": float("-inf")}, "num_train_epochs=-inf: must be finite"),
        ({"logging_steps": "inf"}, "logging_steps=inf: must be finite"),
        ({"eval_delay": float("inf")}, "eval_delay=inf: must be finite"),
        ({"neftune_noise_alpha": float("inf")}, "neftune_noise_alpha=inf: must be finite"),
        ({"adam_epsilon": 1e999}, "adam_epsilon=inf: must be finite"),
        ({"max_steps": 2**63}, "max_steps=9223372036854775808: is larger than any number that can be stored"),
        ({"learning_rate": 10**400}, "is larger than any number that can be stored"),
        ({"max_steps": 10**5000}, "max_steps=<int too large to print>: is larger than any number"),
        ({"per_gpu_train_batch_size": 10**5000}, "from the older spelling per_gpu_train_batch_size=<int too large"),
        ({"seed": "1" * 5000}, "is a str, not int"),
        ({"ddp_timeout": 2**31}, "ddp_timeout=2147483648: must be below 2**31 seconds"),
        ({"seed": 1j}, "seed=1j: is a complex, not int"),
        ({"learning_rate": Fraction(10**400)}, "is a Fraction, not float"),
        # arrays, which are compared item by item
        ({"seed": np.array([1, 2])}, "seed=array([1, 2]): is a ndarray, not int"),
        ({"include_for_metrics": np.array(["loss"])}, "is a ndarray, not list"),
        ({"eval_strategy": np.array(["no", "steps"])}, "is not one of no, steps, epoch"),
        ({"compat": np.array(["5", "5"])}, "is not one of none, 5, 4.37"),
        ({"hub_token": np.array([1, 2])}, "hub_token='<HUB_TOKEN>': is a ndarray"),
        ({"evaluation_strategy": np.array([1, 2])}, "from the older spelling evaluation_strategy=array"),
        # text
        ({"run_name": b"name"}, "run_name=b'name': is a bytes, not None or str"),
        ({"output_dir": b"out"}, "output_dir=b'out': is a bytes, not None or str"),
        ({"output_dir": "a\0b"}, "has a character that no file name may have"),
        ({"output_dir": "~\0"}, "has a character that no file name may have"),
        ({"output_dir": "\ud800"}, "has a character that no file name may have"),
        ({"logging_dir": "~\0"}, "logging_dir='~\\x00': has a character that no file name may have"),
        ({"lr_scheduler_kwargs": "a\0b"}, "cannot be read (embedded null byte)"),
        ({"lr_scheduler_kwargs": "~nobody-at-all/x"}, "cannot be read (No such file or directory)"),
        ({"optim_args": "momentum"}, "optim_args='momentum': 'momentum' is not of the form key=value"),
        ({"optim_args": "a=1,=2"}, "'=2' is not of the form key=value"),
        ({"optim_args": "a=1, a=2"}, "'a' is given twice"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, str) else "-".join(value),
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_no_value_of_an_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as error:
        TrainingArguments(**options)
    assert said in str(error.value)
    assert not isinstance(error.value, NotAvailableError)


@pytest.mark.parametrize(
    "value",
    [np.array([1, 2]), np.array([]), np.float64(0.5), object()],
    ids=lambda value: type(value).__name__ + str(getattr(value, "shape", "")),
)
def test_objects_that_are_no_settings_are_refused(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^parallelism_config=.*not dict; give dict"):
        TrainingArguments("out", parallelism_config=value)


# ---- what is read, and as what ----


class Name(str, enum.Enum):
    STEPS = "steps"


class Count(enum.IntEnum):
    THREE = 3


@pytest.mark.parametrize(
    ("option", "given", "read"),
    [
        ("learning_rate", np.float64(0.5), 0.5),
        ("learning_rate", np.longdouble(0.5), 0.5),
        ("learning_rate", torch.tensor(0.5), 0.5),
        ("learning_rate", Fraction(1, 2), 0.5),
        ("max_steps", np.int64(3), 3),
        ("max_steps", Count.THREE, 3),
        ("max_steps", "9007199254740993", 9007199254740993),
        ("max_steps", 2**63 - 1, 2**63 - 1),
        ("max_steps", "-1", -1),
        ("bf16", np.bool_(True), True),
        ("run_name", np.str_("name"), "name"),
        ("run_name", Name.STEPS, "steps"),
        ("run_name", Path("a/b"), "a/b"),
        ("label_names", ("a", np.str_("b"), Path("c")), ["a", "b", "c"]),
        ("max_grad_norm", float("inf"), float("inf")),
        ("max_grad_norm", "inf", float("inf")),
        ("optim_args", "a=1, b=x=y,", "a=1, b=x=y,"),
        ("optim_args", "", ""),
    ],
    ids=str,
)
def test_a_value_is_read_as_exactly_its_type(option: str, given: Any, read: Any) -> None:
    value = getattr(TrainingArguments("out", **{option: given}), option)
    assert value == read
    assert type(value) is type(read)


def test_settings_hold_plain_numbers_and_any_object() -> None:
    def schedule(step: int) -> float:
        return 1.0

    given = {
        "count": np.int64(3),
        "rates": [np.float32(0.5)],
        "pair": (1, 2),
        "deep": {"name": Name.STEPS},
        "f": schedule,
    }
    read = TrainingArguments("out", lr_scheduler_kwargs=given).lr_scheduler_kwargs
    assert read == {"count": 3, "rates": [0.5], "pair": (1, 2), "deep": {"name": "steps"}, "f": schedule}
    assert read is not given
    assert isinstance(read, dict)
    assert [type(value) for value in (read["count"], read["rates"][0], read["deep"]["name"])] == [int, float, str]
    assert type(given["count"]) is np.int64
    plain = {name: value for name, value in read.items() if name != "f"}
    assert json.loads(json.dumps(plain))["count"] == 3


def test_the_same_settings_may_lie_in_two_places() -> None:
    """That is no circle."""
    shared = {"a": 1}
    assert plain_settings({"x": shared, "y": [shared, shared]}) == {"x": shared, "y": [shared, shared]}


def test_values_of_a_setting_have_its_type() -> None:
    kinds = accepted_types(dict[str, bool] | None)
    assert typed("x", {"rope": "true", "swiglu": 0}, kinds) == ({"rope": True, "swiglu": False}, None)
    assert typed("x", None, kinds) == (None, None)


def test_what_cannot_be_made_plain_stays() -> None:
    for value in (np.array([1, 2]), np.bytes_(b"a"), object):
        assert exact(value) is value or exact(value) == value
