"""What an optimizer keeps: the bytes are those of its tensors, and a run says so once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mainspring import Trainer, TrainingArguments, measuring
from mainspring.measuring import optimizer_report
from mainspring.measuring.optimizer_state import readable_bytes, tell_after_first_step
from mainspring.optimizers.in_backward import OptimizerInBackward
from mainspring.utils import logging
from tests.arguments.observation import heard
from tests.helpers import data, models


def stepped(cls: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.optim.Optimizer:
    """An optimizer of 10 x 10 and 10 parameters in a group each, after a step."""
    weight, bias = (nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((10, 10), (10,)))
    optimizer = cls([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}], lr=0.1, **kwargs)
    for parameter in (weight, bias):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_adam_keeps_two_numbers_and_a_count_for_each_parameter() -> None:
    report = optimizer_report(stepped(torch.optim.AdamW))
    assert [group.state for group in report.groups] == [2 * 400 + 4, 2 * 40 + 4]
    assert [group.parameters for group in report.groups] == [100, 10]
    assert (report.state, report.weights, report.gradients) == (888, 440, 440)
    assert report.state_by_dtype == {"float32": 888}


def test_types_are_told_apart_the_largest_first() -> None:
    report = optimizer_report(stepped(torch.optim.AdamW, torch.bfloat16))
    assert report.state_by_dtype == {"bfloat16": 440, "float32": 8}
    assert [*report.state_by_dtype] == ["bfloat16", "float32"]
    assert report.weights == report.gradients == 220


def test_some_keep_nothing_and_none_does_before_its_first_step() -> None:
    assert optimizer_report(stepped(torch.optim.SGD)).state == 0
    fresh = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    report = optimizer_report(fresh)
    assert (report.state, report.gradients, report.weights) == (0, 0, 24)
    assert str(report).startswith("AdamW keeps 0 bytes of state for 24 bytes of weights")


def test_frozen_parameters_are_not_trained() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    report = optimizer_report(torch.optim.SGD(layer.parameters()))
    assert (report.weights, report.groups[0].parameters) == (16, 4)


def test_an_optimizer_in_the_backward_pass_keeps_what_the_ordinary_one_does() -> None:
    layer = nn.Linear(3, 3)
    optimizer = OptimizerInBackward(layer.parameters(), torch.optim.AdamW, lr=0.1)
    optimizer.backward(layer(torch.ones(1, 3)).sum())
    report = optimizer_report(optimizer)
    assert (report.state, report.weights, report.gradients) == (2 * 48 + 2 * 4, 48, 0)


class Nested(torch.optim.SGD):
    """Keeps tensors in lists and mappings, one of them twice, and one for all parameters."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        shared = torch.zeros(8)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "history": [torch.zeros(2), {"deep": torch.zeros(3)}],
                    "one": shared,
                    "two": shared,
                }
        self.state["all"] = {"scale": torch.zeros(5)}  # type: ignore[index]


def test_states_of_any_shape_are_counted_once() -> None:
    report = optimizer_report(stepped(Nested))
    assert [group.state for group in report.groups] == [4 * (2 + 3 + 8 + 5), 4 * (2 + 3 + 8)]


class Quantised(torch.Tensor):
    """A tensor that says it is large, and is made of small parts."""

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, size: int) -> Quantised:
        return torch.Tensor._make_wrapper_subclass(cls, (size,), dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError

    def __init__(self, size: int) -> None:
        self.codes, self.scale = torch.zeros(size, dtype=torch.uint8), torch.zeros(2)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None


def test_of_a_quantised_tensor_its_parts_count() -> None:
    optimizer = stepped(torch.optim.SGD)
    optimizer.state[optimizer.param_groups[0]["params"][0]]["moment"] = Quantised(100)
    assert optimizer_report(optimizer).state_by_dtype == {"uint8": 100, "float32": 8}


def test_the_report_can_be_read() -> None:
    assert str(optimizer_report(stepped(torch.optim.AdamW))).splitlines() == [
        "AdamW keeps 888 bytes of state (float32 888 bytes) for 440 bytes of weights and 440 bytes of gradients",
        "  group 0: 100 parameters, 804 bytes of state",
        "  group 1: 10 parameters, 84 bytes of state",
    ]
    assert [readable_bytes(size) for size in (0, 1023, 1536, 3 * 2**30, 2**40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "3.0 GiB",
        "1.0 TiB",
    ]


def test_the_first_step_alone_is_told_of() -> None:
    told: list[str] = []
    optimizer = stepped(torch.optim.AdamW)
    tell_after_first_step(optimizer, told.append)
    assert told == []
    optimizer.step()
    optimizer.step()
    assert len(told) == 1
    assert not optimizer._optimizer_step_post_hooks


@pytest.fixture
def _verbose() -> Iterator[None]:
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.mark.usefixtures("_verbose")
@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("warning", 0)])
def test_a_run_says_it_in_one_line_of_the_log(level: str, lines: int, tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=3,
        save_strategy="no",
        log_level=level,
        disable_tqdm=True,
        optim="adamw_torch",
    )
    trainer = Trainer(models.Regressor(), args, train_dataset=data.Items(data.points(16)))
    with heard() as messages:
        trainer.train()
    told = [message for message in messages if "of state" in message]
    size = sum(parameter.numel() * 4 for parameter in trainer.model.parameters())
    assert len(told) == lines
    assert all(f"for {size} bytes of weights and {size} bytes of gradients" in line for line in told)
    assert measuring.optimizer_report(trainer.optimizer).weights == size
