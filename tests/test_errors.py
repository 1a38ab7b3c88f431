from __future__ import annotations

import enum
import pickle

import pytest

from mainspring.errors import (
    CheckpointError,
    MainspringError,
    MissingPackageError,
    NotAvailableError,
    OptionError,
    Problem,
    did_you_mean,
)

LATE = Problem("save_steps", 0, "must be positive", "give a number of updates")


def test_a_problem_reads_option_value_reason_and_way_out() -> None:
    assert str(LATE) == "save_steps=0: must be positive; give a number of updates"


def test_a_text_enumeration_is_shown_as_the_user_writes_it() -> None:
    class Strategy(str, enum.Enum):
        STEPS = "steps"

    assert str(Problem("eval_strategy", Strategy.STEPS, "w", "f")).startswith("eval_strategy='steps':")


def test_a_long_value_is_cut_to_one_line() -> None:
    text = str(Problem("fsdp_config", {"key": "x" * 1000}, "w", "f"))
    assert len(text) < 250
    assert "…" in text


def test_an_option_error_shows_every_problem_on_its_own_line() -> None:
    error = OptionError([LATE, Problem("optim", "x", "w", "f")])
    assert [line.split("=")[0] for line in str(error).splitlines()] == ["save_steps", "optim"]
    assert error.problems[0] is LATE


@pytest.mark.parametrize("kind", [OptionError, NotAvailableError])
def test_an_option_error_survives_the_way_between_processes(kind: type[OptionError]) -> None:
    copy = pickle.loads(pickle.dumps(kind([LATE])))
    assert type(copy) is kind
    assert copy.problems == (LATE,)
    assert str(copy) == str(LATE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (OptionError, ValueError),
        (NotAvailableError, OptionError),
        (MissingPackageError, ImportError),
        (CheckpointError, ValueError),
    ],
)
def test_each_exception_is_one_that_users_already_catch(ours: type[Exception], theirs: type[Exception]) -> None:
    assert issubclass(ours, theirs)
    assert issubclass(ours, MainspringError)


@pytest.mark.parametrize(
    ("written", "tail"),
    [
        ("adamw_troch", "; did you mean 'adamw_torch'?"),
        ("ADAMW_TORCH", "; did you mean 'adamw_torch'?"),
        ("something_else", ""),
    ],
)
def test_did_you_mean(written: str, tail: str) -> None:
    assert did_you_mean(written, ["sgd", "adamw_torch"]) == tail


def test_what_cannot_be_printed_is_named_by_its_kind() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert str(Problem("seed", 10**5000, "is too large", "choose")).startswith("seed=<int too large to print>: ")
    assert str(Problem("names", deep, "is too deep", "choose")).startswith("names=<list too large to print>: ")
