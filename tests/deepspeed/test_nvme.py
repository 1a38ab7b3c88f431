"""Optimizer and weights on a disk: trained as in memory, resumed from what they had, and refused where there is no room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mainspring.engines.deepspeed.disks import check_disks, read_once
from mainspring.errors import OptionError
from tests.deepspeed.nvme import AIO, SUB_GROUP
from tests.deepspeed.read import found
from tests.distributed.launch import torchrun

pytestmark = [pytest.mark.deepspeed]

WORK = "nvme"
on_disks = [pytest.mark.nvme, pytest.mark.distributed, pytest.mark.slow]
NEAR = 1e-6


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, cpu_adam: None, async_io: None) -> Path:
    """What two processes found out."""
    out = tmp_path_factory.mktemp("nvme")
    torchrun("tests.deepspeed.worker_offload", str(out), WORK)
    return out


def _of_launch(test: Any) -> Any:
    for mark in on_disks:
        test = mark(test)
    return test


@_of_launch
@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", ["states", "weights", "both"])
def test_runs_train_as_in_memory(name: str, rank: int, on_disk: Path) -> None:
    """Bit for bit; what is large enough rests on the disk meanwhile, and the section of its settings acts."""
    facts = found(on_disk, name, WORK, rank)
    assert (facts["world_size"], facts["wrapper"], facts["stage"]) == (2, "DeepSpeedEngine", 3)
    assert facts["losses"] == facts["memory"]
    assert facts["aio"] == AIO
    if name == "weights":
        assert facts["inner"] == "AdamW"
        assert facts["bytes"] > 4 * SUB_GROUP
    else:
        assert facts["inner"] == "DeepSpeedCPUAdam"
        assert facts["states"] < facts["numbers"] / 10, "most of the states are in memory"
        assert facts["rests"] > 2 * SUB_GROUP
        assert facts["bytes"] > 12 * facts["rests"], "a copy and two states of each number, of two processes"


@_of_launch
@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", ["resumes", "resumes_elsewhere", "resumes_both", "resumes_bf16"])
def test_a_run_goes_on_from_what_it_had(name: str, rank: int, on_disk: Path) -> None:
    """DeepSpeed's own `load_checkpoint` would leave it the states that it was made with; also in another folder."""
    facts = found(on_disk, name, WORK, rank)
    assert facts["states"] < facts["numbers"] / 10
    assert facts["again"] == pytest.approx(facts["losses"], rel=1e-4 if "bf16" in name else NEAR)
    assert facts["rates"] == [0.0, 0.005, 0.01, 0.005]
    assert facts["moments"] == pytest.approx(facts["moments_of_first"], rel=1e-4)
    assert facts["moments"] > 0
    assert facts["far"] < (2e-2 if "bf16" in name else 1e-4)
    assert facts["heard"] == []


@_of_launch
def test_runs_go_on_between_disk_and_memory(on_disk: Path) -> None:
    """Both ways."""
    facts = found(on_disk, "to_memory", WORK)
    for way in ("to", "from"):
        assert facts[way] == pytest.approx(facts["losses"], rel=NEAR)


@_of_launch
def test_a_checkpoint_without_all_states_is_refused(on_disk: Path) -> None:
    """Never gone on from with fresh ones."""
    assert found(on_disk, "lost", WORK).startswith("CheckpointError: ")


@_of_launch
def test_folders_without_room_are_refused_before_training(on_disk: Path) -> None:
    """With the key, the folder and the reason."""
    said = found(on_disk, "refused", WORK)
    for name, key in (("states", "optimizer"), ("weights", "param"), ("full", "optimizer")):
        assert said[name].startswith(f"OptionError: deepspeed zero_optimization.offload_{key}.nvme_path=")
    assert "are to rest there, and 4.0 KiB are free" in said["full"]


# ---- in one process, without an engine ----


def _config(folder: Path, what: str = "optimizer") -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, f"offload_{what}": {"device": "nvme", "nvme_path": str(folder)}}}


def test_folders_are_made(tmp_path: Path) -> None:
    """And left empty."""
    check_disks(nn.Linear(2, 2), _config(tmp_path / "a" / "b"), 1, 1)
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("what", ["optimizer", "param"])
def test_a_folder_that_is_none_is_refused(what: str, tmp_path: Path) -> None:
    """Naming the key."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=f"offload_{what}.nvme_path=.*nothing can be written there"):
        check_disks(nn.Linear(2, 2), _config(tmp_path / "file", what), 1, 1)


@pytest.mark.parametrize(("here", "every", "fits"), [(2, 2, False), (1, 2, True)])
def test_processes_of_a_machine_share_its_disk(
    here: int, every: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of others need no room on it."""
    needed = 16 * 100 * 100
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed * 3 // 4))
    model = nn.Linear(100, 100, bias=False)
    if fits:
        check_disks(model, _config(tmp_path), here, every)
    else:
        with pytest.raises(OptionError, match="are free"):
            check_disks(model, _config(tmp_path), here, every)


def test_a_weight_that_is_used_twice_is_read_once() -> None:
    """In the order of the first use."""
    asked: list[Any] = []
    swapper = SimpleNamespace(swap_in=lambda params, async_op: asked.append((params, async_op)))
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.nvme_swapper = swapper  # type: ignore[attr-defined]
    read_once(model)
    swapper.swap_in([model.bias, model.weight, model.bias], async_op=True)
    (params, async_op), = asked  # fmt: skip
    assert [id(p) for p in params] == [id(model.bias), id(model.weight)]
    assert async_op
    assert torch.is_tensor(params[0])
