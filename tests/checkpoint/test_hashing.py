from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

from mainspring.checkpoint.hashing import FileRecord, record_and_flush, record_file

CHUNK = 256 * 1024


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_a_record_is_the_size_and_the_hash_of_the_whole_file(tmp_path: Path, size: int) -> None:
    data = bytes(index * 7 % 251 for index in range(size))
    (tmp_path / "file").write_bytes(data)
    assert record_file(tmp_path / "file") == FileRecord(size, xxhash.xxh3_64_hexdigest(data))


def test_many_files_get_their_own_records(tmp_path: Path) -> None:
    files = {f"file {index}": tmp_path / str(index) for index in range(20)}
    for index, path in enumerate(files.values()):
        path.write_bytes(bytes([index]) * index)
    assert record_and_flush(files) == {name: record_file(path) for name, path in files.items()}


def test_no_file_is_no_record() -> None:
    assert record_and_flush({}) == {}


def test_a_file_that_cannot_be_read_raises(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        record_and_flush({"folder": tmp_path / "folder"})
