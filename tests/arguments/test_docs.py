"""The generated page: every option is on it, and a stale one is noticed."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import transformers

from mainspring import Seq2SeqTrainingArguments
from mainspring.arguments import docs, not_yet, spellings
from mainspring.arguments.generations import AFTER_4_37, since
from mainspring.arguments.idle import IDLE
from mainspring.arguments.interactions import options_read
from mainspring.arguments.machine import BETWEEN_PROCESSES
from mainspring.arguments.rules import NOTICES, RULES

PAGE = docs.page()
ROOT = Path(__file__).parents[2]


def rows() -> dict[str, list[str]]:
    """The cells of each option's row."""
    lines = [
        line.replace("\\|", "¦") for line in PAGE.split("## What must hold")[0].splitlines() if line.startswith("| `")
    ]
    return {line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in lines}


def test_every_option_has_its_row() -> None:
    table = rows()
    assert set(table) == {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    learning_rate = ["`learning_rate`", "float", "`5e-05`", "Peak learning rate of the schedule.", "4.37", ""]
    assert table["learning_rate"] == learning_rate
    assert table["eval_strategy"][1:3] == ["`no` `steps` `epoch`", "no"]
    assert all(len(cells) == 6 and cells[1] and cells[3] and cells[4] for cells in table.values())


def test_it_says_since_when_there_is_an_option() -> None:
    since = {name: cells[4] for name, cells in rows().items()}
    assert since["seed"] == "4.37"
    assert since["eval_strategy"] == "5, also `evaluation_strategy`"
    assert since["warmup_steps"] == "4.37, also `warmup_ratio`"
    assert since["fsdp_config"] == "4.37, also `fsdp_min_num_params` `fsdp_transformer_layer_cls_to_wrap`"
    assert since["compat"] == "Mainspring"
    older = {name for cell in since.values() for name in cell.split("`")[1::2]}
    assert older == {*spellings.RENAMED, *spellings.TRANSLATED}


@pytest.mark.parity
def test_the_options_that_came_after_4_37_are_the_references() -> None:
    theirs = {field.name for field in dataclasses.fields(transformers.Seq2SeqTrainingArguments)}
    assert theirs >= AFTER_4_37
    assert len(theirs - AFTER_4_37) == 91  # as many names do both generations share
    assert {name for name in rows() if since(name) == "Mainspring"}.isdisjoint(theirs)


def test_it_says_which_options_bear_on_each_other() -> None:
    partners = {name: set(cells[5].split("`")[1::2]) for name, cells in rows().items()}
    assert partners["fp16"] == {"bf16"}
    assert partners["adam_beta1"] == {"optim"}
    of_adam, of_warmup = {"adam_beta1", "adam_beta2", "adam_epsilon"}, {"warmup_steps", "lr_scheduler_type"}
    assert partners["optim"] == {*of_adam, *of_warmup, "ema_decay", "optim_target_modules"}
    steps = {"eval_strategy", "save_strategy", "eval_steps", "save_steps"}
    assert partners["load_best_model_at_end"] == {*steps, "save_only_model", "fsdp", "fsdp_config"}
    assert partners["learning_rate"] == set()
    for name, others in partners.items():
        assert all(name in partners[other] for other in others), name


SECTIONS = {"## What must hold between options": RULES, "## What has no effect": [*NOTICES, *(i.why for i in IDLE)]}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_rule_between_options_is_listed(title: str) -> None:
    section = PAGE.split(title)[1].split("\n## ")[0]
    for rule in SECTIONS[title]:
        options = options_read(rule)
        assert options, rule
        said = str(inspect.getdoc(rule)).splitlines()[0]
        assert (f"| {said} |" in section) == (len(options) > 1 or title == "## What has no effect"), rule
    for option in BETWEEN_PROCESSES:
        assert f"`{option}`" in PAGE.split("## What has no effect")[1]


def test_what_is_not_available_is_marked() -> None:
    for name, cells in rows().items():
        assert ("¹" in cells[0]) == (name in not_yet.OPTIONS)
        assert ("²" in cells[0]) == (name == "report_to")
    listed = PAGE.split("## Values that are not available yet")[1].split("## Older")[0]
    assert "`report_to`" in listed
    assert "`optim`" not in listed


@pytest.mark.parametrize("name", sorted(spellings.OLDER_NAMES))
def test_older_spellings_are_listed(name: str) -> None:
    assert f"| `{name}` |" in PAGE.split("## Older spellings")[1]


def test_the_page_in_the_repository_is_current() -> None:
    assert docs.main(["--check", str(ROOT / "docs" / "options.md")]) == 0


def test_writing_and_checking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.md"
    assert docs.main(["--check", str(file)]) == 1
    assert docs.main([str(file)]) == 0
    assert file.read_text(encoding="utf-8") == PAGE
    assert docs.main(["--check", str(file)]) == 0
    file.write_text(PAGE + "more", encoding="utf-8")
    assert docs.main(["--check", str(file)]) == 1
    assert "make docs" in capsys.readouterr().err
    assert docs.main([]) == 0
    assert capsys.readouterr().out == PAGE
    with pytest.raises(SystemExit):
        docs.main(["--check"])
