"""Seeds give the reference's numbers, and states of random streams survive a safe file, its files too."""

from __future__ import annotations

import logging
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import trainer_utils as reference

from mainspring import seeding
from mainspring.seeding import (
    RNG_SAFE_GLOBALS,
    capture_rng,
    enable_full_determinism,
    restore_rng,
    seed_worker,
    set_seed,
)
from tests.helpers import runs


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    states = capture_rng(distributed=False)
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    environment = dict(os.environ)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
    os.environ.clear()
    os.environ.update(environment)
    restore_rng(states, distributed=False)


def draw() -> tuple[float, float, float, float]:
    # The numpy state holds a half-used pair after normal(), the Python state after gauss().
    return random.gauss(0, 1), random.random(), float(np.random.normal()), torch.rand(()).item()


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_a_seed_gives_the_numbers_of_the_reference(seed: int) -> None:
    reference.set_seed(seed)
    expected = draw()
    draw()
    set_seed(seed)
    assert draw() == expected
    set_seed(np.int64(seed))  # type: ignore[arg-type]
    assert draw() == expected


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed}: out of range; choose one from 0 to 4294967295"):
        set_seed(seed)


@pytest.mark.parametrize("seed", [None, 1.0, "42", True])
def test_seeds_that_are_no_integers_are_refused(seed: Any) -> None:
    with pytest.raises(TypeError, match="not an integer"):
        set_seed(seed)


def test_deterministic_algorithms_are_asked_for_only_on_demand() -> None:
    set_seed(1)
    assert not torch.are_deterministic_algorithms_enabled()
    set_seed(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("warn_only", [False, True])
def test_full_determinism_sets_what_the_reference_sets(warn_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for enable in (enable_full_determinism, reference.enable_full_determinism):
        for name in seeding._DETERMINISTIC_ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
        before = dict(os.environ)
        enable(3, warn_only=warn_only)
        changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
        changed.pop("TORCHINDUCTOR_CACHE_DIR", None)  # set by an import
        flags = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        )
        seen.append((changed, flags, draw()))
    assert seen[0] == seen[1]
    assert seen[0][1] == (True, warn_only, True, False)


@pytest.mark.parametrize(("num_workers", "rank"), [(0, 0), (2, 0), (2, 3)])
def test_workers_are_seeded_as_in_the_reference(num_workers: int, rank: int) -> None:
    drawn = []
    for seed in (seed_worker, reference.seed_worker):
        torch.manual_seed(1234)
        seed(1, num_workers=num_workers, rank=rank)
        drawn.append(draw())
    assert drawn[0] == drawn[1]


def test_a_worker_whose_seed_would_be_too_large_gets_one_all_the_same() -> None:
    torch.manual_seed(2**32 - 1)
    seed_worker(0, num_workers=2, rank=1)
    assert torch.initial_seed() == 1


# State ------------------------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    with torch.serialization.safe_globals(RNG_SAFE_GLOBALS):
        return torch.load(path, weights_only=True)


def reference_trainer(folder: Path) -> Any:
    args = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    return transformers.Trainer(torch.nn.Linear(1, 1), args)


@pytest.mark.parametrize("distributed", [False, True])
def test_streams_go_on_from_a_state_loaded_safely(tmp_path: Path, distributed: bool) -> None:
    set_seed(5)
    draw()
    torch.save(capture_rng(distributed), tmp_path / "rng_state.pth")
    expected = [draw(), draw()]
    set_seed(6)
    restore_rng(load(tmp_path / "rng_state.pth"), distributed)
    assert [draw(), draw()] == expected


def test_the_file_is_the_references_and_its_file_is_ours(tmp_path: Path) -> None:
    trainer = reference_trainer(tmp_path)
    set_seed(5)
    draw()
    trainer._save_rng_state(str(tmp_path))
    expected = draw()
    set_seed(6)
    states = load(tmp_path / "rng_state.pth")
    restore_rng(states, distributed=False)
    assert draw() == expected

    restore_rng(states, distributed=False)
    captured = capture_rng(distributed=False)
    assert captured.keys() == states.keys()
    torch.save(captured, tmp_path / "rng_state.pth")
    set_seed(6)
    trainer._load_rng_state(str(tmp_path))
    assert draw() == expected


def test_code_in_a_file_of_states_is_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({**capture_rng(distributed=False), "other": Runs()}, tmp_path / "rng_state.pth")
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / "rng_state.pth")
    assert not (tmp_path / "ran").exists()


def test_missing_states_are_named() -> None:
    states = capture_rng(distributed=False)
    del states["numpy"], states["cpu"]
    with pytest.raises(ValueError, match="random states of numpy, cpu are missing"):
        restore_rng(states, distributed=False)


class Device:
    """An accelerator that numbers its states by device."""

    def __init__(self, devices: int) -> None:
        self.states = [torch.tensor([index], dtype=torch.uint8) for index in range(devices)]
        self.device = 0

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.states)

    def current_device(self) -> int:
        return self.device

    def get_rng_state(self) -> torch.Tensor:
        return self.states[self.device]

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return list(self.states)

    def set_rng_state(self, state: torch.Tensor, device: int | None = None) -> None:
        self.states[self.device if device is None else device] = state


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device(2)
    monkeypatch.setattr(seeding, "_ACCELERATORS", ("cuda",))
    monkeypatch.setattr(seeding, "torch", SimpleNamespace(cuda=made, random=torch.random, Tensor=torch.Tensor))
    return made


@pytest.mark.parametrize("distributed", [False, True])
def test_states_of_devices_are_captured_and_restored(device: Device, distributed: bool) -> None:
    device.device = 1
    states = capture_rng(distributed)
    assert states["cuda"] == (device.get_rng_state_all() if distributed else device.get_rng_state())
    expected = list(device.states)
    device.states[1] = torch.tensor([9], dtype=torch.uint8)
    restore_rng(states, distributed)
    assert device.states == expected


def test_states_by_device_are_restored_by_any_number_of_processes(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("mainspring").propagate = True
    states = capture_rng(distributed=True)
    three = {**states, "cuda": [torch.tensor([value], dtype=torch.uint8) for value in (7, 8, 9)]}
    restore_rng(three, distributed=False)
    assert [state.item() for state in device.states] == [7, 8]
    device.device = 1
    with caplog.at_level(logging.WARNING):
        restore_rng({**states, "cuda": three["cuda"][:1]}, distributed=True)
    assert "no random state was saved for device 1" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        restore_rng({**states, "cuda": three["cuda"][2]}, distributed=True)
    assert device.states[1].item() == 9
    assert "saved by a single process" in caplog.text


def test_a_run_that_changes_its_accelerator_is_told(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("mainspring").propagate = True
    states = capture_rng(distributed=False)
    del states["cuda"]
    with caplog.at_level(logging.WARNING):
        restore_rng(states, distributed=False)
    assert "saved for the accelerators (), but those here are (cuda)" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("distributed", [False, True])
def test_streams_of_cuda_go_on(tmp_path: Path, distributed: bool) -> None:
    set_seed(5)
    torch.rand(3, device="cuda")
    torch.save(capture_rng(distributed), tmp_path / "rng_state.pth")
    expected = torch.rand(3, device="cuda")
    set_seed(6)
    restore_rng(load(tmp_path / "rng_state.pth"), distributed)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_two_runs_with_full_determinism_are_equal_to_the_bit(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        torch.use_deterministic_algorithms(False)
        run = runs.trainer(tmp_path / str(number), full_determinism=True, save_strategy="no", rows=12)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        run.train()
        found.append((runs.history(run), runs.weights(run)))
    assert found[0][0] == found[1][0]
    assert runs.same(found[0][1], found[1][1])
