"""Counting updates by their numbers, without looking at any before it is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mainspring.numerics import Counted, UpdateCounts, counts as module

NAN, INF = float("nan"), float("inf")


def alone(value: Tensor) -> Tensor:
    return value


def make(counts: UpdateCounts, losses: list[Any], norm: Any, scaled_down: bool = False) -> None:
    counts.begin()
    for loss in losses:
        counts.add(torch.as_tensor(loss))
    counts.end(norm if norm is None or isinstance(norm, float) else torch.as_tensor(norm), scaled_down)


UPDATES: list[tuple[list[float], Any]] = [
    ([1.0, 2.0], 0.5),
    ([1.0, NAN], 0.5),  # not finite
    ([], 3.0),  # a process without data; clipped
    ([1.0], NAN),  # not finite
    ([-INF, NAN], INF),  # not finite, once; clipped
    ([1.0], 1.0),  # at the limit
    ([5.0, 5.0, 5.0], 1.5),  # clipped
]


@pytest.mark.parametrize("fold", [1, 2, 3, 1000])
def test_updates_count_once_however_many_micro_batches_they_have(fold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FOLD", fold)
    counts = UpdateCounts(1.0, "cpu")
    for losses, norm in UPDATES:
        make(counts, losses, torch.tensor(norm))
    assert counts.read(alone) == Counted(updates=7, nonfinite=3, clipped=3)
    assert counts.read(alone) == Counted(updates=7, nonfinite=3, clipped=3)  # reading forgets nothing


def test_one_micro_batch_each_is_counted_alike() -> None:
    counts = UpdateCounts(1.0, "cpu")
    for loss, norm in ((1.0, 2.0), (NAN, 0.1), (1.0, INF), (2.0, 0.1)):
        make(counts, [loss], torch.tensor(norm))
    assert counts.read(alone) == Counted(updates=4, nonfinite=2, clipped=2)


def test_norms_may_be_numbers_absent_or_of_another_shape_and_type() -> None:
    counts = UpdateCounts(1.0, "cpu")
    for norm in (2.0, None, torch.tensor([NAN], dtype=torch.float64), torch.tensor(3.0, dtype=torch.bfloat16)):
        make(counts, [torch.tensor([1.0])], norm)
    assert counts.read(alone) == Counted(updates=4, nonfinite=1, clipped=2)


def test_without_a_limit_nothing_is_clipped() -> None:
    counts = UpdateCounts(None, "cpu")
    make(counts, [1.0], 1e9)
    assert counts.read(alone) == Counted(updates=1)
    assert "clipped_fraction" not in counts.read(alone).logs(clips=False, scales=False, skips=False)


def test_an_overflow_that_the_scaler_saw_to_counts_apart() -> None:
    counts = UpdateCounts(1.0, "cpu")
    make(counts, [1.0], INF, scaled_down=True)
    make(counts, [NAN], NAN, scaled_down=True)  # no scale makes such a loss finite
    make(counts, [1.0], 0.5)
    counted = counts.read(alone)
    assert counted == Counted(updates=3, nonfinite=1, overflows=1)
    assert counted.logs(clips=True, scales=True, skips=False) == {
        "nonfinite_steps": 1,
        "clipped_fraction": 0.0,
        "overflow_steps": 1,
    }


def test_an_update_that_was_begun_and_never_made_is_forgotten() -> None:
    counts = UpdateCounts(1.0, "cpu")
    make(counts, [1.0], 0.5)
    counts.begin()
    counts.add(torch.tensor(NAN))
    make(counts, [1.0], 0.5)
    assert counts.read(alone) == Counted(updates=2)


def test_what_is_left_out_is_no_update_but_counts_as_not_finite() -> None:
    counts = UpdateCounts(1.0, "cpu")
    for nonfinite in (True, False):
        counts.begin()
        counts.add(torch.tensor(NAN))
        assert torch.stack(counts.begun()).isnan().all()
        counts.leave_out(nonfinite)
        assert not counts.begun()
    make(counts, [1.0], 2.0)
    counted = counts.read(alone)
    assert counted == Counted(updates=1, nonfinite=1, clipped=1, skipped=2)
    assert counted.logs(clips=True, scales=False, skips=True)["skipped_steps"] == 2


def test_a_loss_that_is_not_finite_on_another_process_counts_here() -> None:
    others = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.int32)
    counts = UpdateCounts(1.0, "cpu")
    for loss in (NAN, 1.0, 1.0):
        make(counts, [loss], 0.5)
    assert counts.read(lambda own: own + others).nonfinite == 2  # the first on both


def test_counting_goes_on_from_what_was_read() -> None:
    whole, parts = UpdateCounts(1.0, "cpu"), UpdateCounts(1.0, "cpu")
    for number, (losses, norm) in enumerate(UPDATES):
        make(whole, losses, torch.tensor(norm))
        make(parts, losses, torch.tensor(norm))
        if number == 3:
            parts.restart(parts.read(alone))
    assert parts.read(alone) == whole.read(alone)


def test_what_was_kept_is_put_back_whatever_was_counted_since() -> None:
    counts = UpdateCounts(1.0, "cpu")
    make(counts, [1.0], 2.0)
    kept = counts.kept()
    make(counts, [NAN], 2.0)
    counts.restart()
    counts.put_back(kept)
    make(counts, [1.0], 0.5)
    assert counts.read(alone) == Counted(updates=2, clipped=1)


def test_neither_graphs_nor_large_tensors_are_held_on_to() -> None:
    counts = UpdateCounts(1.0, "cpu")
    weight = torch.ones(1000, requires_grad=True)
    counts.add((weight * 2).sum())
    counts.add((weight * 2)[3])
    assert not any(loss.requires_grad or loss.untyped_storage().nbytes() > 64 for loss in counts.begun())


def test_nothing_is_computed_or_read_before_it_is_asked_for() -> None:
    counts, ran = UpdateCounts(1.0, "cpu"), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ran.append(function)
            return function(*args, **(kwargs or {}))

    loss, norm = torch.tensor(1.0), torch.tensor(0.5)
    with Watch():
        for _ in range(100):
            counts.begin()
            counts.add(loss)
            counts.end(norm)
        assert ran == []
        counts.read(alone)
    assert ran
