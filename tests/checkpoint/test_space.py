from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from mainspring.checkpoint import check_space, estimate_bytes, save_model, save_torch

Usage = namedtuple("Usage", "total used free")


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, total - free, free))


def test_enough_space_is_no_error_and_makes_nothing(tmp_path: Path) -> None:
    check_space(tmp_path / "new" / "checkpoint-20", 1)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_an_os_error_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 10**12, 999)
    check_space(tmp_path, 999)
    with pytest.raises(OSError, match=r"1\.23 GB are needed, and 999 B are free: .*checkpoint-20") as caught:
        check_space(tmp_path / "checkpoint-20", 1_234_567_890)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "checkpoint-20")


def test_a_real_disk_is_asked(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        check_space(tmp_path / "new" / "checkpoint-20", 10**18)


def test_a_file_system_that_does_not_tell_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 0, 0)
    check_space(tmp_path, 10**9)


def test_the_estimate_is_about_what_is_written(tmp_path: Path) -> None:
    model = nn.Linear(300, 400)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    save_model(model, tmp_path)
    save_torch(optimizer.state_dict(), tmp_path / "optimizer.pt")
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    estimate = estimate_bytes(model.state_dict(), optimizer.state_dict())
    assert 0.99 * written < estimate <= written


def test_shared_memory_is_counted_once_and_other_things_not_at_all() -> None:
    base = torch.zeros(100)
    states = [{"a": base, "b": base[:10], "c": [base.view(10, 10)]}, (base, 1, "text", None)]
    assert estimate_bytes(*states) == 400
    assert estimate_bytes(torch.zeros(3, 3).to_sparse(), torch.empty(5, device="meta"), {}) == 0


def test_a_state_that_holds_itself_is_counted_once() -> None:
    state: dict[str, object] = {"a": torch.zeros(10)}
    state["itself"] = [state]
    assert estimate_bytes(state, state) == 40
