"""How long samples are: read from a column, or measured once."""

from __future__ import annotations

import gc
import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from mainspring import Trainer, TrainingArguments
from mainspring.data import lengths as room
from mainspring.data.lengths import Lengths, digest, measured_lengths
from mainspring.data.orders import GroupedOrder, Specification
from tests.helpers.models import tiny_gpt2


class Counted:
    """Samples that are counted when they are read, and that draw a random number each time."""

    def __init__(self, *sizes: int, key: str = "input_ids") -> None:
        self.sizes = sizes
        self.key = key
        self.reads = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        torch.rand(1)
        return {self.key: [0] * self.sizes[index], "length": 100 + index}


class PerEpoch(Counted):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.key: [0] * (self.sizes[index] + self.epoch)}


def table(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def test_samples_are_measured_once_for_each_object() -> None:
    data = Counted(3, 1, 2)
    assert Lengths(data).of(0).tolist() == [3, 1, 2]
    reads = data.reads
    assert Lengths(data).of(7).tolist() == [3, 1, 2]
    assert data.reads == reads
    assert Lengths(Counted(5, 5)).of(0).tolist() == [5, 5]


def test_what_was_measured_goes_with_its_dataset() -> None:
    data = Counted(3, 1, 2)
    Lengths(data).of(0)
    number = id(data)
    assert number in room._cache
    del data
    gc.collect()
    assert number not in room._cache


def test_a_list_is_measured_as_it_is_now() -> None:
    data = [{"input_ids": [1, 2]}]
    Lengths(data).of(0)
    data.append({"input_ids": [1, 2, 3]})
    assert Lengths(data).of(0).tolist() == [2, 3]


class Sample(dict[str, Any]):
    """It counts how often it is looked into."""

    reads = 0

    def __getitem__(self, key: str) -> Any:
        self.reads += 1
        return super().__getitem__(key)


def test_a_list_is_measured_once_for_each_order() -> None:
    """However many checkpoints are written."""
    data = [Sample(input_ids=[1, 2]), Sample(input_ids=[3])]
    order = GroupedOrder(Lengths(data), Specification("group_by_length", batch_size=2), seed=0)
    for epoch in (0, 0, 1):
        order.specification_of(epoch)
        assert len(list(order)) == 2
    assert [sample.reads for sample in data] == [1, 1]


def test_a_column_wins_over_what_would_be_measured() -> None:
    data = Counted(3, 1, 2)
    assert Lengths(data, "length").of(0).tolist() == [100, 101, 102]
    assert Lengths(data, "tokens").of(0).tolist() == [3, 1, 2]
    assert Lengths(table(input_ids=[[1], [1, 2]], length=[7, 8]), "length").of(0).tolist() == [7, 8]


def test_measuring_leaves_the_models_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    Lengths(Counted(3, 1, 2)).of(0)
    assert torch.equal(before, torch.get_rng_state())


def test_lengths_are_measured_anew_for_each_epoch_of_a_dataset_that_is_told_of_it() -> None:
    lengths = Lengths(PerEpoch(3, 1))
    assert lengths.vary
    assert [lengths.of(epoch).tolist() for epoch in (0, 2, 0)] == [[3, 1], [5, 3], [3, 1]]


class TestProgress:
    """Samples that are read to be measured are counted on the screen."""

    @pytest.fixture
    def screen(self, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
        """What a bar shows, from the first sample on: as a rule it appears after a second."""
        file = io.StringIO()

        def at_once(*args: Any, **options: Any) -> Any:
            return tqdm(*args, **{**options, "file": file, "delay": 0.0, "mininterval": 0.0})

        monkeypatch.setattr(room, "tqdm", at_once)
        return file

    def test_measuring_shows_how_far_it_is(self, screen: io.StringIO) -> None:
        data = Counted(3, 1, 2)
        Lengths(data).of(0)
        for done in range(4):
            assert f"{done}/3" in screen.getvalue()
        assert "Measuring lengths" in screen.getvalue()
        screen.truncate(0)
        Lengths(data).of(0)
        assert screen.getvalue() == ""  # it is measured already

    def test_nothing_is_shown_where_nothing_is_read(self, screen: io.StringIO) -> None:
        Lengths(table(input_ids=[[1], [1, 2]])).of(0)
        assert screen.getvalue() == ""

    @pytest.mark.parametrize("quiet", [False, True])
    def test_packing_shows_it_unless_the_run_shows_no_bars(
        self, quiet: bool, screen: io.StringIO, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"pack_sequences": True, "length_column_name": "none"}
        args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=quiet, **options)
        Trainer(tiny_gpt2(), args, train_dataset=Counted(3, 1, 2, 5)).get_train_dataloader()
        assert ("Measuring lengths" in screen.getvalue()) is not quiet


class TestTables:
    def test_columns_are_read_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = table(input_ids=[[1] * size for size in range(1, 30)], words=["w" * size for size in range(29)])

        def refuse(self: Any, index: Any) -> Any:
            raise AssertionError(f"item {index} was read")

        monkeypatch.setattr(room, "_sample_by_sample", refuse)
        assert Lengths(data).of(0).tolist() == list(range(1, 30))
        assert Lengths(data, key="words").of(0).tolist() == list(range(29))

    @pytest.mark.parametrize("form", [None, "torch", "numpy"])
    def test_rows_that_were_chosen_shuffled_or_formatted(self, form: str | None) -> None:
        data = table(input_ids=[[1] * size for size in range(20)], length=list(range(20))).with_format(form)
        chosen = data.select([5, 3, 9]).shuffle(seed=1)
        expected = [len(row) for row in chosen.with_format(None)["input_ids"]]
        assert Lengths(chosen).of(0).tolist() == Lengths(chosen, "length").of(0).tolist() == expected

    def test_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(room, "_ROWS_AT_ONCE", 4)
        assert Lengths(table(length=list(range(11))), "length").of(0).tolist() == list(range(11))

    def test_a_transform_makes_the_samples(self) -> None:
        data = table(text=["a b", "a b c"])
        data.set_transform(lambda rows: {"input_ids": [text.split() for text in rows["text"]]})
        assert Lengths(data).of(0).tolist() == [2, 3]

    def test_a_transform_over_a_column_of_the_same_name(self) -> None:
        data = table(input_ids=[[1, 2], [3]])
        data.set_transform(lambda rows: {"input_ids": [row + row for row in rows["input_ids"]]})
        assert Lengths(data).of(0).tolist() == [4, 2]


@pytest.mark.parametrize("data", [[{"x": [1]}], [(1, 2)], table(x=[[1]])])
def test_what_cannot_be_measured_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="the column 'size' or the key 'input_ids'.*length_column_name"):
        Lengths(data, "size").of(0)


def test_the_digest_tells_lengths_apart() -> None:
    one, same, other = (np.array(values) for values in ([1, 2, 3], [1, 2, 3], [1, 3, 2]))
    assert digest(one) == digest(same) != digest(other)


def test_without_a_dataset() -> None:
    with pytest.raises(ValueError, match="dataset=None"):
        measured_lengths(None, "input_ids")
