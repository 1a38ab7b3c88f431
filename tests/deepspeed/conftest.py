"""Launches that several test files read the results of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import torchrun


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found out in every case and probe."""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("deepspeed")
    torchrun("tests.deepspeed.worker_training", str(out))
    return out


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reference has logged with the same configurations."""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("reference")
    torchrun("tests.deepspeed.worker_reference", str(out))
    return out


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found out of checkpoints."""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("checkpoints")
    torchrun("tests.deepspeed.worker_checkpoints", str(out), "checkpoints")
    return out
