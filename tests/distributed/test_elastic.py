"""Elastic jobs: processes come and go, and every sample of an epoch is trained on once.

There are two launchers, as on two machines.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mainspring import checkpoint
from tests.distributed import worker_elastic as worker
from tests.distributed.launch import ROOT, environment
from tests.helpers.ranks import HERE, World
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own checkpoints"),
]

RENDEZVOUS = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What an elastic job of two nodes left behind.

    Attributes:
        folder: Of the run.
        statuses: With which the agents ended.
        texts: What the nodes printed.
        notes: What the worker of each node noted.
    """

    folder: Path
    statuses: list[int]
    texts: list[str]
    notes: list[Lines]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The worker of the second node is killed; all form anew. Then that node is killed; the other goes on alone."""
    folder = tmp_path_factory.mktemp("elastic")
    port = _free_port()
    return _ended(folder, [_agent(folder, node, "shrinks", port) for node in range(2)])


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The second node comes when the first one trains already."""
    folder = tmp_path_factory.mktemp("grown")
    port = _free_port()
    first = _agent(folder, 0, "grows", port)
    assert first.stdout is not None
    for line in first.stdout:
        if worker.ALONE in line:
            break
    return _ended(folder, [first, _agent(folder, 1, "grows", port)])


def _ended(folder: Path, agents: list[subprocess.Popen[str]]) -> Job:
    try:
        texts = [agent.communicate(timeout=300)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    notes = [_lines(folder / f"node{node}.jsonl") for node in range(2)]
    return Job(folder / "run", [agent.returncode for agent in agents], texts, notes)


def _agent(folder: Path, node: int, mode: str, port: int) -> subprocess.Popen[str]:
    options = {
        "nnodes": "1:2",
        "nproc": 1,
        "max-restarts": 3,
        "rdzv-backend": "c10d",
        "rdzv-endpoint": f"127.0.0.1:{port}",
        "rdzv-conf": f"is_host={1 - node},{RENDEZVOUS}",
        "rdzv-id": "elastic",
        "local-addr": "127.0.0.1",
    }
    command = [sys.executable, "-m", "mainspring.cli", "launch", "--cpu", *(f"--{k}={v}" for k, v in options.items())]
    command += ["-m", "tests.distributed.worker_elastic", str(folder), mode]
    own = {"NODE": str(node), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command, env={**environment(), **own}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _lines(file: Path) -> Lines:
    return [json.loads(line) for line in file.read_text().splitlines()]


def what_counts(notes: Iterable[Lines]) -> dict[int, Counter[int]]:
    """How often each sample was trained on, by epoch, by the updates that the final weights are made of."""
    epochs: dict[int, Counter[int]] = {}
    starts = [line["began_at"] for lines in notes for line in lines if "began_at" in line]
    for lines in notes:
        updates: dict[int, dict[str, Any]] = {}
        for line in lines:
            if "began_at" in line:  # what came after the checkpoint was lost
                updates = {step: update for step, update in updates.items() if step <= line["began_at"]}
            elif "step" in line:
                updates[line["step"]] = line
        last = max(starts) if "ended_at" not in lines[-1] else max(updates)  # of one that did not come back
        for step, update in updates.items():
            if step <= last:
                epochs.setdefault(update["epoch"], Counter()).update(update["samples"])
    return epochs


EACH_ONCE = {epoch: Counter(range(worker.SAMPLES)) for epoch in range(worker.EPOCHS)}


def test_the_job_forms_anew_and_goes_on_with_who_is_left(job: Job) -> None:
    assert job.statuses == [0, -signal.SIGKILL], job.texts[0][-4000:]
    starts = [[(line["began_at"], line["world_size"]) for line in lines if "began_at" in line] for lines in job.notes]
    assert starts == [[(0, 2), (2, 2), (4, 1)], [(0, 2), (2, 2)]]


def test_every_sample_of_an_epoch_counts_once(job: Job) -> None:
    assert what_counts(job.notes) == EACH_ONCE


def test_the_plan_follows_from_the_samples_left(job: Job) -> None:
    """Four updates of two processes, and then twice as many of one as two would have made."""
    whole = worker.SAMPLES * worker.EPOCHS // (2 * worker.BATCH)
    ended = 4 + 2 * (whole - 4)
    assert job.notes[0][-1] == {"ended_at": ended, "planned": ended}
    folders = sorted(job.folder.glob("checkpoint-*"))
    assert job.folder / f"checkpoint-{ended}" in folders
    assert [checkpoint.verify(folder) for folder in folders] == [[]] * len(folders)


def test_who_is_left_says_who_is_gone(job: Job) -> None:
    assert "rank 1 is not heard of any more" in job.texts[0] or "rank 0 is not heard of any more" in job.texts[0]
    assert "lost the other processes in training, update 5" in job.texts[0]


def test_a_machine_that_comes_loses_nothing(grown: Job) -> None:
    """The one that is there saves, and both go on from there."""
    assert grown.statuses == [0, 0], grown.texts
    starts = [[(line["began_at"], line["world_size"]) for line in lines if "began_at" in line] for lines in grown.notes]
    (_, (stopped_at, _)), _ = starts
    assert starts == [[(0, 1), (stopped_at, 2)], [(stopped_at, 2)]]
    steps = [line["step"] for line in grown.notes[0] if "step" in line]
    assert steps == list(range(1, stopped_at + 4)), "no update was made twice"
    assert f"stopped at step {stopped_at} of 1000000" in grown.texts[0]


def test_sizes_that_do_not_divide_each_other(tmp_path: Path) -> None:
    """After three batches of one process there are none of two processes, nor of four, that end there."""
    for start, (size, until) in enumerate([(1, 3), (2, 5), (4, 6), (1, None)]):
        world = World(tmp_path / f"printed-{start}", [HERE] * size)
        world.start(worker.train_until, tmp_path, until)
        for ended in world.wait():
            assert ended.status == (0 if until is None else -signal.SIGKILL), ended.text
    notes = [_lines(file) for file in sorted(tmp_path.glob("*.jsonl"))]
    sizes = [line["world_size"] for line in notes[0] if "began_at" in line]
    assert (sizes, len(notes)) == ([1, 2, 4, 1], 4)
    assert what_counts(notes) == EACH_ONCE
