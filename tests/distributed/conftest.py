"""Launches that several test files read the results of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import worlds
from tests.distributed.launch import torchrun
from tests.helpers.once import once, shared


@pytest.fixture(scope="session", autouse=True)
def _folder_of_worlds(tmp_path_factory: pytest.TempPathFactory) -> None:
    worlds.results = shared(tmp_path_factory)


@pytest.fixture(scope="session")
def fsdp_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes, then two, then one have found out with sharded models; each goes on from the ones before."""

    def launch(out: Path) -> None:
        for work, processes in (("four", 4), ("two", 2), ("one", 1)):
            torchrun("tests.distributed.worker_fsdp", work, str(out), processes=processes)

    return once(shared(tmp_path_factory), "fsdp", launch)
