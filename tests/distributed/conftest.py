"""Launches that several test files read the results of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import torchrun


@pytest.fixture(scope="session")
def fsdp_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes, then two, then one have found out with sharded models; each goes on from the ones before."""
    out = tmp_path_factory.mktemp("fsdp")
    for work, processes in (("four", 4), ("two", 2), ("one", 1)):
        torchrun("tests.distributed.worker_fsdp", work, str(out), processes=processes)
    return out
