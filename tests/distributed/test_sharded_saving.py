"""Checkpoints of several processes: a disk per machine, and random states on another number of processes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.checkpoint import verify
from tests.distributed import worker_saving
from tests.helpers import runs
from tests.helpers.checkpoints import flip
from tests.helpers.ranks import HERE, Host, World

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

MACHINES = [HERE, HERE, Host("127.0.0.2")]
"""A machine of two processes and one of one, as they know themselves."""

EACH_NODE = {
    "save_on_each_node": True,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 2,
}
STEPS = 8


def run(name: str, out: Path, hosts: list[Host], resume: Any = None, **options: Any) -> list[dict[str, Any]]:
    """What each rank of a run wrote down."""
    places = {host: f"machine-{number}" for number, host in enumerate(dict.fromkeys(hosts))}
    world = World(out / "printed", hosts)
    world.start(worker_saving.train, name, out, resume, options, of_rank=lambda rank: (places[hosts[rank]],))
    for ended in world.wait():
        assert ended.status == 0, ended.text[-4000:]
    found = [torch.load(out / f"{name}-rank{rank}.pt", weights_only=True) for rank in range(len(hosts))]
    assert [facts["world"] for facts in found] == [len(hosts)] * len(hosts)
    if len(hosts) > 1:
        assert {facts["wrapper"] for facts in found} == {"DistributedDataParallel"}
    return found


def steps_in(folder: Path) -> list[int]:
    """The steps of its checkpoints."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


# ---- a disk per machine ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run of two machines that each save on their own disk."""
    out = tmp_path_factory.mktemp("each-node")
    return out, run("whole", out, MACHINES, **EACH_NODE)


def test_each_machine_has_whole_checkpoints(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    """All of the model, and the random states of the processes there."""
    out, _ = whole
    for machine, ranks in enumerate([(0, 1), (2,)]):
        folder = out / f"machine-{machine}"
        assert steps_in(folder) == list(range(1, STEPS + 1))
        for checkpoint in folder.glob("checkpoint-*"):
            assert verify(checkpoint) == []
            names = {path.name for path in checkpoint.iterdir()}
            assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= names
            own = {f"rng_state_{rank}.pth" for rank in ranks}
            assert {name for name in names if name.startswith("rng_state")} == own


@pytest.fixture(scope="module")
def resumed(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """Resumed where the first machine's checkpoint-7 is damaged, and the second lacks the last."""
    out = tmp_path_factory.mktemp("resumed")
    for machine in ("machine-0", "machine-1"):
        shutil.copytree(whole[0] / machine, out / machine)
    flip(out / "machine-0" / "checkpoint-7" / "optimizer.pt", 900)
    shutil.rmtree(out / "machine-1" / "checkpoint-8")
    return out, run("resumed", out, MACHINES, resume=True, **EACH_NODE)


def test_the_newest_that_all_machines_have_is_resumed_from(
    whole: tuple[Path, list[dict[str, Any]]], resumed: tuple[Path, list[dict[str, Any]]]
) -> None:
    """To the bit, dropout included; what is not valid is moved aside on its own machine."""
    out, found = resumed
    for before, after in zip(whole[1], found, strict=True):
        assert runs.same(before["weights"], after["weights"])
        assert before["history"][:-1] == after["history"][:-1]
    told = " ".join(found[0]["told"])
    assert "looking for what all have, up to step 7" in told
    assert "looking for what all have, up to step 6" in told
    assert (out / "machine-0" / "checkpoint-7.damaged").is_dir()
    assert not (out / "machine-1" / "checkpoint-7.damaged").exists()
    for machine in ("machine-0", "machine-1"):
        assert steps_in(out / machine) == list(range(1, STEPS + 1))
        assert [verify(path) for path in (out / machine).glob("checkpoint-[0-9]")] == [[]] * STEPS


def test_each_machine_makes_room_and_keeps_its_best(tmp_path: Path) -> None:
    """In the background, too, with the best model loaded from each one's own disk."""
    found = run(
        "rotated",
        tmp_path,
        MACHINES,
        **EACH_NODE,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        save_in_background=True,
        learning_rate=0.3,
    )
    first, second = (steps_in(tmp_path / f"machine-{machine}") for machine in range(2))
    assert first == second
    assert len(first) == 2
    assert STEPS in first
    assert [facts["error"] for facts in found] == [""] * 3
    best = [Path(facts["best"]) for facts in found]
    assert [path.parent.name for path in best] == ["machine-0", "machine-0", "machine-1"]
    assert len({path.name for path in best}) == 1
    assert all(path.is_dir() for path in best)
    assert all(runs.same(found[0]["weights"], facts["weights"]) for facts in found)


# ---- another number of processes ----


SIZES = {1: 8, 2: 4, 4: 2}
"""Samples of each process, so that an update has as many on any number of them."""


def options(processes: int, steps: int) -> dict[str, Any]:
    """The same work for some processes."""
    return {
        "per_device_train_batch_size": SIZES[processes],
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "save_steps": steps,
        "eval_strategy": "no",
    }


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two updates of one, two and four processes."""
    folders = {}
    for processes in SIZES:
        out = folders[processes] = tmp_path_factory.mktemp(f"begun-by-{processes}")
        run("begun", out, [HERE] * processes, **options(processes, 2))
    return folders


def resumed_by(now: int, begun: Path, out: Path) -> list[dict[str, Any]]:
    """What some processes make of another two updates."""
    shutil.copytree(begun / "machine-0", out / "machine-0")
    return run("resumed", out, [HERE] * now, resume=True, **options(now, 4))


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 2)])
def test_a_changed_number_of_processes_draws_numbers_of_its_own(
    before: int, now: int, begun: dict[int, Path], tmp_path: Path
) -> None:
    """Different ones in each process, and told."""
    found = resumed_by(now, begun[before], tmp_path)
    words = f"written by {before} process(es), and here are {now}"
    assert [[words in text for text in facts["told"]] for facts in found] == [[True]] * now
    assert len({facts["stream"] for facts in found}) == now


def test_the_same_resume_draws_the_same_numbers(begun: dict[int, Path], tmp_path: Path) -> None:
    one, other = (resumed_by(1, begun[2], tmp_path / str(again)) for again in range(2))
    assert one[0]["stream"] == other[0]["stream"]
    assert runs.same(one[0]["weights"], other[0]["weights"])


def test_as_many_processes_go_on_with_their_own(begun: dict[int, Path], tmp_path: Path) -> None:
    assert [facts["told"] for facts in resumed_by(2, begun[2], tmp_path)] == [[], []]
