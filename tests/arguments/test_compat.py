"""The table of generations: its defaults, and the page that shows it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from mainspring import TrainingArguments
from mainspring.arguments import compat
from mainspring.arguments.compat import COMPAT, OLDER_DEFAULTS, Behaviour

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "compat437" / "golden.json").read_text())["defaults"]
OPTIONS = ("optim", "run_name", "hub_private_repo")


@pytest.fixture(autouse=True)
def _no_service_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "SERVICES_OF_4_37", ())


def of(args: TrainingArguments) -> dict[str, Any]:
    return {name: getattr(args, name) for name in OPTIONS}


def older(**options: Any) -> TrainingArguments:
    return TrainingArguments("out", compat="4.37", **options)


# ---- defaults --------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_that_version() -> None:
    args = older()
    assert of(args) == {"optim": "adamw_torch", "run_name": "out", "hub_private_repo": False}
    assert {**of(args), "run_name": GOLDEN["run_name"]} == {name: GOLDEN[name] for name in OPTIONS}
    assert args.report_to == GOLDEN["report_to"] == []
    assert args.logging_dir.startswith("out/runs/")
    host = args.logging_dir.removeprefix("out/runs/")
    parent, parts = GOLDEN["logging_dir"]
    assert (parent, re.fullmatch(r"[^_]+_\d\d-\d\d-\d\d_.+", host) is not None, parts) == ("runs", True, 3)


@pytest.mark.parametrize("generation", ["none", "5"])
def test_the_other_generations_share_theirs(generation: str) -> None:
    args = TrainingArguments("out", compat=generation)
    assert of(args) == of(TrainingArguments("out"))
    assert of(args) != of(older())
    assert "logging_dir" not in vars(args)


def test_what_was_given_stays() -> None:
    default = TrainingArguments("out").optim
    args = older(optim=default, run_name="mine", hub_private_repo=False)
    assert of(args) == {"optim": default, "run_name": "mine", "hub_private_repo": False}
    with pytest.warns(FutureWarning, match="logging_dir"):
        assert older(logging_dir="there").logging_dir == "there"
    with pytest.warns(FutureWarning, match="adafactor"):
        assert older(adafactor=True).optim == "adafactor"


def test_none_stood_for_the_default() -> None:
    assert older(run_name=None).run_name == "out"


def test_what_a_subclass_says_stays() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        optim: str = "sgd"

        def __post_init__(self) -> None:
            self.run_name = "from the class"
            super().__post_init__()

    args = Mine("out", compat="4.37")
    assert of(args) == {"optim": "sgd", "run_name": "from the class", "hub_private_repo": False}


def test_no_folder_is_made(tmp_path: Path) -> None:
    TrainingArguments(str(tmp_path / "out"), compat="4.37")
    assert list(tmp_path.iterdir()) == []


# ---- services --------------------------------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    monkeypatch.setattr(compat, "SERVICES_OF_4_37", ("tensorboard", "wandb", "mlflow"))
    for name in compat.SERVICES_OF_4_37:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)


def test_installed_services_that_get_nothing_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tensorboard", "mlflow")
    with pytest.warns(UserWarning, match=r"^report_to=.*\(tensorboard, mlflow\).*report_to='none'") as caught:
        older()
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("installed", "options"),
    [
        ((), {"compat": "4.37"}),
        (("wandb",), {"compat": "4.37", "report_to": "none"}),
        (("wandb",), {"compat": "5"}),
        (("wandb",), {}),
    ],
)
def test_nothing_is_said_where_nothing_is_missed(
    installed: tuple[str, ...], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, *installed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainingArguments("out", **options)


# ---- the page --------------------------------------------------------------------------------------------------------


def lines() -> list[str]:
    """The table of generations as the page shows it."""
    page = [f"| what | {' | '.join(f'`{name}`' for name in reversed(COMPAT))} |", "|---|---|---|---|"]
    for row in dataclasses.fields(Behaviour):
        values = [shown(row.metadata["values"][generation]) for generation in reversed(COMPAT)]
        page.append(f"| {row.metadata['what']} | {' | '.join(values)} |")
    for default in OLDER_DEFAULTS:
        page.append(f"| Default of `{default.option}` | {default.older} | {default.now} | {default.now} |")
    return page


def shown(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"`{value}`"


def test_the_page_shows_the_whole_table() -> None:
    page = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    section = page.split('## `compat="4.37"`')[1].split("\n##")[0]
    assert [line for line in section.splitlines() if line.startswith("|")] == lines()


def test_every_row_tells_a_generation_apart() -> None:
    for row in dataclasses.fields(Behaviour):
        values = [row.metadata["values"][generation] for generation in COMPAT]
        assert len(set(values)) > 1, row.name
        assert row.default == values[0]
