"""The same work in worlds of one, two and four processes: the same samples in each update, losses, norms and weights."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.worker_worlds import SAME, SHORT, Tagger, counted, padded, summed, texts
from tests.distributed.worlds import SEVERAL, found
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own defaults"),
]

EXACT = [name for name in SAME if "by process" not in name]
BY_PROCESS = [name for name in SAME if "by process" in name]
COARSE = 3e-3
"""In bfloat16 a sum over two halves is rounded otherwise by as much."""


def ranks(world: int, name: str) -> list[dict[str, Any]]:
    return [rank["same"][name] for rank in found(world)]


def updates(world: int, name: str) -> list[list[int]]:
    """The samples of each update, over all processes."""
    each = [rank["updates"] for rank in ranks(world, name)]
    return [
        sorted(sample for parts in update for part in parts for sample in part) for update in zip(*each, strict=True)
    ]


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("name", SAME)
def test_processes_agree(name: str, world: int) -> None:
    """Whatever each of them had to do: the world they asked for, and the same bits in it."""
    first, *others = ranks(world, name)
    assert first["world"] == world == 1 + len(others)
    for other in others:
        for what in ("losses", "norms", "weights", "samples"):
            assert other[what] == first[what], what


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("name", SAME)
def test_each_update_has_the_same_samples(name: str, world: int) -> None:
    alone = updates(1, name)
    assert updates(world, name) == alone
    count = SAME[name].count
    assert sorted(chain.from_iterable(alone[: len(alone) // 2])) == list(range(count))


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("name", EXACT)
def test_losses_norms_and_weights_are_those_of_one_process(name: str, world: int) -> None:
    (alone,), several = ranks(1, name), ranks(world, name)[0]
    tolerance = COARSE if name == "bf16" else 2e-5
    for what in ("losses", "norms", "weights"):
        torch.testing.assert_close(
            torch.tensor(several[what]), torch.tensor(alone[what]), rtol=tolerance, atol=tolerance / 10
        )
    assert len(alone["losses"]) == len(alone["updates"]) == 10


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("name", SAME)
def test_only_where_data_may_end_unevenly_do_processes_tell_each_other(name: str, world: int) -> None:
    """Once an update, and once more when an epoch without a known length is over."""
    exchanges = ranks(world, name)[0]["exchanges"]
    known = 0 if SAME[name].stream else 2
    assert exchanges == (12 - known if name.startswith("short") else 0)


def test_the_last_update_of_a_short_epoch_leaves_a_process_without_data() -> None:
    """Five samples in batches of two: what is tested above is really there."""
    last = [rank["updates"][4] for rank in ranks(4, "short")]
    assert [sum(map(len, parts)) for parts in last] == [2, 2, 1, 0]
    assert SHORT % 8 == 5


@pytest.mark.parametrize("name", [name for name in SAME if name.startswith("short") and not SAME[name].stream])
def test_samples_are_counted_once(name: str) -> None:
    """What a checkpoint says of how many samples a run has seen."""
    for world in (1, *SEVERAL):
        assert {rank["samples"] for rank in ranks(world, name)} == {2 * SHORT}


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("name", BY_PROCESS)
def test_without_an_average_over_tokens_processes_count_alike(name: str, world: int) -> None:
    """The mean over those processes that have data, each a mean over its own tokens: computed by hand here."""
    several = ranks(world, name)
    model, rows = Tagger(), texts(SAME[name].count)
    losses, descent = [], torch.optim.SGD(model.parameters(), lr=0.3)
    for parts in zip(*(rank["updates"] for rank in several), strict=True):
        shares = [[rows[index] for part in batches for index in part] for batches in parts]
        loss = torch.stack([_mean_over_tokens(model, share) for share in shares if share]).mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert several[0]["losses"] == pytest.approx(losses, rel=2e-5)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    torch.testing.assert_close(torch.tensor(several[0]["weights"]), weights, rtol=2e-5, atol=2e-6)


def _mean_over_tokens(model: nn.Module, share: list[Any]) -> Tensor:
    batch = padded(share)
    return summed(model(batch["tokens"], batch["index"])["logits"], batch["labels"]) / counted(batch["labels"], None)


def test_with_it_they_do_not() -> None:
    for world in SEVERAL:
        by_token, by_process = (ranks(world, name)[0]["losses"] for name in ("tokens", "by process"))
        assert by_process != pytest.approx(by_token, rel=1e-3)
