"""Which files a checkpoint of DeepSpeed's consists of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.names import DEEPSPEED_LATEST_NAME
from mainspring.checkpoint.pickles import DEEPSPEED_FOLDER, DEEPSPEED_SUFFIXES
from mainspring.errors import CheckpointError

UNIVERSAL_FOLDER = DEEPSPEED_FOLDER
_MODEL_SUFFIX, _OPTIMIZER_SUFFIX = DEEPSPEED_SUFFIXES
_RANK = re.compile(r"(?:(?:bf16|fp16)_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<mp>\d+)(?:_model|_optim)_states\.pt")
_WHOLE_MODEL = re.compile(r"mp_rank_(?P<mp>\d+)_model_states\.pt")
_OTHER_MODEL = re.compile(r"layer_.*|(?:.*_)?expert_.*|expp_rank_.*")


@dataclass(frozen=True)
class Layout:
    """The files of one checkpoint.

    Attributes:
        folder: The one that its tag names.
        models: What each process wrote of the model; one for all where stages below 3 wrote it.
        optimizers: What each process wrote of the optimizer; none without ZeRO.
        universal: The folder of a universal checkpoint's parameters; None: it is none.
    """

    folder: Path
    models: tuple[Path, ...]
    optimizers: tuple[Path, ...]
    universal: Path | None = None


def layout_of(contents: Contents, tag: str | None = None) -> Layout:
    """Find the files.

    Args:
        contents: The folder that holds the file `latest`.
        tag: Which of the folders beside it; None: the one that it names.

    Raises:
        CheckpointError: There are none, or they are of a model that was divided otherwise than ZeRO divides.
    """
    inner = inner_folder(contents, tag)
    names = _files(inner)
    _refuse_other_forms(inner.root, names)
    models = _in_order(inner.root, (one for one in names if one.endswith(_MODEL_SUFFIX)))
    optimizers = _in_order(inner.root, (one for one in names if one.endswith(_OPTIMIZER_SUFFIX)))
    universal = inner.root / UNIVERSAL_FOLDER
    if not models:
        raise CheckpointError(f"{inner.root} holds no checkpoint of DeepSpeed's: there is no *{_MODEL_SUFFIX}")
    return Layout(inner.root, models, optimizers, universal if universal.is_dir() else None)


def inner_folder(contents: Contents, tag: str | None = None) -> Contents:
    """The folder with the files.

    Args:
        contents: The folder that holds the file `latest`.
        tag: Which of the folders beside it; None: the one that it names.

    Raises:
        CheckpointError: There is none.
    """
    name = _tag(contents) if tag is None else tag
    if not name or Path(name).name != name or name in (".", ".."):
        said = f"{name!r}, in its file {DEEPSPEED_LATEST_NAME!r}," if tag is None else repr(name)
        raise CheckpointError(f"{said} is not the name of a folder in {contents.root}")
    inner = contents.below(name)
    if not inner.root.is_dir():
        raise CheckpointError(f"{inner.root} does not exist")
    return inner


def _tag(contents: Contents) -> str:
    latest = contents.file(DEEPSPEED_LATEST_NAME)
    if latest is None:
        raise CheckpointError(
            f"{contents.root} has no file {DEEPSPEED_LATEST_NAME!r}, which names the folder with the weights"
        )
    try:
        return latest.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{latest} is damaged: {error}") from error


def _files(inner: Contents) -> list[str]:
    return sorted(path.name for path in inner.root.iterdir() if inner.file(path.name) is not None)


def _refuse_other_forms(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        found = _RANK.fullmatch(name) or _WHOLE_MODEL.fullmatch(name)
        if _OTHER_MODEL.fullmatch(name):
            raise CheckpointError(
                f"{folder / name} is of a model in stages of a pipeline, or of experts: only what ZeRO divides can be joined "
                f"here"
            )
        if found and int(found["mp"]):
            raise CheckpointError(
                f"{folder / name} is of a model whose tensors are divided (tensor parallel): only what ZeRO divides can be "
                f"joined here; DeepSpeed's ds_to_universal joins it"
            )


def _in_order(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Sort by the process that wrote them, and see to it that none is missing between."""
    ranks: dict[int, str] = {}
    for name in names:
        found = _RANK.fullmatch(name)
        if found is None and not _WHOLE_MODEL.fullmatch(name):
            raise CheckpointError(f"{folder / name} has no name that DeepSpeed gives")
        rank = int(found["rank"]) if found else 0
        if rank in ranks:
            raise CheckpointError(f"{folder} holds files of two checkpoints: {ranks[rank]} and {name}")
        ranks[rank] = name
    lacking = sorted(set(range(len(ranks))) - ranks.keys())
    if lacking:
        raise CheckpointError(f"{folder} lacks what process {lacking[0]} wrote, beside {ranks[max(ranks)]}")
    return tuple(folder / ranks[rank] for rank in sorted(ranks))
