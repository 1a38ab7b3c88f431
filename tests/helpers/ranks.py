"""The ranks of a run as processes of their own, on this machine or on two hosts: each costs a fraction of a second.

They are forked by a server that has imported everything. As under torchrun, the store where they meet belongs to another
process, which outlives them.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from torch import distributed as dist

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    # The compiler is imported by the first optimizer, and takes longer than a run.
    [
        "torch",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "mainspring.trainer",
        "mainspring.engines.ddp",
        "mainspring.engines.accelerator",
    ]
)
HANG_S = 120.0
"""What a run takes in seconds takes minutes where too many others run; only a hang takes longer."""

_NETWORK = 0x40000000  # CLONE_NEWNET


@dataclass(frozen=True)
class Host:
    """Where a process runs.

    Attributes:
        address: By which others reach it.
        interface: Of the network to the others.
        namespace: A network namespace; None for this machine's own network.
    """

    address: str = "127.0.0.1"
    interface: str = "lo"
    namespace: str | None = None

    def command(self, *words: str) -> list[str]:
        """The command line that runs a program on this host."""
        return [*words] if self.namespace is None else ["ip", "netns", "exec", self.namespace, *words]

    def enter(self) -> None:
        """Bring this process, which has no other thread, into the host's network."""
        if self.namespace is None:
            return
        descriptor = os.open(f"/var/run/netns/{self.namespace}", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(descriptor, _NETWORK) == 0, os.strerror(ctypes.get_errno())
        os.close(descriptor)

    def cut(self) -> None:
        """Cut the host off from the others, from within it."""
        subprocess.run(["ip", "link", "set", self.interface, "down"], check=True)


HERE = Host()


def leave() -> None:
    """Leave the group of processes once all are through: gloo closes its connections under those who still wait in a barrier."""
    store = dist.distributed_c10d._get_default_store()
    if store.add("through", 1) == dist.get_world_size():
        store.set("all through", "")
    store.wait(["all through"])
    dist.destroy_process_group()


def why_no_hosts() -> str | None:
    """Why there can be no second host here, for a skipped test; None where there can."""
    if os.geteuid() != 0:
        return "two network namespaces need root"
    if shutil.which("ip") is None:
        return "two network namespaces need `ip`, of iproute2"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


@contextlib.contextmanager
def two_hosts(pair: int = 0) -> Iterator[list[Host]]:
    """Two network namespaces with a cable between them; `pair` tells several from each other."""
    own = f"{os.getpid()}p{pair}"
    hosts = [Host(f"10.77.0.{index + 1}", f"v{own}n{index}", f"ms{own}n{index}") for index in range(2)]
    names = [str(host.namespace) for host in hosts]
    try:
        for name in names:
            _ip("netns", "add", name)
        first, second = hosts
        _ip(
            "link",
            "add",
            first.interface,
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            second.interface,
            "netns",
            names[1],
        )
        for name, host in zip(names, hosts, strict=True):
            _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", host.interface, "up")
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass(frozen=True)
class Ended:
    """How a rank ended.

    Attributes:
        status: Its exit status; -9 after SIGKILL.
        text: What it printed.
    """

    status: int
    text: str


class World:
    """Ranks that form one run.

    Args:
        folder: For what they print.
        hosts: Of each rank.
    """

    def __init__(self, folder: Path, hosts: list[Host]) -> None:
        self.folder = folder
        self.hosts = hosts
        self.processes: list[ForkServerProcess] = []
        self._store: ForkServerProcess | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, work: Callable[..., object], *arguments: Any, of_rank: Callable[[int], tuple[Any, ...]] | None = None
    ) -> None:
        """Run `work(*arguments)` on every rank, with further arguments of each one's own."""
        ours, theirs = SERVER.Pipe()
        self._store = SERVER.Process(target=_keep_store, args=(theirs, self.hosts[0]), daemon=True)
        self._store.start()
        theirs.close()
        port, self._keeps_store = ours.recv(), ours
        for rank, host in enumerate(self.hosts):
            place = _environment(rank, self.hosts, port)
            own = () if of_rank is None else of_rank(rank)
            process = SERVER.Process(target=_rank, args=(self._output(rank), host, place, work, *arguments, *own))
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = HANG_S, until: int | None = None) -> list[Ended]:
        """Wait for all ranks to end, or for one, after which the others are killed.

        Raises:
            AssertionError: One has not within `timeout` seconds; all are killed.
        """
        try:
            for rank, process in enumerate(self.processes):
                if until is not None and rank != until:
                    continue
                process.join(timeout)
                assert process.exitcode is not None, f"rank {rank} hangs:\n{self._texts()}"
        finally:
            self.kill()
        return [Ended(p.exitcode or 0, self._output(rank).read_text()) for rank, p in enumerate(self.processes)]

    def kill(self) -> None:
        """SIGKILL to all, and to their store."""
        for process in (*self.processes, self._store):
            if process is not None:
                process.kill()
                process.join()

    def _output(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.txt"

    def _texts(self) -> str:
        return "\n".join(self._output(rank).read_text()[-3000:] for rank in range(len(self.hosts)))


def run(
    folder: Path, work: Callable[..., object], *arguments: Any, ranks: int = 2, timeout: float = HANG_S
) -> list[Ended]:
    """Run `work(*arguments)` on several ranks of this machine, and wait for them."""
    world = World(folder, [HERE] * ranks)
    world.start(work, *arguments)
    return world.wait(timeout)


def _environment(rank: int, hosts: list[Host], port: int) -> dict[str, str]:
    own = hosts[rank]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(hosts)),
        "LOCAL_RANK": str(hosts[:rank].count(own)),
        "LOCAL_WORLD_SIZE": str(hosts.count(own)),
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": own.interface,
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _keep_store(pipe: Any, host: Host) -> None:
    host.enter()
    from torch.distributed import TCPStore

    store = TCPStore(host.address, 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    with contextlib.suppress(EOFError):
        pipe.recv()  # until whoever started it is gone


def _rank(output: Path, host: Host, place: dict[str, str], work: Callable[..., object], *arguments: Any) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    host.enter()
    os.environ.update(place)
    work(*arguments)
