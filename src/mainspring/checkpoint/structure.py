"""Why a folder without a manifest is not a checkpoint that can be resumed from.

That is how the reference writes them. Headers, directories, and what is small are read; large tensors are not.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mainspring.checkpoint.disk import named, tells_nothing
from mainspring.checkpoint.names import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    OPTIMIZER_NAME_BIN,
    PROGRESS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_JSON,
    TRAINING_ARGS_NAME,
    WEIGHTS_INDEX_NAME,
)
from mainspring.checkpoint.torch_zip import LEGACY_START

_JSON_FILES = (TRAINER_STATE_NAME, PROGRESS_NAME, TRAINING_ARGS_JSON, CONFIG_NAME, ADAPTER_CONFIG_NAME)
_INDEX_FILES = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_NO_WEIGHTS = (OPTIMIZER_NAME_BIN, TRAINING_ARGS_NAME)
# Up to which size a record in torch's archives is read whole to compare its checksum.
_SMALL = 1 << 20


def check_structure(folder: str | os.PathLike[str]) -> list[str]:
    """Look for damage that shows without reading a checkpoint's data.

    Args:
        folder: A checkpoint directory, written here or by the reference.

    Returns:
        One sentence per reason why it cannot be resumed from; empty when none was found. Bytes flipped inside a tensor do
        not show here.

    Raises:
        OSError: The system would not read a file, which says nothing of what it holds.
    """
    root = Path(folder)
    if not root.is_dir():
        return [f"{root} is not a directory" if root.exists() else f"{root} does not exist"]
    return _reasons(root)


def _reasons(root: Path) -> list[str]:
    reasons = []
    if not (root / TRAINER_STATE_NAME).is_file():
        reasons.append(f"{TRAINER_STATE_NAME} is missing")
    if not _may_hold_weights(root):
        reasons.append("it holds no weights")
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if any(folder.glob("*.distcp")) and not (folder / ".metadata").is_file():
            reasons.append(f"{folder.name} holds shards, but no .metadata: it was not written to its end")
    for path in _files_of(root):
        reasons += [f"{path.relative_to(root)} {why}" for why in _damage(path)]
    return reasons


def _may_hold_weights(root: Path) -> bool:
    """Whether there is a file of weights, or a folder: sharded and adapters' weights lie in folders of many names."""
    return any(
        path.is_dir() or (path.suffix in (".safetensors", ".bin") and path.name not in _NO_WEIGHTS)
        for path in root.iterdir()
    )


def _files_of(root: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint and of its adapters, which have sub-folders of their own."""
    for path in sorted(root.iterdir()):
        if path.is_file():
            yield path
        elif path.is_dir() and (path / ADAPTER_CONFIG_NAME).is_file():
            yield from (inner for inner in sorted(path.iterdir()) if inner.is_file())


def _damage(path: Path) -> list[str]:
    try:
        with named(path):
            return _damage_of_kind(path)
    except OSError as error:
        if tells_nothing(error):
            raise
        return [f"cannot be read: {error}"]


def _damage_of_kind(path: Path) -> list[str]:
    if path.name in _JSON_FILES:
        return _json_damage(path)
    if path.name in _INDEX_FILES:
        return _index_damage(path)
    if path.suffix == ".safetensors":
        return _safetensors_damage(path)
    if path.suffix in _TORCH_SUFFIXES and path.name != TRAINING_ARGS_NAME:  # never read, so it may be anything
        return _torch_damage(path)
    return []


def _json_damage(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return [f"is not valid JSON: {error}"]
    if not isinstance(content, dict):
        return [f"is not a JSON object, but a {type(content).__name__}"]
    if path.name == TRAINER_STATE_NAME and not isinstance(content.get("global_step"), int):
        return ["has no global_step"]
    return []


def _index_damage(path: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        return [f"names {shard}, which is missing" for shard in shards if not (path.parent / shard).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"is not an index of weights: {error!r}"]


def _safetensors_damage(path: Path) -> list[str]:
    with path.open("rb"):  # safetensors' own errors do not say what the system answered
        pass
    try:
        with safe_open(path, framework="np"):  # compares the header's sizes with the file's; "pt" would import torch
            return []
    except (OSError, SafetensorError) as error:
        return [f"is damaged: {error}"]


def _torch_damage(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            if file.read(len(LEGACY_START)) == LEGACY_START:
                return []  # it has no directory to check
        with zipfile.ZipFile(path) as archive:  # reads the directory, which stands at the end: a cut-off file has none
            for record in archive.infolist():
                _check_record(archive, record)
    except Exception as error:
        if tells_nothing(error):
            raise
        # A damaged archive can provoke nearly any other.
        return [f"is damaged: {error}"]
    return []


def _check_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    with archive.open(record) as content:  # compares the record's own header with the directory
        if record.CRC and record.file_size <= _SMALL:  # torch writes zero where it was told to compute none
            content.read()  # compares the checksum
