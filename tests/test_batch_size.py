"""The search for a batch size that fits."""

from __future__ import annotations

import pytest

from mainspring.trainer_utils import find_executable_batch_size


def needs(limit: int, tried: list[int]) -> object:
    def run(batch_size: int, extra: int = 0) -> tuple[int, int]:
        tried.append(batch_size)
        if batch_size > limit:
            raise RuntimeError("CUDA out of memory.")
        return batch_size, extra

    return run


def test_without_a_search_the_first_size_is_used() -> None:
    tried: list[int] = []
    assert find_executable_batch_size(needs(100, tried), 32)(extra=3) == (32, 3)
    with pytest.raises(RuntimeError, match="out of memory"):
        find_executable_batch_size(needs(8, tried), 32)()
    assert tried == [32, 32]


def test_a_search_shrinks_until_it_fits() -> None:
    tried: list[int] = []
    size, _ = find_executable_batch_size(needs(10, tried), 32, True)()
    assert tried[0] == 32
    assert size == tried[-1] <= 10


def test_it_decorates_with_arguments() -> None:
    @find_executable_batch_size(starting_batch_size=5)
    def run(batch_size: int) -> int:
        return batch_size

    assert run() == 5
