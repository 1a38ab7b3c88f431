"""The files beside the weights that belong to a model: its configuration, its tokenizer, its own code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.names import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    PROGRESS_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_JSON,
)
from mainspring.errors import CheckpointError

_SUFFIXES = frozenset({".json", ".txt", ".model", ".spm", ".bpe", ".vocab", ".tiktoken", ".jinja", ".py", ".md"})
# A run's own, and what DeepSpeed puts beside its folders.
_NOT_THE_MODELS = frozenset(
    {
        MANIFEST_NAME,
        PROGRESS_NAME,
        TRAINER_STATE_NAME,
        TRAINING_ARGS_JSON,
        ADAPTER_CONFIG_NAME,
        "zero_to_fp32.py",
        "zero_to_torch.py",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
    }
)
_INDEX_SUFFIX = ".index.json"
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors")


def copy_companions(contents: Contents, stage: Path, dtype: str | None) -> None:
    """Copy a model's other files.

    Args:
        contents: The checkpoint.
        stage: Where to.
        dtype: The type of floating-point numbers that the configuration is to name, as in "bfloat16"; None: as it is.
    """
    for folder in (contents, contents.below(_TEMPLATES)):
        inside = folder.root.relative_to(contents.root)
        for path in sorted(folder.root.iterdir()) if folder.root.is_dir() else ():
            if _is_companion(path.name) and path.is_file() and folder.file(path.name) is not None:
                (stage / inside).mkdir(exist_ok=True)
                shutil.copyfile(path, stage / inside / path.name)
    if dtype is not None:
        _name_type(stage / CONFIG_NAME, dtype)


def strangers(folder: Path) -> list[str]:
    """Return what lies in a folder and was not put there by an export."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_strange(path))


def _is_strange(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return False
    own = path.name == ADAPTER_CONFIG_NAME or path.name.endswith(_INDEX_SUFFIX) or _is_companion(path.name)
    return path.is_symlink() or not (own or _WEIGHTS.fullmatch(path.name))


def _is_companion(name: str) -> bool:
    return Path(name).suffix in _SUFFIXES and name not in _NOT_THE_MODELS and not name.endswith(_INDEX_SUFFIX)


def _name_type(config: Path, dtype: str) -> None:
    if not config.is_file():
        return
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{CONFIG_NAME} is not valid JSON: {error}") from error
    key = "torch_dtype" if "torch_dtype" in content else "dtype"
    if key in content:
        content[key] = dtype
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
