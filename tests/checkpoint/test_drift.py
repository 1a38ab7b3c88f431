from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mainspring import checkpoint
from mainspring.checkpoint import drift
from mainspring.checkpoint.drift import IRRELEVANT, KEPT, OPTIMIZER, ORDER, RESCALED, Change
from tests.helpers.runs import trainer


def names(changes: list[Change]) -> list[str]:
    return [change.name for change in changes]


def test_what_is_equal_or_known_to_one_side_alone_is_no_change() -> None:
    found = drift({"seed": 1, "gone": 2}, {"seed": 1, "new": 3}, inside_epoch=True)
    assert found == drift({}, {}, inside_epoch=False)
    assert found.warnings() == []


@pytest.mark.parametrize("inside_epoch", [True, False])
@pytest.mark.parametrize("name", KEPT)
def test_what_the_optimizer_carries_is_kept(name: str, inside_epoch: bool) -> None:
    found = drift({name: 1}, {name: 2}, inside_epoch=inside_epoch)
    assert names(found.kept) == [name]
    assert found.warnings() == [
        f"{name}: 1 in the checkpoint, 2 now: the optimizer's state goes on with the checkpoint's value"
    ]


@pytest.mark.parametrize("name", RESCALED)
def test_the_size_of_an_update_is_rescaled(name: str) -> None:
    found = drift({name: 1}, {name: 2}, inside_epoch=True)
    assert names(found.rescaled) == [name]
    assert found.warnings() == [f"{name}: 1 in the checkpoint, 2 now: the position in the data is kept in samples"]


@pytest.mark.parametrize("name", ORDER)
def test_another_order_is_refused_inside_an_epoch_alone(name: str) -> None:
    inside = drift({name: 1}, {name: 2}, inside_epoch=True)
    (problem,) = inside.refused
    assert (problem.option, problem.value) == (name, 2)
    assert "it is 1 in the checkpoint, which was written inside an epoch" in str(problem)
    assert "ignore_data_skip=True" in problem.fix
    between = drift({name: 1}, {name: 2}, inside_epoch=False)
    assert between.refused == []
    assert names(between.safe) == [name]


@pytest.mark.parametrize("inside_epoch", [True, False])
@pytest.mark.parametrize("name", OPTIMIZER)
def test_another_optimizer_is_refused(name: str, inside_epoch: bool) -> None:
    (problem,) = drift({name: "a"}, {name: "b"}, inside_epoch=inside_epoch).refused
    assert "it is 'a' in the checkpoint, whose optimizer state does not fit" in str(problem)


def test_an_optimizer_may_go_on_inside_the_backward_pass() -> None:
    found = drift({"optim": "galore_adamw"}, {"optim": "galore_adamw_layerwise"}, inside_epoch=True)
    assert (names(found.safe), found.refused) == (["optim"], [])


def test_groups_of_parameters_keep_what_the_checkpoint_gives_them_and_their_number() -> None:
    saved = {"lr_groups": {"head": {"lr": 0.1}}}
    kept = drift(saved, {"lr_groups": {"head": {"lr": 0.2}}}, inside_epoch=True)
    assert (names(kept.kept), kept.refused) == (["lr_groups"], [])
    for other in (None, {"body": {"lr": 0.1}}, {"head": {"lr": 0.1}, "body": {"lr": 0.1}}):
        assert drift(saved, {"lr_groups": other}, inside_epoch=False).refused


@pytest.mark.parametrize("name", sorted(IRRELEVANT))
def test_what_every_start_sets_anew_is_no_change(name: str) -> None:
    assert drift({name: 1}, {name: 2}, inside_epoch=True).warnings() == []


def test_the_rest_is_safe_and_told_in_one_line() -> None:
    found = drift({"save_steps": 2, "max_steps": 4}, {"save_steps": 3, "max_steps": 9}, inside_epoch=True)
    assert names(found.safe) == ["max_steps", "save_steps"]
    (told,) = found.warnings()
    assert told == (
        "changed since the checkpoint was written, and in effect from here on: max_steps: 4 in the checkpoint, 9 now; "
        "save_steps: 2 in the checkpoint, 3 now"
    )


def test_other_versions_are_told_in_one_line() -> None:
    versions = {"python": "3.11", "torch": "2.0", "peft": "1"}, {"python": "3.12", "torch": "2.1", "numpy": "2"}
    found = drift({}, {}, inside_epoch=True, versions=versions)
    assert names(found.versions) == ["python", "torch"]
    (told,) = found.warnings()
    assert told.startswith(
        "other versions than the checkpoint was written with: python: '3.11' in the checkpoint, '3.12' now; torch: '2.0'"
    )
    assert "not to the bit" in told


# ---- what a run says of them ----


def resumed(folder: Path, caplog: pytest.LogCaptureFixture, **changes: Any) -> list[str]:
    """Resume from update 2, and return the warnings."""
    options = {"max_steps": 3, "save_steps": 2, "eval_strategy": "no"}
    trainer(folder, **options).train()
    caplog.clear()
    trainer(folder, **{**options, **changes}).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_run_that_did_not_change_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resumed(tmp_path, caplog) == []


def test_a_run_tells_what_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = resumed(
        tmp_path, caplog, learning_rate=0.5, gradient_accumulation_steps=1, max_grad_norm=2.0, logging_steps=3
    )
    assert [line.partition(":")[0] for line in told] == [
        "learning_rate",
        "gradient_accumulation_steps",
        "changed since the checkpoint was written, and in effect from here on",
    ]
    assert "logging_steps: 2 in the checkpoint, 3 now; max_grad_norm: 1.0 in the checkpoint, 2.0 now" in told[-1]


def test_a_run_tells_of_other_versions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {**checkpoint.library_versions(), "torch": "99.0"}
    monkeypatch.setattr(checkpoint, "library_versions", lambda: now)
    (told,) = resumed(tmp_path, caplog)
    assert told.startswith("other versions than the checkpoint was written with: torch: ")
    assert "'99.0' now" in told
