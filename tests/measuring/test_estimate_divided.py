"""What ZeRO leaves on each process, worked out by hand; what optimizers remember of a number, found by a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mainspring.measuring.estimate_divided import (
    DividedMemoryEstimate,
    Division,
    Kept,
    another_of,
    divided_bytes,
    largest_layer,
    sizes_of,
    state_per_number,
)


class Small(nn.Module):
    """15 numbers that are trained, 7 that are not, and a buffer of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.frozen = nn.Linear(6, 1).requires_grad_(False)
        self.register_buffer("means", torch.zeros(3))


BUFFERS = 12


@pytest.mark.parametrize(
    ("division", "device", "host"),
    [
        (Division(0, 2), Kept(88 + BUFFERS, 60, 0, 120), Kept()),
        (Division(0, 2, number=2), Kept(44 + BUFFERS, 30, 60, 120), Kept()),
        (Division(1, 2), Kept(88 + BUFFERS, 60, 32, 64), Kept()),
        (Division(2, 2), Kept(88 + BUFFERS, 32, 32, 64), Kept()),
        (Division(2, 4, number=2), Kept(44 + BUFFERS, 8, 16, 32), Kept()),
        (Division(3, 2), Kept((6 + 2 + 3 + 1) * 4 + BUFFERS, 32, 32, 64), Kept()),
        (Division(3, 2, whole_below=3), Kept((6 + 2 + 3 + 1 + 3 + 1) * 4 + BUFFERS, 32, 32, 64), Kept()),
        (Division(1, 2, states_on="host"), Kept(88 + BUFFERS, 60), Kept(0, 0, 32, 64)),
        (Division(2, 2, states_on="host"), Kept(88 + BUFFERS), Kept(0, 32, 32, 64)),
        (Division(3, 2, parameters_on="host", states_on="host"), Kept(BUFFERS), Kept(48, 32, 32, 64)),
    ],
    ids=str,
)
def test_bytes_of_a_process(division: Division, device: Kept, host: Kept) -> None:
    """By stage, precision, number of processes and place."""
    found = divided_bytes(Small(), 8.0, division)
    assert found["device"] == device
    assert found.get("host", Kept()) == host


def test_pieces_count_as_the_whole_they_are_of() -> None:
    """Of a model that was divided when it was loaded."""
    model = nn.Linear(4, 3, bias=False)
    model.weight.ds_numel = 12  # type: ignore[assignment]
    model.weight.data = torch.empty(0)
    assert sizes_of(model) == [(12, True)]
    assert largest_layer(model) == 12


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.AdamW(p), 8.0),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 12.0),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0.0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 4.0),
        (lambda p: torch.optim.Adagrad(p), 4.0),
    ],
)
def test_what_optimizers_remember(make, expected: float) -> None:  # type: ignore[no-untyped-def]
    """Counts of steps are left out."""
    assert state_per_number(make) == expected


def test_an_optimizer_is_asked_without_a_step_of_its_own() -> None:
    """It keeps its groups, and remembers nothing."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    assert state_per_number(another_of(optimizer)) == 8.0
    assert optimizer.param_groups[0]["params"] == [parameter]
    assert not optimizer.state
    assert torch.equal(parameter, torch.ones(2))


def test_the_text_names_places_and_sizes() -> None:
    """Those that are used, and what DeepSpeed says."""
    estimate = DividedMemoryEstimate(
        2, 4, Kept(2048, 1024), Kept(0, 0, 4096, 8192), deepspeed=(1 << 20, 1 << 21), tables="\nmore\n"
    )
    assert [line.split() for line in str(estimate).splitlines()[1:5]] == [
        ["device:", "parameters", "2.0", "KiB"],
        ["device:", "gradients", "1.0", "KiB"],
        ["host:", "weight", "copies", "4.0", "KiB"],
        ["host:", "optimizer", "states", "8.0", "KiB"],
    ]
    assert "1.0 MiB on each device, 2.0 MiB on each machine's host" in str(estimate)
    assert str(estimate).endswith("more")
