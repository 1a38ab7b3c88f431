"""The rows of one output: joined as if all had been put together at once, each copied once, in memory or in a file."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mainspring.evaluation import pieces
from mainspring.evaluation.pieces import FilePieces, MemoryPieces

KINDS: dict[str, Callable[[int | None], Any]] = {"memory": MemoryPieces, "file": lambda expected: FilePieces()}

Batches = list[np.ndarray[Any, Any]]


def joined_at_once(batches: Batches) -> np.ndarray[Any, Any]:
    """The plain way, with every batch at hand."""
    width = max(batch.shape[1] for batch in batches)
    return np.concatenate(
        [np.pad(batch, [(0, 0), (0, width - batch.shape[1])], constant_values=-100) for batch in batches]
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=8),
    expected=st.one_of(st.none(), st.integers(0, 20)),
    dtypes=st.lists(st.sampled_from(["float32", "int64", "float64"]), min_size=8, max_size=8),
)
def test_any_batches_are_joined(
    kind: str, shapes: list[tuple[int, int]], expected: int | None, dtypes: list[str]
) -> None:
    batches = [
        np.full(shape, index + 1, dtype=dtypes[index]) + np.arange(shape[1], dtype=dtypes[index])
        for index, shape in enumerate(shapes)
    ]
    taken = KINDS[kind](expected)
    for batch in batches:
        taken.append(batch)
    found, wanted = taken.joined(), joined_at_once(batches)
    assert found.dtype == wanted.dtype
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_without_a_second_dimension_and_deep_rows(kind: str) -> None:
    for shape in ((), (2, 3)):
        batches = [np.random.default_rng(index).normal(size=(index + 1, *shape)) for index in range(3)]
        taken = KINDS[kind](6)
        for batch in batches:
            taken.append(batch)
        assert np.array_equal(taken.joined(), np.concatenate(batches))


@pytest.mark.parametrize("kind", KINDS)
def test_the_batches_can_be_had_one_by_one(kind: str) -> None:
    batches = [np.arange(3, dtype=np.int8), np.ones((2, 2), dtype=np.float64), np.zeros((0, 4), dtype=np.float32)]
    taken = KINDS[kind](None)
    for batch in batches:
        taken.append(batch)
    for found, wanted in zip(taken.arrays(), batches, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_cannot_be_joined_are_refused(kind: str) -> None:
    taken = KINDS[kind](None)
    taken.append(np.ones((2, 3, 4)))
    taken.append(np.ones((2, 3, 5)))
    with pytest.raises(ValueError, match="eval_do_concat_batches=False"):
        taken.joined()
    taken.close()


def test_batches_of_one_shape_fill_one_array_of_the_known_size() -> None:
    taken = MemoryPieces(100)
    assert taken.bytes_for(np.ones((10, 4))) == 100 * 4 * 8
    for _ in range(10):
        taken.append(np.ones((10, 4)))
        assert taken.bytes_for(np.ones((10, 5))) == 10 * 5 * 8
    whole = taken._whole
    assert taken.joined() is whole


def test_no_row_is_copied_more_than_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches there are, of one width or of many."""
    joins: list[int] = []
    join = pieces.joined_arrays
    monkeypatch.setattr(pieces, "joined_arrays", lambda parts, pad: joins.append(len(parts)) or join(parts, pad))
    for widths, wanted in (([4], []), ([4, 5], [200])):
        joins.clear()
        taken = MemoryPieces(None if len(widths) > 1 else 400)
        for index in range(200):
            taken.append(np.ones((2, widths[index % len(widths)])))
        assert taken.joined().shape == (400, widths[-1])
        assert joins == wanted


def test_a_file_has_no_name_and_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken = FilePieces()
    for width in (3, 4):
        taken.append(np.ones((2, width)))
    assert os.fstat(taken.file.fileno()).st_dev == tmp_path.stat().st_dev  # this is where it lies
    assert os.listdir(tmp_path) == []
    whole = taken.joined()
    assert isinstance(whole, np.memmap)
    assert taken.file.closed
    whole[0, 0] = 7  # users may work in place
    assert whole[0].tolist() == [7, 1, 1, -100]


def mapped_by_us(folder: Path) -> int:
    """How many files of this folder are mapped into this process."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_the_file_goes_with_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken = FilePieces()
    taken.append(np.ones((2000, 100)))
    whole = taken.joined()
    assert mapped_by_us(tmp_path) == 1
    del whole
    gc.collect()
    assert mapped_by_us(tmp_path) == 0


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with full.open("r+b", buffering=0) as file, pytest.raises(OSError, match="eval_memory_limit"):
        FilePieces(file).append(np.ones((100, 100)))
