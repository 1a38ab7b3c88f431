"""Which checkpoint a run goes on from where several runs wrote into a folder, and what is no reason to start afresh."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mainspring import Trainer, TrainerCallback, checkpoint
from mainspring.checkpoint import pickles
from mainspring.checkpoint.manifest_text import encode
from mainspring.checkpoint.resolve import resolve
from tests.checkpoint import payloads
from tests.helpers.checkpoints import flip, names_in, write_checkpoint, write_foreign, write_small
from tests.helpers.runs import trainer

QUIET: dict[str, Any] = {"eval_strategy": "no", "max_steps": 2, "save_steps": 1}


# ---- several runs in a folder ----


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_the_run_that_wrote_last_goes_on(tmp_path: Path, wanted: Any, caplog: pytest.LogCaptureFixture) -> None:
    for step in (30, 60, 90):
        write_small(tmp_path, step, run_id="the former")
    for step in (40, 50):
        write_small(tmp_path, step, run_id="the latter")
    assert resolve(wanted, tmp_path) == str(tmp_path / "checkpoint-50")
    record = caplog.records[0]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"{tmp_path / 'checkpoint-50'} is the newest of the run that wrote last; of another run are here, and are left "
        "alone: checkpoint-90, checkpoint-60, checkpoint-30"
    )


def test_a_run_alone_is_not_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_foreign(tmp_path, 10)  # what it went on from
    for step in (20, 30):
        write_small(tmp_path, step)
    assert resolve("auto", tmp_path) == str(tmp_path / "checkpoint-30")
    assert "another run" not in caplog.text


def test_one_that_went_on_with_the_reference_is_gone_on_with(tmp_path: Path) -> None:
    write_small(tmp_path, 20)
    write_foreign(tmp_path, 30)
    assert resolve("auto", tmp_path) == str(tmp_path / "checkpoint-30")


def test_damage_in_the_last_run_is_noticed_before_another_run_is_tried(tmp_path: Path) -> None:
    write_small(tmp_path, 90, run_id="the former")
    write_small(tmp_path, 10, run_id="the latter")
    flip(write_small(tmp_path, 20, run_id="the latter") / "manifest.json", 60)
    assert resolve("auto", tmp_path) == str(tmp_path / "checkpoint-10")
    assert names_in(tmp_path) == ["checkpoint-10", "checkpoint-20.damaged", "checkpoint-90"]


def test_a_fresh_run_in_a_used_folder_loses_and_takes_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, **QUIET).train()
    (first,) = {run_of(tmp_path / name) for name in names_in(tmp_path)}
    trainer(tmp_path, **QUIET, seed=7, save_only_model=True).train()
    assert names_in(tmp_path) == [
        "checkpoint-1",
        "checkpoint-1.other-run",
        "checkpoint-2",
        "checkpoint-2.other-run",
    ]
    for name in ("checkpoint-1", "checkpoint-2"):
        assert run_of(tmp_path / f"{name}.other-run") == first != run_of(tmp_path / name)
        assert checkpoint.verify(tmp_path / name) == checkpoint.verify(tmp_path / f"{name}.other-run") == []
        assert not (tmp_path / name / "rng_state.pth").exists()


def run_of(folder: Path) -> str:
    manifest = checkpoint.read_manifest(folder)
    assert manifest is not None
    return manifest.facts.run_id


# ---- what a resume would refuse ----


class Keeps(TrainerCallback):
    """Has a state of some kind."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"best": [self.value]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        (self.value,) = state["best"]


class Own:
    """A class that no allow-list knows."""


def test_numbers_of_numpy_in_callbacks_and_schedules_go_on(tmp_path: Path) -> None:
    def run() -> tuple[Trainer, Keeps]:
        keeps = Keeps(np.float64(0.25))
        made = trainer(tmp_path, **QUIET, callbacks=[keeps])
        made.create_optimizer()
        rate = lambda step: np.float64(1 / (step + 1))  # noqa: E731
        made.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(made.optimizer, rate)
        return made, keeps

    run()[0].train()
    resumed, keeps = run()
    keeps.value = None
    resumed.train(resume_from_checkpoint="auto")
    assert keeps.value == 0.25
    assert names_in(tmp_path) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_state_that_could_not_be_read_again_is_an_error_at_once(tmp_path: Path, in_background: bool) -> None:
    run = trainer(tmp_path, **QUIET, save_in_background=in_background, callbacks=[Keeps(Own())])
    said = r"callbacks\.pt could not be read again: callbacks\.pt\['Keeps'\]\[0\]\['best'\]\[0\] is of type .*test_resume_choice\.Own"
    with pytest.raises(checkpoint.CheckpointError, match=said):
        run.train()
    assert names_in(tmp_path) == []


def test_what_the_user_allows_is_written(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([Own]):
        checkpoint.save_torch({"mine": Own()}, tmp_path / "state.pt")
        assert isinstance(checkpoint.load_torch(tmp_path / "state.pt")["mine"], Own)


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_refused_content_is_an_error_and_no_damage(tmp_path: Path, wanted: Any) -> None:
    write_checkpoint(tmp_path, 10)
    folder = write_checkpoint(tmp_path, 20)
    torch.save({"mine": Own()}, folder / "callbacks.pt")
    checkpoint.reseal(folder)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"checkpoint-20 is what was written.*callbacks\.pt was refused"
    ):
        resolve(wanted, tmp_path)
    assert names_in(tmp_path) == ["checkpoint-10", "checkpoint-20"]


@pytest.mark.parametrize("name", ["optimizer.pt of mine.pkl", "callbacks.pt"])
def test_a_dangerous_file_that_is_not_read_is_only_named(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / name).write_bytes(payloads.by_system(tmp_path / "executed"))
    assert resolve("auto", tmp_path) == str(folder)
    assert f"{name} was refused, and nothing in it was executed: it holds " in caplog.text
    assert "it is not read" in caplog.text


def test_the_scan_tells_names_and_dangers_apart(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "a b.pkl").write_bytes(payloads.by_system(tmp_path / "executed"))
    (refused,) = pickles.scan_folder(folder)
    assert refused.name == "a b.pkl"
    assert [danger.partition(".")[2] for danger in refused.dangers] == ["system"]


# ---- files that nobody listed ----


def test_states_that_are_not_listed_are_not_restored(tmp_path: Path) -> None:
    trainer(tmp_path / "other", **QUIET, callbacks=[Keeps(5)]).train()
    trainer(tmp_path / "out", **QUIET).train()
    folder = tmp_path / "out" / "checkpoint-1"
    (folder / "callbacks.pt").write_bytes((tmp_path / "other" / "checkpoint-1" / "callbacks.pt").read_bytes())
    keeps = Keeps(1)
    trainer(tmp_path / "out", **QUIET, callbacks=[keeps]).train(resume_from_checkpoint=str(folder))
    assert keeps.value == 1


# ---- what says nothing of a checkpoint ----


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["manifest.json", "weights.bin"])
def test_a_file_that_cannot_be_read_now_is_an_error_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    for step in (10, 20):
        write_small(tmp_path, step)
    opening = Path.open

    def failing(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == tmp_path / "checkpoint-20" / name:
            raise OSError(number, os.strerror(number))
        return opening(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(OSError, match=f"checkpoint-20/{name}") as caught:
        resolve("auto", tmp_path)
    assert caught.value.errno == number
    assert names_in(tmp_path) == ["checkpoint-10", "checkpoint-20"]


def test_a_manifest_of_a_version_to_come_is_an_error_by_name(tmp_path: Path) -> None:
    write_small(tmp_path, 10)
    folder = write_small(tmp_path, 20)
    manifest = checkpoint.read_manifest(folder)
    assert manifest is not None
    (folder / "manifest.json").write_bytes(encode(replace(manifest, version=2)))
    for wanted in (True, "auto", folder):
        with pytest.raises(checkpoint.NewerManifestError, match=r"checkpoint-20: manifest\.json has version 2"):
            resolve(wanted, tmp_path)
    assert names_in(tmp_path) == ["checkpoint-10", "checkpoint-20"]
