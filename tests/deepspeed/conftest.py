"""Launches that several test files read the results of."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deepspeed.zero3 import prepare
from tests.distributed.launch import torchrun
from tests.helpers import compiled
from tests.helpers.once import once, shared

compiled.use_folder()


@pytest.fixture(autouse=True)
def _world_ends_with_its_test() -> Iterator[None]:
    """Arguments with DeepSpeed join processes, and leave variables: the tests after it begin without."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if "torch" in sys.modules and _joined():
        from accelerate.state import AcceleratorState

        from deepspeed import comm

        comm.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def _joined() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _built(operation: str) -> None:
    pytest.importorskip("deepspeed")
    if why := compiled.why_not(operation):
        pytest.skip(f"{operation} {why}")
    compiled.build(operation)


@pytest.fixture(scope="session")
def cpu_adam() -> None:
    """DeepSpeed's Adam for the host is compiled."""
    _built("cpu_adam")


@pytest.fixture(scope="session")
def async_io() -> None:
    """What DeepSpeed reads and writes disks with is compiled."""
    _built("async_io")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found out in every case and probe."""
    pytest.importorskip("deepspeed")
    return once(
        shared(tmp_path_factory), "deepspeed", lambda out: torchrun("tests.deepspeed.worker_training", str(out))
    )


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found out of everything else beside DeepSpeed."""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("features")
    torchrun("tests.deepspeed.worker_features", str(out))
    return out


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reference has logged with the same configurations."""
    pytest.importorskip("deepspeed")
    return once(
        shared(tmp_path_factory),
        "deepspeed-reference",
        lambda out: torchrun("tests.deepspeed.worker_reference", str(out)),
    )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found out of checkpoints."""
    pytest.importorskip("deepspeed")
    return once(
        shared(tmp_path_factory),
        "deepspeed-checkpoints",
        lambda out: torchrun("tests.deepspeed.worker_checkpoints", str(out), "checkpoints"),
    )


@pytest.fixture(scope="session")
def zero3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found out of models that are divided before there is a trainer."""
    pytest.importorskip("deepspeed")

    def launch(out: Path) -> None:
        prepare(out / "models")
        torchrun("tests.deepspeed.worker_zero3", str(out))

    return once(shared(tmp_path_factory), "deepspeed-zero3", launch)
