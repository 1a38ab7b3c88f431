from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mainspring.checkpoint import load_torch, save_torch
from mainspring.errors import CheckpointError


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def optimizer_state() -> dict[str, Any]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def test_an_optimizer_state_survives(tmp_path: Path) -> None:
    state = optimizer_state()
    save_torch(state, tmp_path / "optimizer.pt")
    loaded = load_torch(tmp_path / "optimizer.pt")
    assert loaded["param_groups"] == state["param_groups"]
    for index, moments in state["state"].items():
        for name, value in moments.items():
            assert torch.equal(loaded["state"][index][name], value)


def test_random_states_of_the_reference_load(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    torch.save(states, tmp_path / "rng_state.pth")
    loaded = load_torch(tmp_path / "rng_state.pth")
    assert loaded["python"] == states["python"]
    assert torch.equal(loaded["cpu"], states["cpu"])
    drawn = np.random.random(3)
    np.random.set_state(loaded["numpy"])
    assert np.array_equal(np.random.random(3), drawn)


def test_a_wider_allow_list_of_the_process_does_not_last(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    save_torch({"a": 1}, tmp_path / "scheduler.pt")
    load_torch(tmp_path / "scheduler.pt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_malicious_pickle_executes_nothing_and_is_named(tmp_path: Path, name: str, form: str) -> None:
    marker, file = tmp_path / "executed", tmp_path / name
    payload = {"state": Malicious(marker)}
    if form == "bare":
        file.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"was refused, and nothing in it was executed") as caught:
        load_torch(file)
    assert not marker.exists()
    assert name in str(caught.value)
    assert "mkdir" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)


def test_the_environment_cannot_make_it_unsafe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Malicious(tmp_path / "executed"), tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError):
        load_torch(tmp_path / "optimizer.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1)), str(tmp_path / "optimizer.pt"))
    with (
        pytest.warns(UserWarning, match="TorchScript"),
        pytest.raises(CheckpointError, match=r"optimizer\.pt could not be read"),
    ):
        load_torch(tmp_path / "optimizer.pt")


def test_a_pickle_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(pickle.dumps({"a": Malicious(tmp_path / "executed")}, protocol=4))
    with (
        pytest.warns(UserWarning, match="pickle protocol 4"),
        pytest.raises(CheckpointError, match=r"optimizer\.pt was refused.* torch\.save does not write"),
    ):
        load_torch(tmp_path / "optimizer.pt")
    assert not (tmp_path / "executed").exists()


def test_what_the_user_allowed_is_loaded(tmp_path: Path) -> None:
    torch.save({"path": np.float64(1.5)}, tmp_path / "scheduler.pt")
    with torch.serialization.safe_globals([np.dtype, np.dtypes.Float64DType, (np.float64(0).__reduce__()[0])]):
        assert load_torch(tmp_path / "scheduler.pt") == {"path": 1.5}


@pytest.mark.parametrize("keep", [0, 10, 700])
def test_a_cut_off_file_is_named(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "optimizer.pt"
    save_torch(optimizer_state(), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"optimizer\.pt could not be read"):
        load_torch(file)


def test_a_zip_that_holds_no_tensors_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "optimizer.pt", "w") as archive:
        archive.writestr("a/hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt could not be read"):
        load_torch(tmp_path / "optimizer.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"optimizer\.pt does not exist"):
        load_torch(tmp_path / "optimizer.pt")
