"""A disk that is full, or fails, at any call of a save: real errors of the system, below Python, Rust and C++ alike."""

from __future__ import annotations

import copy
import errno
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mainspring.checkpoint import save_model, save_torch
from mainspring.checkpoint.deferral import deferred
from tests.checkpoint.worker_saves import CALL, KINDS
from tests.helpers import models
from tests.helpers.checkpoints import write_checkpoint

ROOT = Path(__file__).parents[2]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def worker(what: str, folder: Path, before: Sequence[str] = ()) -> dict[str, list[int]]:
    """Run the worker, and return what came of its saves: error numbers by what was refused, 0 for none."""
    command = [*before, sys.executable, "-m", "tests.checkpoint.worker_saves", what, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    results: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        kind, number = line.split()
        results.setdefault(kind, []).append(int(number))
    return results


def two_checkpoints(root: Path) -> None:
    write_checkpoint(root, 10)
    write_checkpoint(root, 20, run_id="the former")


@pytest.mark.faults
@pytest.mark.parametrize(
    "before", [partial(write_checkpoint, step=10), two_checkpoints], ids=["new", "in place of another"]
)
def test_a_file_that_cannot_grow_leaves_everything_as_it_was(tmp_path: Path, before: Callable[..., object]) -> None:
    before(tmp_path)
    refused = worker("limits", tmp_path)["size"]
    assert len(refused) > 10
    assert refused == [errno.EFBIG] * (len(refused) - 1) + [0]


@needs_strace
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "name"),
    [(partial(write_checkpoint, step=10), "ENOSPC"), (two_checkpoints, "EIO")],
    ids=["full, new", "failing, in place of another"],
)
def test_any_call_that_is_refused_leaves_everything_as_it_was(
    tmp_path: Path, before: Callable[..., object], name: str
) -> None:
    before(tmp_path)
    calls = ",".join(KINDS)
    options = ["-e", f"inject={calls}:error={name}:when={CALL}", "-e", f"trace={calls}", "-o", "/dev/null"]
    refused = worker("calls", tmp_path, ["strace", "-f", "--seccomp-bpf", *options])
    both = {0, getattr(errno, name)}
    assert {kind: set(numbers) for kind, numbers in refused.items()} == dict.fromkeys(KINDS, both)


# ---- single files ----


def test_a_full_disk_is_an_os_error_of_save_torch() -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_torch({"w": torch.ones(100_000)}, "/dev/full")
    assert caught.value.errno == errno.ENOSPC
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("model", [nn.Linear(100, 100), models.tiny_gpt2()], ids=["plain", "pretrained"])
def test_a_full_disk_is_an_os_error_of_save_model(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("mainspring.checkpoint.weights.save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_model(model, tmp_path)
    assert caught.value.errno == errno.ENOSPC


class FullAfter(io.RawIOBase):
    """A file whose k-th write finds the disk full."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.left = k

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("k", range(1, 6))
def test_a_disk_that_gets_full_inside_a_file_is_an_os_error_of_save_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    files: list[FullAfter] = []

    def opened(*_: object) -> FullAfter:
        files.append(FullAfter(k))
        return files[0]

    monkeypatch.setattr("mainspring.checkpoint.torch_files.open", opened, raising=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_torch({"a": torch.ones(5000), "b": torch.ones(5000)}, tmp_path / "optimizer.pt")
    assert caught.value.errno == errno.ENOSPC
    assert files[0].left <= 0


def test_a_full_disk_is_an_os_error_of_a_deferred_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("mainspring.checkpoint.weights.save_file", full)
    with deferred(copy.deepcopy) as jobs:
        save_model(nn.Linear(2, 1), tmp_path)
    (job,) = jobs
    with pytest.raises(OSError, match="No space left on device"):
        job()


def test_a_state_that_cannot_be_written_at_all_is_no_os_error(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        save_torch({"schedule": lambda step: step}, tmp_path / "scheduler.pt")
    assert os.listdir(tmp_path) == ["scheduler.pt"]
