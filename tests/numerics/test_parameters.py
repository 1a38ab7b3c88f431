"""Models that cannot be trained are refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mainspring.numerics import nonfinite_parameters
from tests.numerics import runs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_is_found_in_any_precision(value: float, dtype: torch.dtype) -> None:
    tensors = {name: torch.randn(5, 3).to(dtype) for name in "abc"}
    tensors["a"].fill_(torch.finfo(dtype).max)  # large, and finite
    tensors["b"][2, 1] = value
    assert nonfinite_parameters(tensors.items()) == ["b"]


def test_what_holds_no_numbers_is_passed_over() -> None:
    model = nn.Linear(2, 2, device="meta")
    others = {"none": torch.empty(0), "whole": torch.ones(2, dtype=torch.int64)}
    assert nonfinite_parameters([*model.named_parameters(), *others.items()]) == []


def test_training_names_the_first_parameters(tmp_path: Path) -> None:
    model = runs.Network()
    with torch.no_grad():
        model.first.weight[3, 1] = float("nan")
        model.last.bias.fill_(float("inf"))
    run = runs.trainer(tmp_path, runs.rows(), model=model)
    with pytest.raises(
        ValueError, match=r"NaN or infinite values before training begins, in first\.weight, last\.bias:"
    ):
        run.train()
    assert not (tmp_path / "nonfinite.jsonl").exists()


def test_frozen_parameters_are_looked_at_too(tmp_path: Path) -> None:
    model = runs.Network()
    model.first.requires_grad_(False).weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"in first\.weight:"):
        runs.trainer(tmp_path, runs.rows(), model=model).train()


def test_many_are_counted(tmp_path: Path) -> None:
    model = runs.Network()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"last\.weight, and 1 more: no update"):
        runs.trainer(tmp_path, runs.rows(), model=model).train()


def test_a_model_of_which_nothing_learns_is_refused(tmp_path: Path) -> None:
    model = runs.Network().requires_grad_(False)
    with pytest.raises(ValueError, match="all 6 parameters of the model are frozen: there is nothing to train"):
        runs.trainer(tmp_path, runs.rows(), model=model).train()


def test_a_model_without_parameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has no parameters: there is nothing to train"):
        runs.trainer(tmp_path, runs.rows(), model=nn.Identity(), remove_unused_columns=False).train()
