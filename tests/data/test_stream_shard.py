"""The stream shard under the reference's parameter names."""

from __future__ import annotations

import pytest
from transformers.trainer_pt_utils import IterableDatasetShard as ReferenceShard

from mainspring.data.samplers import IterableShard
from mainspring.data.stream_shard import IterableDatasetShard


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("process_index", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 6, 11, 12])
def test_gives_the_samples_of_the_reference(count: int, process_index: int, drop_last: bool) -> None:
    keywords = {"batch_size": 2, "drop_last": drop_last, "num_processes": 3, "process_index": process_index, "seed": 1}
    ours, theirs = (shard(range(count), **keywords) for shard in (IterableDatasetShard, ReferenceShard))
    assert list(ours) == list(theirs)
    assert len(ours) == len(theirs)
    for name, value in keywords.items():
        assert getattr(ours, name) == getattr(theirs, name) == value


def test_positions_and_defaults_are_those_of_the_reference() -> None:
    ours, theirs = (shard(range(9), 2, False, 2, 1, 5) for shard in (IterableDatasetShard, ReferenceShard))
    assert (list(ours), ours.seed) == (list(theirs), theirs.seed)
    assert list(IterableDatasetShard(range(3))) == list(ReferenceShard(range(3))) == [0, 1, 2]
    assert isinstance(ours, IterableShard)
