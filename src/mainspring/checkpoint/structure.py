"""Why a folder is not a checkpoint that can be resumed from: headers and directories are read, not the data."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mainspring.checkpoint.names import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    PROGRESS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_JSON,
    TRAINING_ARGS_NAME,
    WEIGHTS_INDEX_NAME,
)

_JSON_FILES = (TRAINER_STATE_NAME, PROGRESS_NAME, TRAINING_ARGS_JSON, CONFIG_NAME, ADAPTER_CONFIG_NAME)
_INDEX_FILES = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
# How a file of torch's older, non-zip format begins: its magic number, pickled. Such a file has no directory to check.
_LEGACY_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


def check_structure(folder: str | os.PathLike[str]) -> list[str]:
    """Look for damage that shows without reading a checkpoint's data.

    Args:
        folder: A checkpoint directory, written here or by the reference.

    Returns:
        One sentence per reason why it cannot be resumed from; empty when none was found. Bytes flipped inside a tensor do
        not show here.
    """
    root = Path(folder)
    if not root.is_dir():
        return [f"{root} is not a directory" if root.exists() else f"{root} does not exist"]
    reasons = []
    if not (root / TRAINER_STATE_NAME).is_file():
        reasons.append(f"{TRAINER_STATE_NAME} is missing")
    for path in _files_of(root):
        reasons += [f"{path.relative_to(root)} {why}" for why in _damage(path)]
    return reasons


def _files_of(root: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint and of its adapters, which have sub-folders of their own."""
    for path in sorted(root.iterdir()):
        if path.is_file():
            yield path
        elif path.is_dir() and (path / ADAPTER_CONFIG_NAME).is_file():
            yield from (inner for inner in sorted(path.iterdir()) if inner.is_file())


def _damage(path: Path) -> list[str]:
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
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"is not valid JSON: {error}"]
    return []


def _index_damage(path: Path) -> list[str]:
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"is not an index of weights: {error!r}"]
    return [f"names {shard}, which is missing" for shard in sorted(shards) if not (path.parent / shard).is_file()]


def _safetensors_damage(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt"):  # compares the header's sizes with the file's
            return []
    except (OSError, SafetensorError) as error:
        return [f"is damaged: {error}"]


def _torch_damage(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            if file.read(len(_LEGACY_TORCH_START)) == _LEGACY_TORCH_START:
                return []
        with zipfile.ZipFile(path):  # reads the directory, which stands at the end: a cut-off file has none
            return []
    except (OSError, zipfile.BadZipFile) as error:
        return [f"is damaged: {error}"]
