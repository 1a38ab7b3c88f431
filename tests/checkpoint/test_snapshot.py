from __future__ import annotations

import io
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from mainspring.checkpoint.snapshot import HostCopies
from tests.helpers.models import tiny_gpt2

Pair = namedtuple("Pair", ["first", "second"])


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def adamw_state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def views_of_one_storage() -> dict[str, Tensor]:
    whole = torch.arange(24.0)
    return {"whole": whole, "turned": whole[4:16].view(3, 4).t(), "again": whole[2:8], "alias": whole.detach()}


class Tagged(torch.Tensor):
    """A subclass with data of its own."""


STATES = {
    "an optimizer": adamw_state,
    "a module, with the versions it keeps beside its names": lambda: nn.BatchNorm1d(3).state_dict(),
    "tied weights": lambda: tiny_gpt2().state_dict(),
    "views": views_of_one_storage,
    "dtypes": lambda: [torch.ones(3, dtype=d) for d in (torch.bfloat16, torch.bool, torch.int8, torch.complex64)],
    "parameters": lambda: OrderedDict(a=nn.Parameter(torch.ones(2)), b=nn.Parameter(torch.ones(2), False)),
    "one that requires a gradient": lambda: (torch.ones(2, requires_grad=True),),
    "no elements": lambda: [torch.empty(0), torch.empty(0, 3), torch.tensor(1.5)],
    "the same list twice": lambda: {"a": (shared := [1, torch.ones(1)]), "b": shared},
    "a named tuple": lambda: Pair(torch.ones(1), {"x": 2}),
    "sparse": lambda: {"x": torch.eye(3).to_sparse()},
}


@pytest.mark.parametrize("name", STATES)
def test_a_copy_is_written_byte_for_byte_as_the_original(name: str) -> None:
    state = STATES[name]()
    copies = HostCopies()
    copy = copies.copy(state)
    assert saved(copy) == saved(state)
    copies.recycle()
    assert saved(copies.copy(state)) == saved(state)


def test_what_happens_to_the_original_does_not_reach_the_copy() -> None:
    original = {
        "weight": torch.ones(3),
        "sparse": torch.eye(2).to_sparse().coalesce(),
        "subclass": torch.ones(3).as_subclass(Tagged),
        "conjugate": torch.full((2,), 1j).conj(),
        "list": [1, 2],
        "inside": {"lr": [0.1]},
    }
    copy = HostCopies().copy(original)
    original["weight"].zero_()
    original["sparse"].values().zero_()
    original["subclass"].zero_()
    original["conjugate"].zero_()
    original["list"].append(3)
    original["inside"]["lr"][0] = 0.2
    assert torch.equal(copy["weight"], torch.ones(3))
    assert torch.equal(copy["sparse"].to_dense(), torch.eye(2))
    assert type(copy["subclass"]) is Tagged
    assert torch.equal(copy["subclass"].as_subclass(Tensor), torch.ones(3))
    assert torch.equal(copy["conjugate"], torch.full((2,), -1j))
    assert copy["list"] == [1, 2]
    assert copy["inside"] == {"lr": [0.1]}


def test_shared_memory_is_copied_once_and_stays_shared() -> None:
    copy = HostCopies().copy(views_of_one_storage())
    copy["whole"].fill_(7)
    assert all(torch.all(view == 7) for view in copy.values())


def places(state: dict[str, Tensor]) -> set[int]:
    return {value.data_ptr() for value in state.values()}


def test_memory_is_used_again_after_recycling_and_not_before() -> None:
    state = {"a": torch.ones(1000), "b": torch.ones(1000), "c": torch.ones(50)}
    copies = HostCopies()
    first = copies.copy(state)
    second = copies.copy(state)
    assert not places(first) & places(second)
    copies.recycle()
    reordered = dict(reversed(state.items()))
    again = copies.copy(reordered) | {f"{name}2": value for name, value in copies.copy(state).items()}
    assert places(again) == places(first) | places(second)


def test_another_shape_gets_other_memory_and_the_old_goes_back_to_the_system() -> None:
    copies = HostCopies()
    held = StorageWeakRef(copies.copy([torch.ones(1000)])[0].untyped_storage())
    copies.recycle()
    assert not held.expired()
    assert torch.equal(copies.copy([torch.ones(1001)])[0], torch.ones(1001))
    assert not held.expired()
    copies.recycle()
    assert held.expired()


def test_releasing_gives_everything_back() -> None:
    copies = HostCopies()
    copies.copy([torch.ones(1000)])
    copies.recycle()
    held = StorageWeakRef(copies.copy([torch.ones(1000)])[0].untyped_storage())
    assert not held.expired()
    copies.release()
    assert held.expired()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_cuda_come_to_pinned_host_memory() -> None:
    state = views_of_one_storage()
    copies = HostCopies()
    for _ in range(2):
        on_device = {name: value.cuda() for name, value in state.items()}
        copy = copies.copy(on_device)
        for value in on_device.values():
            value.zero_()
        assert all(value.is_pinned() for value in copy.values())
        assert all(torch.equal(copy[name], state[name]) for name in state)
        copies.recycle()
