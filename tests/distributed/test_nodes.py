"""Two hosts with a network between them, each with its own torchrun: network namespaces on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.utils.logging import get_log_levels_dict
from tests.distributed import worker_nodes as worker
from tests.distributed.launch import ROOT, environment
from tests.helpers import ranks
from tests.helpers.ranks import Ended, Host
from tests.helpers.sides import SUBJECT

NO_HOSTS = ranks.why_no_hosts()

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own runs"),
    pytest.mark.skipif(NO_HOSTS is not None, reason=str(NO_HOSTS)),
]

WORKER = "tests.distributed.worker_nodes"
ON_EACH = 2


def torchrun(hosts: list[Host], processes: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start the worker on all hosts, as one does by hand: the same command on each, with its number."""
    agents = []
    for number, host in enumerate(hosts):
        place = [f"--nnodes={len(hosts)}", f"--node_rank={number}", f"--master_addr={hosts[0].address}"]
        command = [sys.executable, "-m", "torch.distributed.run", *place, "--master_port=29533"]
        command += [f"--nproc_per_node={processes}", "-m", WORKER, *arguments]
        agents.append(
            subprocess.Popen(
                host.command(*command),
                env={**environment(), "GLOO_SOCKET_IFNAME": host.interface},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return agents


def ends(agents: list[subprocess.Popen[str]]) -> list[Ended]:
    """Wait for all of them."""
    try:
        return [Ended(agent.wait(), text) for agent in agents for text in [agent.communicate(timeout=240)[0]]]
    finally:
        for agent in agents:
            agent.kill()


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with ranks.two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def told(hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the four processes on two hosts wrote down, by rank."""
    folder = tmp_path_factory.mktemp("nodes")
    for ended in ends(torchrun(hosts, ON_EACH, "train", str(folder))):
        assert ended.status == 0, ended.text[-6000:]
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2 * ON_EACH)]
    return [{**one, "folder": folder} for one in found]


def test_two_hosts_train_as_one(told: list[dict[str, Any]], tmp_path: Path) -> None:
    """With as many processes on one host the run is the same, to the bit."""
    for ended in ranks.run(tmp_path, worker.train, tmp_path / "alone", ranks=2 * ON_EACH):
        assert ended.status == 0, ended.text[-3000:]
    alone = json.loads((tmp_path / "alone" / "rank0.json").read_text())
    assert alone["world_size"] == 2 * ON_EACH
    for here in told:
        assert here["outcome"]["weights"] == alone["outcome"]["weights"]
        assert here["outcome"]["order"] == alone["outcome"]["order"]
    assert told[0]["outcome"] == alone["outcome"]


def test_every_process_knows_its_place(told: list[dict[str, Any]]) -> None:
    places = [(one["rank"], one["local_rank"], one["world_size"], one["is_zero"]) for one in told]
    assert places == [
        (0, 0, 4, [True, True]),
        (1, 1, 4, [False, False]),
        (2, 0, 4, [True, False]),
        (3, 1, 4, [False, False]),
    ]


def test_who_logs_and_who_saves(told: list[dict[str, Any]]) -> None:
    """By default the first of each host logs, and the first of all saves; the options turn that round."""
    assert [one["logs"] for one in told] == [[True, True], [False, False], [True, False], [False, False]]
    assert [one["saves"] for one in told] == [[True, True], [False, False], [False, True], [False, False]]
    info, error = (get_log_levels_dict()[name] for name in ("info", "error"))
    assert [one["levels"] for one in told] == [[info, info], [error, error], [info, error], [error, error]]


def test_the_first_of_each_host_goes_before_its_others(told: list[dict[str, Any]]) -> None:
    folder = told[0]["folder"]
    each, one = ((folder / f"turns-{local}").read_text().split() for local in (True, False))
    assert sorted(each) == sorted(one) == ["0", "1", "2", "3"]
    assert {*each[:2]} == {"0", "2"}
    assert one[0] == "0"


def test_a_cut_network_ends_the_whole_job(hosts: list[Host], tmp_path: Path) -> None:
    """On both hosts torchrun itself ends, too."""
    first, second = ends(torchrun(hosts, 1, "cut", str(tmp_path), hosts[1].interface))
    for rank, ended in enumerate((first, second)):
        assert ended.status == 1
        assert f"ProcessesError: rank {rank} of 2 lost the other processes in training, update 3" in ended.text
    assert "rank 1 is not heard of any more" in first.text
    assert "this machine may be cut off" in second.text
