"""Checkpoints of DeepSpeed runs: what lies in them, which is gone on from, and what becomes of one that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deepspeed.checkpoints import BEST, HAS_PEFT
from tests.deepspeed.read import found

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

STAGES = (0, 1, 2, 3)
OURS = {
    "config.json",
    "latest",
    "manifest.json",
    "rng_state_0.pth",
    "rng_state_1.pth",
    "scheduler.pt",
    "trainer_state.json",
}
WORK = "checkpoints"


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_is_deepspeeds_beside_ours(stage: int, checkpoints: Path) -> None:
    """Whole weights as well, but at stage 3, which gathers them only where that is asked for."""
    facts = found(checkpoints, f"contents{stage}", WORK)
    assert (facts["world_size"], facts["wrapper"], facts["stage"]) == (2, "DeepSpeedEngine", stage)
    assert {*OURS, "global_step4"} <= set(facts["files"])
    assert ("model.safetensors" in facts["files"]) == (stage < 3)
    assert ("zero_to_fp32.py" in facts["files"]) == (stage > 0)
    assert facts["damage"] == []


@pytest.mark.parametrize("stage", STAGES)
def test_old_checkpoints_make_room(stage: int, checkpoints: Path) -> None:
    """`save_total_limit`, with all folders of DeepSpeed's in them; the run goes on from the last."""
    facts = found(checkpoints, f"contents{stage}", WORK)
    assert (facts["kept"], facts["left"], facts["steps"]) == ("checkpoint-4", ["checkpoint-4", "checkpoint-6"], 6)


@pytest.mark.parametrize("stage", STAGES)
def test_files_of_deepspeeds_are_not_warned_of(stage: int, checkpoints: Path) -> None:
    """Its own objects are in the allow-list of its own files."""
    heard = found(checkpoints, f"contents{stage}", WORK)["heard"]
    assert not [text for text in heard if "refused" in text or "not read" in text]
    assert [text for text in heard if "in pieces" in text] == ([] if stage < 3 else heard[-1:])


@pytest.mark.parametrize("stage", [2, 3])
def test_a_damaged_piece_is_found(stage: int, checkpoints: Path) -> None:
    """The checkpoint before it is gone on from, bit for bit, on both processes."""
    for rank in range(2):
        facts = found(checkpoints, f"damaged{stage}", WORK, rank)
        assert facts["again"] == facts["losses"]
    assert facts["left"] == ["checkpoint-2", "checkpoint-4", "checkpoint-4.damaged"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", [2, 3])
def test_pieces_that_could_execute_something_are_refused(stage: int, rank: int, checkpoints: Path) -> None:
    """By the run before it begins, and by the engine that a user has load them."""
    facts = found(checkpoints, f"dangerous{stage}", WORK, rank)
    for said in (facts["resumed"], facts["loaded"]):
        assert said.startswith("CheckpointError")
        assert "it holds posix.mkdir, which is not in the allow-list" in said
    assert not facts["executed"]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_process_without_room_leaves_nobody_waiting(stage: int, checkpoints: Path) -> None:
    """The checkpoint is given up on both, and the run goes on."""
    for rank in range(2):
        facts = found(checkpoints, f"no_room{stage}", WORK, rank)
        assert (facts["left"], facts["steps"]) == (["checkpoint-4"], 4)


@pytest.mark.parametrize("half", ["", "_bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_disk_space_is_estimated(stage: int, half: str, checkpoints: Path) -> None:
    """Of all processes' pieces. Of so small a model, what is not numbers takes a hundred kilobytes."""
    facts = found(checkpoints, f"estimate{stage}{half}", WORK)
    assert facts["taken"] - 120_000 < facts["expected"] <= facts["taken"]


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_written_in_the_background(stage: int, checkpoints: Path) -> None:
    """DeepSpeed's files too, by another thread; the run goes on from them bit for bit."""
    facts = found(checkpoints, f"in_background{stage}", WORK)
    assert facts["threads"] == ["other"]
    assert facts["damage"] == []
    assert facts["again"] == facts["losses"]


def test_a_run_that_is_asked_to_end_goes_on_later(checkpoints: Path) -> None:
    """All processes stop where one was asked, with a checkpoint of that update."""
    facts = found(checkpoints, "stopped2", WORK)
    assert facts["ended"].startswith("Preempted")
    assert facts["left"] == ["checkpoint-3"]
    assert facts["again"] == facts["whole"]


@pytest.mark.parametrize("half", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_saved_models_hold_the_trained_weights(stage: int, half: str, checkpoints: Path) -> None:
    """Those of the model, which are the pieces of the checkpoint rounded to what it computes in."""
    facts = found(checkpoints, f"saved{stage}_whole_{half}", WORK)
    assert "model.safetensors" in facts["files"]
    assert (facts["stored"], facts["pieces"], facts["as_pieces"]) == (True, True, True)


@pytest.mark.parametrize("half", ["fp32", "bf16"])
def test_saved_models_are_left_in_pieces(half: str, checkpoints: Path) -> None:
    """At stage 3, unless whole weights are asked for; the pieces are in full precision."""
    facts = found(checkpoints, f"saved3_pieces_{half}", WORK)
    assert {"config.json", "global_step4", "latest", "zero_to_fp32.py"} <= set(facts["files"])
    assert "model.safetensors" not in facts["files"]
    assert (facts["stored"], facts["pieces"]) == (True, True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_own_save_and_load_work(stage: int, checkpoints: Path) -> None:
    """`trainer.deepspeed.save_checkpoint`, loaded into another run's engine."""
    facts = found(checkpoints, f"by_hand{stage}", WORK)
    assert facts["path"].endswith("model_states.pt")
    assert facts["same"]


@pytest.mark.parametrize("name", [name for name, *_ in BEST])
def test_the_best_model_is_kept_and_loaded(name: str, checkpoints: Path) -> None:
    """Although it is not the last, and `save_total_limit` leaves one; training then goes on from it."""
    for rank in range(2):
        facts = found(checkpoints, f"best_{name}", WORK, rank)
        assert (facts["at"], facts["left"]) == (2, ["checkpoint-2"])
        assert facts["after"] == facts["best"] == facts["evaluated"][0] > facts["evaluated"][1]
        assert facts["trained"] == "nothing"
    assert ("latest" in facts["files"]) == ("only" not in name)
    assert ("model.safetensors" in facts["files"]) == (name not in ("3", "3_in_the_background"))


@pytest.mark.parametrize(("source", "stage"), [(2, 2), (3, 3), (2, 3)])
def test_a_checkpoint_that_is_not_universal_is_said_to_be_none(source: int, stage: int, checkpoints: Path) -> None:
    """It is read as any other, bit for bit; DeepSpeed would not say so."""
    facts = found(checkpoints, f"not_universal{source}_{stage}", WORK)
    assert facts["again"] == facts["losses"]
    (said,) = [text for text in facts["heard"] if "load_universal: " in text]
    assert "checkpoint-2 has no latest_universal, and its own pieces are read" in said


@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
@pytest.mark.parametrize("name", ["2", "3", "3_whole"])
def test_adapters_leave_small_checkpoints(name: str, checkpoints: Path) -> None:
    """Without what is frozen, with the adapters for PEFT; a run goes on from them bit for bit, at another stage too."""
    facts = found(checkpoints, f"adapters{name}", WORK)
    assert (facts["wrapper"], facts["stage"], facts["damage"]) == ("DeepSpeedEngine", int(name[0]), [])
    assert {"adapter_config.json", "adapter_model.safetensors", "global_step4"} <= set(facts["files"])
    assert facts["adapters_are_the_trained"], "whole, whatever is in pieces"
    assert facts["without"] < facts["with"] / 2
    assert facts["again"] == facts["other"] == facts["losses"]
    assert facts["same"]
