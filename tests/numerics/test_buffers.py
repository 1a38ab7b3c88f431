"""What a forward pass changes besides what is trained is put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mainspring.numerics.buffers import KeptBuffers


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("elsewhere", torch.empty(2, device="meta"))
        self.register_buffer("average", torch.zeros(2))


def state(model: nn.Module) -> dict[str, list[float]]:
    return {name: buffer.tolist() for name, buffer in model.named_buffers() if not buffer.is_meta}


def test_all_that_changed_is_as_it_was() -> None:
    model = Holds()
    kept = KeptBuffers(model)
    for _ in range(3):
        model.norm(torch.randn(5, 3))  # other values each time, and a count of batches
        kept.keep()
        before, average = state(model), model.average
        model.norm(torch.full((5, 3), float("nan")))
        model.mask.logical_not_()
        model.average.data.fill_(7)  # of which torch keeps no account
        model.average = torch.ones(2)
        assert state(model) != before
        kept.put_back()
        assert state(model) == before
        assert model.average is average


def test_what_does_not_change_is_copied_once() -> None:
    model = Holds()
    kept = KeptBuffers(model)
    copied: list[Tensor] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            copied.append(args[0])
            return function(*args, **(kwargs or {}))

    kept.keep()
    with Watch():
        kept.keep()
    assert copied
    assert all(tensor.is_floating_point() for tensor in copied)


def test_a_buffer_that_has_grown_in_its_place_is_as_long_as_before() -> None:
    module = nn.Module()
    module.register_buffer("cache", torch.ones(2))
    kept = KeptBuffers(module)
    kept.keep()
    module.cache.data = torch.zeros(5)
    kept.put_back()
    assert module.cache.tolist() == [1.0, 1.0]
    module.cache.data = torch.zeros(5)
    kept.keep()
    module.cache.add_(1)
    kept.put_back()
    assert module.cache.tolist() == [0.0] * 5
