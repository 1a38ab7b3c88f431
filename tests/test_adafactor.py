"""Adafactor equals the reference's step by step, in state too, so that each goes on from the other's checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import optimization as reference

from mainspring.adafactor import Adafactor, AdafactorSchedule

SETTINGS: list[dict[str, Any]] = [
    {"lr": 0.01, "scale_parameter": False, "relative_step": False},
    {},
    {"warmup_init": True},
    {"beta1": 0.5, "weight_decay": 0.01},
    {"lr": 0.02, "relative_step": False, "beta1": 0.9, "weight_decay": 0.1},
    {
        "lr": 0.02,
        "relative_step": False,
        "scale_parameter": False,
        "weight_decay": 0.1,
        "clip_threshold": 0.5,
        "decay_rate": -0.5,
        "eps": (1e-20, 1e-2),
    },
]
SHAPES = [(), (5,), (4, 6), (2, 3, 4), (1, 1), (3, 2, 1, 5)]


def pair(dtype: torch.dtype, options: dict[str, Any]) -> list[tuple[list[nn.Parameter], Any]]:
    """The same parameters, twice, with our optimizer and the reference's."""
    torch.manual_seed(0)
    values = [torch.randn(shape).to(dtype) for shape in SHAPES]
    made = []
    for cls in (Adafactor, reference.Adafactor):
        parameters = [nn.Parameter(value.clone()) for value in values]
        made.append((parameters, cls(parameters, **options)))
    return made


def give_gradients(*sides: list[nn.Parameter]) -> None:
    for parameters in zip(*sides, strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_every_step_equals_the_reference_bit_for_bit(dtype: torch.dtype, options: dict[str, Any]) -> None:
    (ours, our_optimizer), (theirs, their_optimizer) = pair(dtype, options)
    for step in range(7):
        give_gradients(ours, theirs)
        our_optimizer.step()
        their_optimizer.step()
        if step == 3:
            our_state, their_state = copy.deepcopy((our_optimizer.state_dict(), their_optimizer.state_dict()))
            our_optimizer.load_state_dict(their_state)
            their_optimizer.load_state_dict(our_state)
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other), (step, mine.shape)
            my_state, other_state = our_optimizer.state[mine], their_optimizer.state[other]
            assert my_state.keys() == other_state.keys()
            for name, value in other_state.items():
                assert type(my_state[name]) is type(value)
                assert torch.equal(torch.as_tensor(my_state[name]), torch.as_tensor(value)), name
    assert our_optimizer.state_dict()["param_groups"] == their_optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("options", [{}, {"warmup_init": True}], ids=str)
def test_the_schedule_shows_the_rates_of_the_reference(options: dict[str, Any]) -> None:
    (ours, our_optimizer), (theirs, their_optimizer) = pair(torch.float32, options)
    mine, other = AdafactorSchedule(our_optimizer, 0.1), reference.AdafactorSchedule(their_optimizer, 0.1)
    assert mine.get_lr() == other.get_lr() == [0.1]
    for _ in range(4):
        give_gradients(ours, theirs)
        for used, schedule in ((our_optimizer, mine), (their_optimizer, other)):
            used.step()
            schedule.step()
        assert [float(rate) for rate in mine.get_last_lr()] == [float(rate) for rate in other.get_last_lr()]
    assert 0 < float(mine.get_last_lr()[0]) < 0.1


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Adafactor([used, unused])
    used.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert not torch.equal(used, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.full((3,), 2.0))
    optimizer = Adafactor([parameter], lr=0.1, relative_step=False)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12.0
    assert parameter.detach().max() < 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1}, r"lr=0.1: relative_step=True computes its own"),
        ({"warmup_init": True, "relative_step": False, "lr": 0.1}, "warmup_init=True.*relative_step=True"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adafactor([nn.Parameter(torch.ones(1))], **options)


def test_sparse_gradients_are_refused() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients; build the embedding with sparse=False"):
        Adafactor([parameter]).step()
