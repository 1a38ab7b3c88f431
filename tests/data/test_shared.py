"""Loaders of ours in the hands of Accelerate, and settings that say how processes share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import BatchSampler, IterableDataset

from mainspring.data.loaders import LoaderOptions, build_loader, has_shards
from mainspring.data.position import capture_position
from mainspring.data.random_stream import DataStream
from mainspring.data.shared import SharedLoader
from mainspring.data.splitting import Pieces, share_of_batch
from mainspring.data.uneven import divides_itself, may_end_apart
from mainspring.engines.accelerator import build_accelerator
from tests.helpers import loaders


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(10))


def build(dataset: Any, world_size: int = 1, **changes: Any) -> SharedLoader:
    arguments = {
        "batch_size": 4,
        "collate_fn": torch.tensor,
        "sampler": None,
        "drop_last": False,
        "rank": 0,
        "world_size": world_size,
        "options": LoaderOptions(),
        **changes,
    }
    return build_loader(dataset, **arguments)


@pytest.mark.parametrize("dataset", [range(10), Rows()], ids=["map", "stream"])
@pytest.mark.parametrize("stream", [None, DataStream(3, 0, 2)], ids=["plain", "drawn"])
def test_prepare_hands_our_loader_back(dataset: Any, stream: DataStream | None) -> None:
    """Sharing it out once more would leave half of the samples out, and its random stream with them."""
    loader = build(dataset, world_size=2, stream=stream)
    expected = [batch.tolist() for batch in loader]
    for accelerator in (Accelerator(), build_accelerator(cpu=True, mixed_precision="no")):
        assert accelerator.prepare(loader) is loader
        assert [batch.tolist() for batch in loader] == expected


@pytest.mark.parametrize("stream", [None, DataStream(3)], ids=["plain", "drawn"])
def test_a_prepared_loader_puts_its_batches_on_the_device(stream: DataStream | None) -> None:
    accelerator = build_accelerator(cpu=True, mixed_precision="no")
    accelerator.state.device = torch.device("meta")
    try:
        loader = accelerator.prepare(build(range(10), collate_fn=lambda rows: {"x": torch.tensor(rows)}, stream=stream))
        assert [batch["x"].device.type for batch in loader] == ["meta"] * 3
        apart = build(range(10), stream=stream)
        accelerator.prepare_data_loader(apart, device_placement=False)
        assert {batch.device.type for batch in apart} == {"cpu"}
    finally:
        accelerator.state.device = torch.device("cpu")


def test_a_trainers_loader_that_is_prepared_trains_alike(tmp_path: Path) -> None:
    class Prepared(loaders.Noting):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(super().get_train_dataloader())

    class Drawing:
        """A collator with random numbers of the data's own."""

        def __call__(self, rows: list[dict[str, float]]) -> dict[str, torch.Tensor]:
            return {"x": torch.tensor([float(row["x"]) for row in rows]) + torch.rand(len(rows))}

    options = {"collator": Drawing(), "save_strategy": "no", "save_steps": 500, "remove_unused_columns": False}
    plain = loaders.trainer(tmp_path, **options)
    plain.train()
    prepared = loaders.trainer(tmp_path, kind=Prepared, **options)
    prepared.train()
    assert torch.equal(plain.model.weight, prepared.model.weight)


def test_what_cannot_be_split_is_refused() -> None:
    assert share_of_batch(8, 2) == 4
    with pytest.raises(ValueError, match="divides batches of 7 samples among 2 processes"):
        share_of_batch(7, 2)
    with pytest.raises(ValueError, match="list has no batch_size"):
        Pieces([[1, 2], [3]], 2)


def test_pieces_follow_the_epoch() -> None:
    from mainspring.data.samplers import EpochRandomSampler

    pieces = Pieces(BatchSampler(EpochRandomSampler(9, 1), 4, drop_last=False), 2)
    pieces.set_epoch(3)
    expected = EpochRandomSampler(9, 1)
    expected.set_epoch(3)
    assert [index for piece in pieces for index in piece] == list(expected)
    assert [len(piece) for piece in pieces] == [2, 2, 2, 2, 1]


class Dividing(Rows):
    divides_itself = True


APART: dict[str, tuple[dict[str, Any], bool]] = {
    "filled up": ({}, False),
    "alone": ({"even": False, "world_size": 1}, False),
    "not filled up": ({"even": False}, True),
    "dropped": ({"even": False, "drop_last": True}, False),
}


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("dataset", [range(17), Rows()], ids=["map", "stream"])
def test_who_may_end_before_another(dataset: Any, case: str) -> None:
    """Only these take part in an exchange for each update."""
    options, apart = APART[case]
    assert may_end_apart(build(dataset, **{"world_size": 2, **options})) is apart


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_that_divides_itself_is_read_as_it_is(drop_last: bool) -> None:
    """Also with one process that reads for all, which would read its own part alone."""
    for reader in ("each", "first", "shards"):
        loader = build(Dividing(), world_size=2, drop_last=drop_last, reader=reader, stream=DataStream(3, 0, 2))
        assert may_end_apart(loader)
        assert [batch.tolist() for batch in loader][:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert capture_position(loader) is None  # it would be taken for that of every process


def test_what_a_script_made_may_do_anything_but_for_what_accelerate_shares() -> None:
    accelerator = Accelerator()
    plain = torch.utils.data.DataLoader(range(17), batch_size=4)
    assert may_end_apart(plain)
    assert may_end_apart(accelerator.prepare(plain))  # a world of one: nothing is shared


def test_streams_with_a_shard_for_every_process() -> None:
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_dict({"x": list(range(8))}).to_iterable_dataset(num_shards=2)
    assert has_shards(stream, 2)
    assert not has_shards(stream, 3)
    assert not has_shards(Rows(), 1)


def test_streams_that_were_divided_by_node() -> None:
    datasets = pytest.importorskip("datasets")
    from datasets.distributed import split_dataset_by_node

    stream = datasets.Dataset.from_dict({"x": list(range(8))}).to_iterable_dataset(num_shards=2)
    assert divides_itself(split_dataset_by_node(stream, 1, 2))
    assert not divides_itself(stream)
    assert divides_itself(Dividing())
    assert not divides_itself(Rows())
