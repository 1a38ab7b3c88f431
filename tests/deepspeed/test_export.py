"""Checkpoints that DeepSpeed wrote on two processes, read without it: the gathered weights, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mainspring.checkpoint import get_fp32_state_dict_from_zero_checkpoint
from mainspring.checkpoint.export import export
from mainspring.checkpoint.lazy_torch import read_lazily
from mainspring.checkpoint.pickles import dangerous_globals
from mainspring.checkpoint.zero import DEEPSPEED_OBJECTS, zero_weights
from mainspring.errors import CheckpointError
from tests.distributed.launch import PROCESSES, torchrun

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.deepspeed, pytest.mark.slow]

ZERO = [f"zero{stage}-{kind}" for stage in (1, 2, 3) for kind in ("fp32", "bf16")]
WHOLE = [*ZERO, "zero2-in-turn", "zero3-many-groups", "zero2-offloaded", "zero3-offloaded"]
UNREAD = ["zero1-sums"]
"""Where gradients are summed in float32, DeepSpeed's checkpoints are none to its own function."""
WITHOUT_FROZEN = ["zero2-without-frozen", "zero3-without-frozen"]
UNIVERSAL = ["zero1-universal", "zero3-universal"]
UNDIVIDED = ["zero0-fp32", "zero0-bf16"]
TRAINED = ["trained-zero2-fp32", "trained-zero3-fp32", "trained-zero3-bf16"]
FROZEN = ("frozen.weight", "frozen.bias")
WRONG_MASTERS = ("zero2-in-turn",)
"""Where DeepSpeed gathers some parameters under the names of others; what the model computes with is right."""

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one launch wrote."""
    out = tmp_path_factory.mktemp("zero")
    torchrun("tests.deepspeed.worker_export", str(out))
    return out


def facts_of(folder: Path, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = torch.load(folder / f"{name}.facts.pt")
    return facts


def expected(folder: Path, name: str) -> State:
    """What the checkpoint must hold: the optimizer's numbers, and all else as the model has it."""
    facts = facts_of(folder, name)
    known: State = facts["held"] if name in WRONG_MASTERS else {**facts["held"], **facts["masters"]}
    return {key: value for key, value in known.items() if name not in WITHOUT_FROZEN or key not in FROZEN}


def assert_equal(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", [*UNDIVIDED, *WHOLE, *UNREAD, *WITHOUT_FROZEN, *UNIVERSAL, *TRAINED])
def test_the_runs_were_deepspeeds(folder: Path, name: str) -> None:
    facts = facts_of(folder, name)
    stage = int(name.rpartition("zero")[2][0] if name in TRAINED else name[4])
    assert (facts["engine"], facts["stage"], facts["world_size"]) == ("DeepSpeedEngine", stage, PROCESSES)


@pytest.mark.parametrize("name", [*WHOLE, *UNREAD, *WITHOUT_FROZEN])
def test_the_weights_are_the_gathered_ones(folder: Path, name: str) -> None:
    found = get_fp32_state_dict_from_zero_checkpoint(folder / name)
    assert found["head.weight"] is found["words.weight"]
    wanted = expected(folder, name)
    assert_equal(found, {**wanted, "head.weight": wanted["words.weight"]})


@pytest.mark.parametrize("name", [*WHOLE, *WITHOUT_FROZEN, *UNIVERSAL])
def test_they_are_those_of_deepspeeds_own_function(folder: Path, name: str) -> None:
    """At stage 1 that leaves out what is frozen."""
    theirs = facts_of(folder, name)["recovered"]
    found = get_fp32_state_dict_from_zero_checkpoint(folder / name)
    lacking = set(FROZEN) if name.startswith("zero1") else set()
    assert found.keys() - theirs.keys() == lacking
    assert_equal({key: found[key] for key in theirs}, {key: value.detach() for key, value in theirs.items()})
    assert [key for key in found if key in theirs] == list(theirs)


@pytest.mark.parametrize("name", UNREAD)
def test_what_that_cannot_read_is_read(folder: Path, name: str) -> None:
    assert "is not a zero checkpoint" in facts_of(folder, name)["recovered"]
    assert zero_weights(folder / name).stage == 1


@pytest.mark.parametrize("name", ["zero1-fp32", "zero2-bf16", "zero3-bf16", "zero2-without-frozen"])
def test_frozen_parameters_can_be_left_out(folder: Path, name: str) -> None:
    every = get_fp32_state_dict_from_zero_checkpoint(folder / name)
    some = get_fp32_state_dict_from_zero_checkpoint(folder / name, exclude_frozen_parameters=True)
    assert_equal(some, {key: value for key, value in every.items() if key not in FROZEN})


def test_lazy_tensors_are_read_when_they_are_asked_for(folder: Path) -> None:
    lazy: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(folder / "zero3-bf16", lazy_mode=True)
    whole = get_fp32_state_dict_from_zero_checkpoint(folder / "zero3-bf16")
    assert not any(isinstance(value, Tensor) for value in lazy.values())
    assert lazy["out.weight"].shape == (6, 5)
    assert_equal({"out.weight": lazy["out.weight"].contiguous()}, {"out.weight": whole["out.weight"]})


@pytest.mark.parametrize("name", UNDIVIDED)
def test_without_zero_the_model_is_as_it_was(folder: Path, name: str) -> None:
    wanted = expected(folder, name)
    found = get_fp32_state_dict_from_zero_checkpoint(folder / name)
    assert_equal(found, {**wanted, "head.weight": wanted["words.weight"]})


@pytest.mark.parametrize("name", UNIVERSAL)
def test_universal_checkpoints_hold_the_same(folder: Path, name: str) -> None:
    found = get_fp32_state_dict_from_zero_checkpoint(folder / name, tag="global_step3_universal")
    assert_equal(found, get_fp32_state_dict_from_zero_checkpoint(folder / name))


@pytest.mark.parametrize("name", [*UNDIVIDED, *WHOLE, *UNREAD])
def test_a_live_model_gets_them_back(folder: Path, name: str) -> None:
    """Also one whose parameters are divided; in the types that it has."""
    loaded, held = facts_of(folder, name)["loaded"], facts_of(folder, name)["held"]
    assert_equal(loaded, {**held, "head.weight": held["words.weight"]})


@pytest.mark.parametrize("name", ["zero2-fp32", "zero3-bf16"])
def test_nothing_but_deepspeeds_own_objects_is_stood_in_for(folder: Path, name: str) -> None:
    """They are refused everywhere else."""
    for file in sorted((folder / name).glob("*/*_optim_states.pt")):
        assert set(dangerous_globals(file)) <= DEEPSPEED_OBJECTS.keys()
        with pytest.raises(CheckpointError, match=r"deepspeed\.runtime"):
            read_lazily(file)


def test_the_stage_and_the_tied_names_are_known(folder: Path) -> None:
    found = zero_weights(folder / "zero3-fp32")
    assert found.stage == 3
    assert found.aliases == {"head.weight": "words.weight"}
    assert found.buffers == {"shift", "seen"}


def test_a_process_file_that_is_gone_is_missed(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy" / "global_step3"
    place.mkdir(parents=True)
    (tmp_path / "copy" / "latest").write_text("global_step3")
    for file in (folder / "zero2-fp32" / "global_step3").iterdir():
        if "rank_1" not in file.name:
            (place / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="1 processes wrote of the optimizer, and there were 2"):
        zero_weights(tmp_path / "copy")


# ---- exports ----


@pytest.mark.parametrize("name", [*WHOLE, *UNREAD, *UNIVERSAL])
def test_an_export_has_each_weight_once_in_float32(folder: Path, name: str, tmp_path: Path) -> None:
    done = export(folder / name, tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert done.form == f"DeepSpeed's, ZeRO stage {name[4]}"
    wanted = {
        key: value.float() if value.is_floating_point() else value for key, value in expected(folder, name).items()
    }
    assert_equal(found, wanted)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_of_the_trainer_becomes_a_model(folder: Path, name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = folder / name / "checkpoint-4"
    export(checkpoint, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    wanted = expected(folder, name)
    assert_equal({key: value.detach() for key, value in model.named_parameters()}, wanted)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    """A bit in the pieces of a process, which its manifest knows of."""
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(folder / "trained-zero3-fp32" / "checkpoint-4", checkpoint)
    (file, *_) = sorted(checkpoint.glob("*/zero_pp_rank_1_*_optim_states.pt"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank_1_mp_rank_00_optim_states.pt is not what was written"):
        export(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_shards_become_a_model(folder: Path, tmp_path: Path) -> None:
    done = export(folder / "shards", tmp_path / "model")
    assert done.form == "FSDP's shards"
    assert_equal(load_file(tmp_path / "model" / "model.safetensors"), torch.load(folder / "shards.whole.pt"))
