"""Whether a file of a checkpoint could execute anything if it were unpickled: asked before an engine unpickles it.

What this package reads itself it reads with `load_torch`. Other engines unpickle files of their own (DeepSpeed its states,
torch's distributed checkpoints their metadata), so those are followed opcode by opcode first. Nothing is executed by that,
and whatever refers to anything outside an allow-list is refused.
"""

from __future__ import annotations

import io
import logging
import mmap
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from mainspring.checkpoint.allowed import deepspeed_globals, metadata_globals, torch_globals
from mainspring.checkpoint.names import TRAINING_ARGS_NAME
from mainspring.checkpoint.opcodes import MalformedPickleError, Scan
from mainspring.checkpoint.torch_zip import LEGACY_START, ZIP_START, data_pickle, mentions_pickle
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

METADATA_SUFFIX = ".metadata"
SHARD_SUFFIX = ".distcp"
DEEPSPEED_SUFFIXES = ("_model_states.pt", "_optim_states.pt")
DEEPSPEED_FOLDER = "zero"  # of its universal checkpoints, with the state that is nobody's among folders of parameters
# Names by which somebody unpickles. Such a file is also refused for being no pickle that can be followed.
_PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})
_LEGACY_PICKLES = 5  # that follow each other in a file of torch's older format
# How torch.save writes the names of classes and functions: as the opcode for it, and two lines.
_NAMES = re.compile(rb"c([^\W\d][\w.]*)\n([^\W\d][\w.]*)\n")
_TAR_RECORDS = frozenset({"storages", "tensors", "pickle"})


@dataclass(frozen=True)
class Rules:
    """By what a file is judged.

    Attributes:
        allowed: Names ("collections.OrderedDict") that it may refer to.
        storages: Whether it may refer to torch's storages outside the pickle.
        certain: Whether it will be unpickled for certain, so that it must be well-formed too.
    """

    allowed: Collection[str]
    storages: bool = True
    certain: bool = True


@dataclass(frozen=True)
class Refused:
    """A file that must not be unpickled.

    Attributes:
        name: Its path in the checkpoint, with `/` between folders.
        dangers: What it holds that is not allowed, as from `dangerous_globals`.
    """

    name: str
    dangers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {refusal(self.dangers)}"


def dangerous_globals(path: StrPath, allowed: Collection[str] | None = None) -> list[str]:
    """Follow every pickle in a file, whatever its name, and return what it refers to that is not allowed.

    Args:
        path: A file: a pickle, or one of `torch.save` in any of its formats. In any other there is nothing to find.
        allowed: Names ("collections.OrderedDict") that it may refer to; None: those of its kind, which its name tells.

    Returns:
        Names ("os.system"), and in plain words what has none: calls of what is computed, zip files that can be read in two
        ways, a pickle that cannot be followed. Empty: it executes nothing.
    """
    file = Path(path)
    rules = _rules(file)
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if not size or (file.suffix == ".safetensors" and _is_safetensors(opened, size)):
            return []
        return examine(opened, rules if allowed is None else replace(rules, allowed=allowed))


def dangers_of_own(path: StrPath) -> list[str]:
    """`dangerous_globals` of a file that this process has just written with `torch.save`.

    Following every opcode takes longer than the save where there are thousands of tensors. Such a pickle is no crafted one,
    so it is enough to look for the names in it, and to follow it where one of them is not plainly allowed.
    """
    allowed = torch_globals()
    with Path(path).open("rb") as file:
        try:
            names = _NAMES.findall(data_pickle(file))
        except ValueError as error:
            return [str(error)]
    plain = all(f"{module.decode()}.{name.decode()}" in allowed and module != b"numpy" for module, name in names)
    return [] if plain else dangerous_globals(path, allowed)


def refuse(path: StrPath, allowed: Collection[str] | None = None) -> None:
    """Raise if a file could execute anything when it is unpickled.

    Args:
        path: The file.
        allowed: As in `dangerous_globals`.

    Raises:
        CheckpointError: It could; the message names the file and what it refers to.
    """
    dangers = dangerous_globals(path, allowed)
    if dangers:
        raise CheckpointError(f"{os.fspath(path)} {refusal(dangers)}")


def refusal(dangers: Iterable[str]) -> str:
    """Say in words that follow a file's name why it is refused."""
    return (
        f"was refused, and nothing in it was executed: it holds {', '.join(dangers)}, which is not in the allow-list of a "
        f"checkpoint"
    )


def examine(file: IO[bytes], rules: Rules) -> list[str]:
    """`dangerous_globals` of an open file.

    Args:
        file: The file, or bytes of it; not empty, and read from the beginning.
        rules: What it is judged by.
    """
    file.seek(0)
    start = file.read(len(LEGACY_START))
    if start.startswith(ZIP_START):
        return _in_zip(file, rules)
    if _is_old_tar(file):
        return ["an archive of torch's oldest format"]
    file.seek(0)
    with _mapped(file) as source:
        return _in_pickles(source, rules, alone=start != LEGACY_START)


# ---- forms ----


def _in_zip(file: IO[bytes], rules: Rules) -> list[str]:
    if not (rules.certain or mentions_pickle(file)):
        return []
    try:
        pickled = data_pickle(file)
    except ValueError as error:
        return [str(error)]
    return _in_pickles(io.BytesIO(pickled), replace(rules, certain=True), alone=True)


def _in_pickles(source: Any, rules: Rules, alone: bool) -> list[str]:
    """Follow the pickle, or the pickles behind each other, that a file begins with.

    A text can begin like a pickle, so in a file that nobody is known to unpickle only what would really happen counts.
    """
    announced = source.read(1) == b"\x80"
    source.seek(0)
    scans: list[Scan] = []
    broken = []
    try:
        while len(scans) < _LEGACY_PICKLES and (not scans or _has_more(source)):
            scans.append(Scan(rules.allowed, rules.storages))
            scans[-1].run(source)
    except MalformedPickleError as error:
        broken = [f"a pickle that cannot be followed ({error})"]
    if alone and len(scans) > 1:
        broken = ["something behind its end"]
    dangers = list(dict.fromkeys(danger for scan in scans for danger in scan.dangers))
    if rules.certain:
        return dangers + broken
    return dangers if announced or any(scan.called or scan.finished for scan in scans) else []


def _has_more(source: Any) -> bool:
    here = source.tell()
    more = bool(source.read(1))
    source.seek(here)
    return more


def _is_old_tar(file: IO[bytes]) -> bool:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            return not _TAR_RECORDS.isdisjoint(archive.getnames())
    except (tarfile.TarError, EOFError, ValueError, OSError):
        return False


def _is_safetensors(file: IO[bytes], size: int) -> bool:
    """Whether the header's length and first character are such a file's: nobody reads one of that name otherwise."""
    start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _mapped(file: IO[bytes]) -> Any:
    if isinstance(file, io.BytesIO):
        return nullcontext(file)
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


# ---- folders ----


def scan_folder(folder: StrPath) -> list[Refused]:
    """Look for pickles in every file of a checkpoint and its sub-folders, whatever the names, and judge each.

    `training_args.bin` is left out, because it is never read: it may hold anything, and does where the reference wrote it.

    Args:
        folder: A checkpoint directory, written here or by the reference.

    Returns:
        The files that must not be unpickled; empty when there is none.

    Raises:
        OSError: A file cannot be read.
    """
    root = Path(folder)
    return [
        Refused(file.relative_to(root).as_posix(), tuple(dangers))
        for path in _files(root)
        for file, dangers in _in_file(path)
        if dangers
    ]


def _in_file(path: Path) -> list[tuple[Path, list[str]]]:
    if path.name == TRAINING_ARGS_NAME:
        logger.info("%s is not looked into: it is never read", path)
        return []
    if path.suffix == SHARD_SUFFIX:  # judged with the metadata, which says what is where in it
        return []
    dangers = dangerous_globals(path)
    if dangers or not path.name.endswith(METADATA_SUFFIX):
        return [(path, dangers)]
    from mainspring.checkpoint.shards import dangerous_shards  # needs torch's distributed checkpoints

    return dangerous_shards(path)


def _rules(file: Path) -> Rules:
    if file.name.endswith(METADATA_SUFFIX):
        return Rules(metadata_globals(), storages=False)
    of_deepspeed = file.name.endswith(DEEPSPEED_SUFFIXES) or file.parent.name == DEEPSPEED_FOLDER
    return Rules(deepspeed_globals() if of_deepspeed else torch_globals(), certain=file.suffix in _PICKLED)


def _files(root: Path) -> Iterator[Path]:
    """Yield the regular files below `root`, also those that are reached through symbolic links, as readers reach them."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield from (path for path in (Path(folder, name) for name in sorted(names)) if path.is_file())
