"""Writing one folder of shards by all processes, and reading it by as many as there are then."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from mainspring.checkpoint.deferral import write_together
from mainspring.checkpoint.disk import as_os_errors
from mainspring.checkpoint.hashing import FileRecord, note_record, record_and_flush
from mainspring.checkpoint.sharded.metadata import read_metadata
from mainspring.checkpoint.sharded.streaming import load_bytes, put_at
from mainspring.errors import CheckpointError

StrPath = str | os.PathLike[str]


def save_shards(folder: StrPath, state: dict[str, Any]) -> None:
    """Write a state of which each process holds shards; every process calls it, with the same names.

    Inside `deferred` the shards are copied, and written later.

    Args:
        folder: Where to; made. It lies inside a stage, of which all processes know.
        state: Nested dicts of sharded tensors, of plain ones (which are the same everywhere, and written once), and of
            numbers and texts: `{"model": sharded_model_state(model)}`.

    Raises:
        OSError: The system refused a write to some process.
        CheckpointError: The state cannot be written for another reason.
    """
    place = os.path.abspath(folder)
    write_together(partial(_save, place), state)


def load_shards(folder: StrPath, state: dict[str, Any]) -> None:
    """Fill a state from a folder of shards, on any number of processes; every process calls it, with the same names.

    Each reads what its own shards need. Without a process group the tensors are plain ones.

    Args:
        folder: As `save_shards`, or the reference, wrote it.
        state: Nested as it was saved. Its tensors are filled where they are, and everything else is replaced.

    Raises:
        CheckpointError: The folder is damaged, holds what could execute something, lacks a name, or has another shape.
        OSError: The system would not read it.
    """
    with _failures_of_all("read"), _quietly():
        load(state, storage_reader=_Reader(folder), planner=_Planner(), no_dist=not dist.is_initialized())


# ---- writing ----


def _save(place: str, state: dict[str, Any], group: dist.ProcessGroup | None = None) -> None:
    alone = not dist.is_initialized()
    with _failures_of_all("write"), _quietly():
        save(state, storage_writer=_Writer(place), process_group=group, no_dist=alone)


class _Results(list[WriteResult]):
    """What one process wrote, and the records of its files: they travel to the main process together."""

    records: dict[str, FileRecord]


class _Writer(FileSystemWriter):
    """Also hashes on each process what that wrote, so that nobody has to read the shards of all."""

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(save_id=self.save_id)  # and not the folder, which is a stage

    @as_os_errors()
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        root = Path(self.path)
        results = _Results(super().write_data(plan, planner).value())
        names = {result.storage_data.relative_path for result in results}
        results.records = record_and_flush({name: root / name for name in names})
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    @as_os_errors()
    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        for part in results:
            assert isinstance(part, _Results)
            for name, record in part.records.items():
                note_record(Path(self.path) / name, record)


# ---- reading ----


class _Reader(FileSystemReader):
    """Reads metadata without executing anything."""

    def __init__(self, folder: StrPath) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self) -> Metadata:  # torch looks which arguments it takes
        metadata = read_metadata(self._folder)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        return metadata


class _Planner(DefaultLoadPlanner):
    """Reads what is no tensor without executing anything; the default one unpickles it."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        put_at(self.original_state_dict, tuple(self.mappings[name]), load_bytes(value, Path(name)))


# ---- both ----


@contextlib.contextmanager
def _failures_of_all(verb: str) -> Iterator[None]:
    """Raise what this process ran into, or else tell what another did. torch's own is no `Exception`."""
    try:
        yield
    except CheckpointException as error:
        rank = dist.get_rank() if dist.is_initialized() else 0
        causes = {place: cause for place, (cause, _) in error.failures.items()}
        place, cause = (rank, causes[rank]) if rank in causes else min(causes.items(), key=lambda item: item[0])
        if rank in causes and isinstance(cause, (OSError, CheckpointError)):
            raise cause from None
        told = f"process {place} could not {verb} its shards"
        if isinstance(cause, OSError):
            raise OSError(cause.errno, f"{told}: {cause.strerror or cause}", cause.filename) from None
        raise CheckpointError(f"{told}: {cause if isinstance(cause, CheckpointError) else repr(cause)}") from cause


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warning that there is no process group, where one process is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
