"""Whoever of the processes is asked to stop, all do so together, with one checkpoint; so they do when torchrun is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mainspring import checkpoint
from mainspring.errors import EXIT_RESUMABLE
from tests.distributed import worker_preempted as worker
from tests.distributed.launch import ROOT, environment
from tests.helpers import ranks
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own checkpoints"),
]


@pytest.mark.parametrize(
    ("processes", "asked", "rank"), [(2, "SIGUSR1", 1), (2, "SIGTERM", 0), (4, "SIGTERM", 3), (4, "SIGUSR1", 0)]
)
def test_all_stop_within_two_updates(processes: int, asked: str, rank: int, tmp_path: Path) -> None:
    step = 2
    ended = ranks.run(tmp_path, worker.one_is_asked, tmp_path / "run", asked, rank, step, ranks=processes)
    assert [one.status for one in ended] == [EXIT_RESUMABLE] * processes, ended[0].text
    (folder,) = (tmp_path / "run").glob("checkpoint-*")
    assert folder.name in (f"checkpoint-{step}", f"checkpoint-{step + 1}")
    assert checkpoint.verify(folder) == []
    manifest = checkpoint.read_manifest(folder)
    assert manifest is not None
    assert manifest.facts.world_size == processes
    for other, one in enumerate(ended):
        assert (f"{asked}: stopped at step" in one.text) == (other == rank)
        assert ("another process was asked: stopped at step" in one.text) == (other != rank)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Folder and output of a job whose torchrun got a signal, by that signal."""
    agents = {}
    for asked in ("SIGTERM", "SIGUSR1"):
        folder = tmp_path_factory.mktemp(asked)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "-m", "tests.distributed.worker_preempted"]
        agents[folder, asked] = subprocess.Popen(
            [*command, str(folder), asked],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        return {asked: (folder, agent.communicate(timeout=180)[0]) for (folder, asked), agent in agents.items()}
    finally:
        for agent in agents.values():
            agent.kill()


@pytest.mark.parametrize("asked", ["SIGTERM", "SIGUSR1"])
def test_what_torchrun_is_asked_its_processes_do(asked: str, stopped: dict[str, tuple[Path, str]]) -> None:
    folder, text = stopped[asked]
    (saved,) = folder.glob("checkpoint-*")
    assert checkpoint.verify(saved) == [], text[-3000:]
    step = int(saved.name.removeprefix("checkpoint-"))
    assert 3 <= step < 1_000_000
    assert f"stopped at step {step} of 1000000; {saved} continues it" in text
