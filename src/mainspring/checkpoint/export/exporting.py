"""How an export appears in one step, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.disk import as_os_errors, fsync
from mainspring.checkpoint.export.companions import copy_companions, strangers
from mainspring.checkpoint.export.files import dtype_in, size_in, write_safetensors, write_torch
from mainspring.checkpoint.export.folders import write_adapter, write_model
from mainspring.checkpoint.export.sources import Weights, weights_of
from mainspring.checkpoint.manifest import damage, ours_without_manifest, read_manifest
from mainspring.checkpoint.space import check_space
from mainspring.checkpoint.staging import Stage
from mainspring.errors import CheckpointError

_WRITERS = {".safetensors": write_safetensors, ".bin": write_torch}
DEFAULT_SHARD_SIZE = 5 * 10**9


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        form: What the checkpoint was, in words.
        tensors: How many tensors; tied weights count once.
        size: Bytes of their numbers.
        dtypes: The types of values among them, as in "float32".
        adapter: Whether it is adapters alone, and not the model.
    """

    form: str
    tensors: int
    size: int
    dtypes: tuple[str, ...]
    adapter: bool


@as_os_errors()
def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | None = None,
    tag: str | None = None,
    force: bool = False,
) -> Exported:
    """Write the model in a checkpoint as a folder for `from_pretrained`, or as one file.

    Args:
        checkpoint: A checkpoint of any form: DeepSpeed's, FSDP's, a plain one, or one of adapters.
        out: Where to; parents are made. A name that ends in `.safetensors` or `.bin` is one file.
        dtype: The type of floating-point numbers; None: as they are, and float32 where an optimizer of DeepSpeed's has the
            weights so.
        max_shard_size: Into files of how many bytes a folder's weights are divided; None: 5 GB.
        tag: For DeepSpeed's, which of the folders in it; None: the one that its file `latest` names.
        force: Replace what `out` is, if that is a file or a folder of an export.

    Raises:
        CheckpointError: The checkpoint is damaged, refused, or holds no weights.
        FileExistsError: There is something at `out` already.
        OSError: A file cannot be read or written; nothing is at `out` then, or what was there before.
    """
    source, target = Path(checkpoint), Path(out).absolute()
    is_file = target.suffix in _WRITERS
    _refuse_target(source, target, is_file, force)
    contents = _sound(source)
    found = weights_of(contents, tag)
    kind = dtype or (torch.float32 if any(weights.masters for weights in found) else None)
    exported = _summary(found, kind)
    check_space(target, exported.size)
    if is_file:
        _write_file(target, found, kind)
    else:
        with _in_place_of(target) as stage:
            copy_companions(contents, stage, None if dtype is None else _name(dtype))
            for weights in found:
                if weights.adapter:
                    write_adapter(stage, weights, contents, kind)
                else:
                    write_model(stage, weights, kind, max_shard_size or DEFAULT_SHARD_SIZE)
    return exported


def _summary(found: list[Weights], dtype: torch.dtype | None) -> Exported:
    values = [value for weights in found for value in weights.tensors.values()]
    return Exported(
        form=", ".join(dict.fromkeys(weights.form for weights in found)),
        tensors=len(values),
        size=sum(size_in(value, dtype) for value in values),
        dtypes=tuple(sorted({_name(dtype_in(value, dtype)) for value in values})),
        adapter=found[0].adapter,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- before ----


def _sound(source: Path) -> Contents:
    """The files of a checkpoint that is what was written, as far as that is known."""
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder")
    if read_manifest(source) is not None or ours_without_manifest(source):
        reasons = damage(source)
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise CheckpointError(f"{source} is damaged, and is not exported: {reasons[0]}{more}")
    return Contents.of(source)


def _refuse_target(source: Path, target: Path, is_file: bool, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise FileExistsError(f"{target} exists; --force replaces it")
    if is_file != target.is_file() or target.is_symlink():
        raise FileExistsError(f"{target} is {'no file' if is_file else 'no folder'}: it is not replaced")
    if is_file:
        return
    if source.resolve().is_relative_to(target.resolve()):
        raise FileExistsError(f"{target} holds the checkpoint: it is not replaced")
    if others := strangers(target):
        raise FileExistsError(f"{target} holds more than an export ({others[0]}): it is not replaced")


# ---- writing ----


def _write_file(target: Path, found: list[Weights], dtype: torch.dtype | None) -> None:
    if len(found) > 1:
        raise CheckpointError(f"{len(found)} adapters do not go into one file: name a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.parent / f".{target.name}.{os.getpid()}.partial"
    stage.unlink(missing_ok=True)
    try:
        _WRITERS[target.suffix](stage, found[0].tensors, found[0].aliases, dtype)
        fsync(stage)
        stage.replace(target)
    except BaseException:
        stage.unlink(missing_ok=True)
        raise
    fsync(target.parent)


@contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the target's place when all is written, and else goes."""
    stage = Stage.open(target)
    former = target.parent / f".{target.name}.{os.getpid()}.replaced"
    try:
        yield stage.path
        if replaces := target.exists():
            target.rename(former)
        try:
            stage.commit()
        except BaseException:
            if replaces and not target.exists():
                former.rename(target)
            raise
    except BaseException:
        stage.drop()
        raise
    if replaces:
        shutil.rmtree(former)
