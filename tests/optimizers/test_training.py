"""Every optimizer that runs on a CPU trains a real model through the trainer, and goes on exactly from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mainspring.errors import MissingPackageError, OptionError
from mainspring.names import OPTIMIZER_NAMES
from tests.helpers.runs import same, weights
from tests.optimizers import rows

HERE = [
    pytest.param(name, marks=[] if rows.is_installed(name) else pytest.mark.skip(reason=f"{name}: package not here"))
    for name in rows.HERE
]


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torchao compiles its updates, which takes minutes and gives the same numbers."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages
        yield


def tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor of a state, those that quantised ones are made of too."""
    if isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, Tensor):
        yield state
        if hasattr(state, "__tensor_flatten__"):
            yield from (getattr(state, name) for name in state.__tensor_flatten__()[0])


@pytest.mark.parametrize("name", HERE)
def test_it_lowers_the_loss_and_goes_on_exactly(tmp_path: Path, name: str) -> None:
    first = rows.trainer(tmp_path, name)
    before = first.evaluate()["eval_loss"]
    first.train()
    assert first.state.global_step == 12
    assert first.evaluate()["eval_loss"] < 0.8 * before
    again = rows.trainer(tmp_path, name)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(weights(first), weights(again))
    wanted = rows.row_of(name).state
    assert wanted is None or wanted in {tensor.dtype for tensor in tensors(again.optimizer.state_dict()["state"])}
    norms = [log["grad_norm"] for log in first.state.log_history if "grad_norm" in log]
    assert len(norms) == 12
    assert all(norm > 0 for norm in norms)


def test_all_that_run_here_are_here() -> None:
    """So that no row above is left out without a word where all packages are to be installed."""
    assert len(rows.HERE) == 37
    assert set(rows.HERE) | set(rows.ELSEWHERE) == set(OPTIMIZER_NAMES)
    missing = sorted({name for name in rows.HERE if not rows.is_installed(name)})
    assert not missing, "pip install -e '.[optimizers]'"


@pytest.mark.parametrize("name", rows.ELSEWHERE)
def test_what_needs_another_device_says_so_before_any_work(tmp_path: Path, name: str) -> None:
    if torch.cuda.is_available() and "pip" not in rows.ELSEWHERE[name]:
        pytest.skip("there is such a device")
    with pytest.raises((MissingPackageError, OptionError), match=rows.ELSEWHERE[name]):
        rows.trainer(tmp_path, name)


def test_stable_adamw_takes_no_kernels_of_triton_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package takes them wherever Triton is installed, as it is with torch for GPUs."""
    utils = pytest.importorskip("optimi.utils")
    monkeypatch.setattr(utils, "HAS_TRITON", True)
    trainer = rows.trainer(tmp_path, "stable_adamw", max_steps=1)
    trainer.train()
    assert [group["triton"] for group in trainer.optimizer.param_groups] == [False, False]
