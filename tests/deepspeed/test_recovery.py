"""Whole weights of a checkpoint in pieces: while the trainer is there, and from the folder, as documented."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model

from mainspring.checkpoint.zero import get_fp32_state_dict_from_zero_checkpoint
from mainspring.cli import main
from tests.deepspeed.read import found
from tests.distributed.launch import environment
from tests.helpers.models import tiny_gpt2

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

WORK = "checkpoints"
TIED = {"lm_head.weight", "transformer.wte.weight"}


@pytest.mark.parametrize("half", ["", "_bf16"])
@pytest.mark.parametrize("way", ["last", "by_hand"])
@pytest.mark.parametrize("stage", [2, 3])
def test_both_documented_ways_run_as_they_stand(stage: int, way: str, half: str, checkpoints: Path) -> None:
    """With our own function; the model then has the whole weights, and computes with them by itself."""
    for rank in range(2):
        facts = found(checkpoints, f"recovered{stage}_{way}{half}", WORK, rank)
        assert facts["engine"] == "DeepSpeedEngine"
        assert facts["same"]
        assert facts["computes"]


@pytest.mark.parametrize("half", ["", "_bf16"])
@pytest.mark.parametrize("way", ["last", "by_hand"])
@pytest.mark.parametrize("stage", [2, 3])
def test_who_trains_on_is_told_to_begin_anew(stage: int, way: str, half: str, checkpoints: Path) -> None:
    """The engine does not know of the weights, or steps others; what can still be evaluated is."""
    facts = found(checkpoints, f"recovered{stage}_{way}{half}", WORK)
    assert "weights were put into the model" in facts["trained"]
    assert "make a new model and a new Trainer" in facts["trained"]
    assert facts["evaluated"] == (facts["trained"] if stage == 3 else "nothing")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_weights_that_a_step_would_overwrite_are_refused(stage: int, checkpoints: Path) -> None:
    """In a callback and between runs; not those that DeepSpeed's own function loads, nor where there are no copies."""
    facts = found(checkpoints, f"filled{stage}", WORK)
    assert (facts["loaded"], facts["evaluated"]) == ("nothing", "nothing")
    for said in (facts["inside"], facts["after"]):
        assert said == "nothing" if stage == 0 else "not into the copies that DeepSpeed's optimizer steps" in said


@pytest.mark.parametrize("stage", [2, 3])
def test_the_script_in_the_checkpoint_works(stage: int, checkpoints: Path, tmp_path: Path) -> None:
    """The documented `./zero_to_fp32.py . pytorch_model.bin`: a folder of that name, since 0.19."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints / WORK / f"for_others{stage}" / "checkpoint-4", folder)
    subprocess.run(
        [sys.executable, "./zero_to_fp32.py", ".", "pytorch_model.bin"],
        cwd=folder, env=environment(), check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    made = torch.load(folder / "pytorch_model.bin" / "pytorch_model.bin", weights_only=True)
    wanted = get_fp32_state_dict_from_zero_checkpoint(folder)
    assert made.keys() == wanted.keys() >= TIED
    assert all(torch.equal(made[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_export_makes_the_file(
    stage: int, name: str, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of tied weights as well: a model that ties them has all of its own."""
    folder = checkpoints / WORK / f"for_others{stage}" / "checkpoint-4"
    assert main(["export", str(folder), str(tmp_path / name)]) == 0
    assert f"ZeRO stage {stage}" in capsys.readouterr().out
    model = tiny_gpt2(width=32)
    if name.endswith(".bin"):
        model.load_state_dict(torch.load(tmp_path / name, weights_only=True))
    else:
        assert load_model(model, tmp_path / name) == (set(), [])
    wanted = get_fp32_state_dict_from_zero_checkpoint(folder)
    assert all(torch.equal(value, wanted[name]) for name, value in model.named_parameters(remove_duplicate=False))
    assert model.lm_head.weight is model.transformer.wte.weight
