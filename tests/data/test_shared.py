"""Loaders of ours in the hands of Accelerate, and settings that say how processes share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import BatchSampler, IterableDataset

from mainspring.data.loaders import LoaderOptions, build_loader, has_shards, refuse_uneven
from mainspring.data.random_stream import DataStream
from mainspring.data.shared import SharedLoader
from mainspring.data.splitting import Pieces, share_of_batch
from mainspring.engines.accelerator import build_accelerator
from mainspring.errors import OptionError
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


@pytest.mark.parametrize("count", [16, 21])
def test_batches_for_all_or_for_one_process_only(count: int) -> None:
    """21 samples are 6 batches of up to 4 for two processes; 17 are 5, one of them for the first alone."""
    refuse_uneven(build(range(count), world_size=2, even=False))
    with pytest.raises(OptionError, match=r"even_batches.*2 to 3 batches.*set dataloader_drop_last=True"):
        refuse_uneven(build(range(17), world_size=2, even=False))
    refuse_uneven(build(range(17), world_size=2, even=False, drop_last=True))
    refuse_uneven(build(range(17), world_size=1, even=False))
    refuse_uneven(build(range(17), world_size=2))


def test_a_stream_has_no_even_end_unless_it_is_dropped() -> None:
    refuse_uneven(build(Rows(), world_size=2, even=False, drop_last=True))
    with pytest.raises(OptionError, match="a stream may end with batches for some processes only"):
        refuse_uneven(build(Rows(), world_size=2, even=False))


def test_streams_with_a_shard_for_every_process() -> None:
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_dict({"x": list(range(8))}).to_iterable_dataset(num_shards=2)
    assert has_shards(stream, 2)
    assert not has_shards(stream, 3)
    assert not has_shards(Rows(), 1)
