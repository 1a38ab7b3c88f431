"""Checkpoints between engines, stages, numbers of processes, and places where the optimizer rests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.deepspeed.checkpoints import DIVIDED, OTHERS, STAGES, goes_on
from tests.deepspeed.read import found
from tests.deepspeed.runs import logged
from tests.distributed.launch import torchrun

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

WORK = "checkpoints"


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_without_deepspeed_is_gone_on_from(stage: int, checkpoints: Path) -> None:
    """Bit for bit: weights, what the optimizer remembers, and its rates."""
    for rank in range(2):
        facts = found(checkpoints, f"from_plain{stage}", WORK, rank)
        assert facts["losses"] == found(checkpoints, "plain", WORK, rank)
        assert facts["rates"] == pytest.approx([0.0, 0.005, 0.01, 0.005])
        assert not [text for text in facts["heard"] if "afresh" in text]


@pytest.mark.parametrize("stage", DIVIDED)
def test_weights_from_elsewhere_keep_their_precision(stage: int, checkpoints: Path) -> None:
    """Where the model computes in half of it, the optimizer steps copies in full."""
    facts = found(checkpoints, f"masters{stage}", WORK)
    assert facts["same"]
    assert facts["names"] == 28
    in_half = found(checkpoints, f"from_plain{stage}_bf16", WORK)["losses"]
    assert in_half == pytest.approx(found(checkpoints, "plain", WORK), rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("source", STAGES)
def test_a_run_goes_on_at_another_stage(source: int, stage: int, checkpoints: Path) -> None:
    """Bit for bit, DeepSpeed's own checkpoints being of one stage only."""
    if source != stage:
        facts = found(checkpoints, f"stage{source}_to_{stage}", WORK)
        assert facts["again"] == facts["losses"]
        assert facts["rates"] == pytest.approx([0.0, 0.005, 0.01, 0.005])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("stage", STAGES)
def test_other_engines_go_on_from_deepspeeds_pieces(stage: int, name: str, half: bool, checkpoints: Path) -> None:
    """Bit for bit; in half precision they compute otherwise than DeepSpeed."""
    facts = found(checkpoints, f"stage{stage}_{'bf16' if half else 'fp32'}_to_{name}", WORK)
    assert facts["wrapper"] == {"ddp": "DistributedDataParallel", "fsdp": "FSDPGPT2LMHeadModel"}[name]
    assert facts["again"] == (pytest.approx(facts["losses"], rel=1e-4) if half else facts["losses"])


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_goes_on_from_deepspeeds_pieces(stage: int, checkpoints: Path, tmp_path: Path) -> None:
    """Without DeepSpeed."""
    source = checkpoints / WORK / f"contents{stage}"
    run = goes_on(tmp_path, source, step=4, max_steps=6)
    assert run.state.global_step == 6
    assert logged(run)[:4] == pytest.approx(found(checkpoints, "plain", WORK), rel=1e-6)
    assert all(state["step"] == torch.tensor(6.0) for state in run.optimizer.state.values())


@pytest.fixture(scope="module")
def others(checkpoints: Path) -> Path:
    """What one process, and four, made of the checkpoints of two."""
    torchrun("tests.deepspeed.worker_checkpoints", str(checkpoints), "one", processes=1)
    torchrun("tests.deepspeed.worker_checkpoints", str(checkpoints), "four", processes=4)
    return checkpoints


@pytest.mark.parametrize("way", ["pieces", "universal"])
@pytest.mark.parametrize(("work", "processes"), [("one", 1), ("four", 4)])
@pytest.mark.parametrize("stage", DIVIDED)
def test_another_number_of_processes_goes_on(stage: int, work: str, processes: int, way: str, others: Path) -> None:
    """From the pieces themselves, and from a universal checkpoint by DeepSpeed's own reading."""
    facts = found(others, f"stage{stage}", work)[way]
    assert (facts["world_size"], facts["wrapper"], facts["stage"]) == (processes, "DeepSpeedEngine", stage)
    made = found(others, f"for_others{stage}", WORK)
    assert facts["losses"] == pytest.approx(made["losses"], rel=1e-6)
    assert facts["rates"] == pytest.approx(made["rates"])


def _goes_on_elsewhere(facts: dict[str, Any], half: bool) -> None:
    assert (facts["world_size"], facts["wrapper"], facts["inner"]) == (2, "DeepSpeedEngine", "DeepSpeedCPUAdam")
    tolerance = 1e-4 if half else 1e-6
    for way in ("again", "here"):
        assert facts[way] == pytest.approx(facts["losses"], rel=tolerance)
    # Its Adam counts in single numbers what torch's counts otherwise: weights differ where gradients are next to nothing.
    assert facts["far"] < 2e-2
    assert facts["there"] == pytest.approx(facts["losses"], rel=1e-3)
    assert not [text for text in facts["heard"] if "afresh" in text]


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory: pytest.TempPathFactory, cpu_adam: None) -> Path:
    """What two processes found out with DeepSpeed's Adam for the host, which is compiled once."""
    out = tmp_path_factory.mktemp("offloaded")
    torchrun("tests.deepspeed.worker_checkpoints", str(out), "offloaded")
    return out


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_on_the_host_goes_on(stage: int, half: bool, offloaded: Path) -> None:
    """Not bit for bit: there, on the device, and there from a checkpoint without DeepSpeed."""
    _goes_on_elsewhere(found(offloaded, f"stage{stage}_{'bf16' if half else 'fp32'}", "offloaded"), half)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, cpu_adam: None, async_io: None) -> Path:
    """What two processes found out with an optimizer on a disk."""
    out = tmp_path_factory.mktemp("nvme")
    torchrun("tests.deepspeed.worker_checkpoints", str(out), "nvme")
    return out


@pytest.mark.nvme
@pytest.mark.parametrize("half", [False, True])
def test_an_optimizer_on_a_disk_goes_on(half: bool, on_disk: Path) -> None:
    """DeepSpeed itself would read nothing into it, and begin from the weights it was made with."""
    facts = found(on_disk, f"nvme_{'bf16' if half else 'fp32'}", "nvme")
    assert facts["states"] < facts["numbers"] / 10, "most of it is not in memory"
    _goes_on_elsewhere(facts, half)
