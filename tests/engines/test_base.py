"""One process: what the verbs do, and what the accelerator's users see of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mainspring.data.samplers import mark_last
from mainspring.engines import build_engine
from mainspring.engines.accelerator import build_accelerator
from mainspring.engines.base import EngineOptions, SingleProcess, WrapOptions


@pytest.fixture
def engine() -> SingleProcess:
    return build_engine(build_accelerator(cpu=True, mixed_precision="no"), EngineOptions())


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_one_process_is_a_single_process(engine: SingleProcess) -> None:
    assert type(engine) is SingleProcess
    assert (engine.rank, engine.world_size, engine.device.type) == (0, 1, "cpu")


def test_a_second_accelerator_may_have_another_precision() -> None:
    assert build_accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    assert build_accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"


def test_a_model_is_prepared_once(engine: SingleProcess) -> None:
    model = linear()
    assert not engine.is_placed(model)
    assert engine.place(model) is engine.prepare(model)
    assert engine.is_placed(model)
    assert not engine.is_placed(linear())


def test_bfloat16_computes_in_it_and_returns_float32() -> None:
    engine = build_engine(build_accelerator(cpu=True, mixed_precision="bf16"), EngineOptions())
    seen = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()
            self.inner.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    assert engine.place(Model())(torch.ones(2, 3)).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_the_accelerators_verbs_reach_the_engine(engine: SingleProcess) -> None:
    model, accelerator = linear(), engine.accelerator
    accelerator.backward(model(torch.full((4, 3), 10.0)).sum())
    plain = linear()
    plain(torch.full((4, 3), 10.0)).sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    assert torch.equal(accelerator.clip_grad_norm_(model.parameters(), 1.0), expected)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_the_norm_is_measured_without_touching_the_gradients(engine: SingleProcess) -> None:
    model = linear()
    model(torch.full((4, 3), 10.0)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = engine.grad_norm(model.parameters())
    assert norm.item() == pytest.approx(sum(float((grad**2).sum()) for grad in before) ** 0.5)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))


def test_accumulation_says_whether_gradients_are_synchronised(engine: SingleProcess) -> None:
    model = linear()
    with engine.accumulate(model, sync=False):
        assert not engine.accelerator.sync_gradients
    with engine.accumulate(model, sync=True):
        assert engine.accelerator.sync_gradients


class FakeScaler:
    """A loss scaler whose update halves the scale when it is told that gradients overflowed."""

    def __init__(self, overflows: Iterator[bool]) -> None:
        self.value, self.overflows, self.unscaled = 8.0, overflows, 0

    def get_scale(self) -> float:
        return self.value

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.value

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.unscaled += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.div_(self.value)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def update(self) -> None:
        if next(self.overflows):
            self.value /= 2


def test_a_scaler_unscales_once_per_update_and_tells_of_skipped_steps(engine: SingleProcess) -> None:
    model = linear()
    optimizer = engine.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.0))
    scaler: Any = FakeScaler(iter([True, False]))
    engine.scaler = scaler
    for skipped in (True, False):
        optimizer.zero_grad()
        engine.backward(model(torch.ones(1, 3)).sum())
        norm = engine.clip_grad_norm(model.parameters(), 100.0)
        assert norm.item() == pytest.approx(2.0)  # the gradient of every one of four numbers is 1
        engine.clip_grad_norm(model.parameters(), 100.0)
        engine.step(optimizer)
        assert engine.step_was_skipped is skipped
    assert scaler.unscaled == 2


def test_the_last_batch_of_an_evaluation_is_known(engine: SingleProcess) -> None:
    """In one process nothing fills it up: all of it counts, however long it is."""
    loader = DataLoader(list(range(7)), batch_size=3)
    state = engine.accelerator.gradient_state
    seen = [(len(batch), state.end_of_dataloader, state.remainder) for batch, _ in engine.evaluation_batches(loader)]
    assert seen == [(3, False, -1), (3, False, -1), (1, True, -1)]
    assert not state.in_dataloader


def test_an_abandoned_evaluation_leaves_no_loader_behind(engine: SingleProcess) -> None:
    batches = engine.evaluation_batches(DataLoader(list(range(7)), batch_size=3))
    next(batches)
    batches.close()
    assert not engine.accelerator.gradient_state.in_dataloader


@pytest.mark.parametrize(("items", "expected"), [([], []), ([1], [(1, True)]), ([1, 2], [(1, False), (2, True)])])
def test_the_last_item_is_marked(items: list[int], expected: list[tuple[int, bool]]) -> None:
    assert list(mark_last(items)) == expected


def test_accumulation_by_the_users_code_keeps_what_the_loop_says(engine: SingleProcess) -> None:
    """`with accelerator.accumulate(model)` in a copied `training_step` does not count micro-batches by itself."""
    model = linear()
    for sync in (False, True, False):
        with engine.accumulate(model, sync=sync), engine.accelerator.accumulate(model):
            assert engine.accelerator.sync_gradients is sync


def test_the_precision_of_an_accelerator_is_its_own() -> None:
    first = build_accelerator(cpu=True, mixed_precision="bf16")
    build_accelerator(cpu=True, mixed_precision="no")
    assert first.mixed_precision == "bf16"


def test_prepare_gives_what_the_engine_prepares(engine: SingleProcess) -> None:
    model = linear()
    assert engine.accelerator.prepare(model) is engine.prepare(model)


def test_options_of_the_wrapper_are_those_that_were_set() -> None:
    assert WrapOptions(find_unused_parameters=False, bucket_cap_mb=3).given() == {
        "find_unused_parameters": False,
        "bucket_cap_mb": 3,
    }
