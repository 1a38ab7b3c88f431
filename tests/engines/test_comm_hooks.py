"""What a compression of gradients remembers, and to which gradients it belongs. Launches show that they travel."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring.arguments.training_arguments import TrainingArguments
from mainspring.checkpoint import comm_hook_name, load_torch, save_torch
from mainspring.engines.base import EngineOptions, WrapOptions
from mainspring.engines.comm_hooks import COMM_HOOKS, PowerSGD
from mainspring.engines.ddp import DDP
from mainspring.errors import OptionError

SIZE = 4


class Bucket:
    """What the hooks ask of one of DDP's buckets."""

    def __init__(self, number: int, parameters: list[Tensor], last: bool) -> None:
        self.number, self.held, self.last = number, parameters, last

    def index(self) -> int:
        return self.number

    def parameters(self) -> list[Tensor]:
        return self.held

    def is_last(self) -> bool:
        return self.last

    def buffer(self) -> Tensor:
        return torch.zeros(SIZE)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))


def hook_of(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> PowerSGD:
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    hook = PowerSGD()
    wrapped: Any = SimpleNamespace(parameters=model.parameters, register_comm_hook=lambda state, hook: None)
    hook.register(wrapped)
    return hook


def buckets(model: nn.Module, *groups: tuple[int, ...]) -> list[Any]:
    every = list(model.parameters())
    return [Bucket(n, [every[place] for place in group], n == len(groups) - 1) for n, group in enumerate(groups)]


def remembered(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a hook remembers of two buckets, after 1005 sums."""
    hook = hook_of(model, monkeypatch)
    hook.state.iter = 1005
    hook.state.rng.randint(10, size=3)
    for bucket in buckets(model, (3, 2), (1, 0)):
        hook.note(bucket)
        hook.state.error_dict[bucket.index()] = torch.arange(SIZE) + 10.0 * bucket.index()
        hook.state.q_memory_dict[bucket.index()] = torch.ones(2)
        hook.state.p_memory_dict[bucket.index()] = torch.ones(3)
    return hook.state_dict()


def through_a_file(state: dict[str, Any], folder: Path) -> Any:
    save_torch(state, folder / "state.pt")
    return load_torch(folder / "state.pt")


def test_every_hook_is_a_choice_of_the_option() -> None:
    for name in COMM_HOOKS:
        assert TrainingArguments("out", ddp_comm_hook=name).ddp_comm_hook == name
    with pytest.raises(OptionError, match="ddp_comm_hook"):
        TrainingArguments("out", ddp_comm_hook="fp8")


def test_memory_goes_through_a_file_to_the_bucket_of_the_same_parameters(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = through_a_file(remembered(model, monkeypatch), tmp_path)
    hook = hook_of(model, monkeypatch)
    hook.load_state_dict(state)
    assert [hook.comes_back(bucket) for bucket in buckets(model, (3, 2), (1, 0))] == [True, True]
    assert hook.state.iter == 1005
    assert hook.state.error_dict[1].tolist() == [10.0, 11.0, 12.0, 13.0]
    assert set(hook.state.p_memory_dict) == set(hook.state.q_memory_dict) == {0, 1}
    expected = PowerSGD().state.rng
    expected.randint(10, size=3)
    assert hook.state.rng.randint(1000) == expected.randint(1000)


def test_other_buckets_wait_for_those_that_come_after_the_first_pass(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook = hook_of(model, monkeypatch)
    hook.load_state_dict(remembered(model, monkeypatch))
    assert [hook.comes_back(bucket) for bucket in buckets(model, (0, 1), (2, 3))] == [False, False]
    assert hook.state.error_dict == {}
    assert set(hook.state_dict()["buckets"]) == {0, 1}  # a save in between keeps what waits
    assert [hook.comes_back(bucket) for bucket in buckets(model, (3, 2), (1, 0))] == [True, True]
    assert "forgotten" not in caplog.text


def test_memory_of_buckets_that_never_come_is_given_up_with_a_word(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook = hook_of(model, monkeypatch)
    hook.load_state_dict(remembered(model, monkeypatch))
    with caplog.at_level(logging.WARNING, "mainspring"):
        for _ in range(2):
            for bucket in buckets(model, (0, 1, 2, 3)):
                assert not hook.comes_back(bucket)
    assert not hook._restored
    assert "what PowerSGD's rounding lost is forgotten" in caplog.text


@pytest.mark.parametrize("written", [None, 3], ids=["absent", "of another world"])
def test_memory_that_is_of_no_use_is_told(
    written: int | None,
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(DDP, "__init__", lambda self: None)
    engine = DDP()  # type: ignore[call-arg]
    engine.rank, engine.world_size = 1, 2
    engine.options = EngineOptions(ddp=WrapOptions(comm_hook="powersgd"))
    engine._comm_hook = hook_of(model, monkeypatch)
    if written is not None:
        save_torch({"world_size": written, **remembered(model, monkeypatch)}, tmp_path / comm_hook_name(1))
    with caplog.at_level(logging.WARNING, "mainspring"):
        assert not engine.load_optimizer(model, torch.optim.SGD(model.parameters()), str(tmp_path))
    said = "no state of it" if written is None else "the states of 3 processes"
    assert f"ddp_comm_hook='powersgd' starts afresh: {tmp_path} has {said}" in caplog.text
    assert engine._comm_hook.state.iter == 0
