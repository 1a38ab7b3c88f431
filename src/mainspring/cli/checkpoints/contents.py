"""What is in a checkpoint, by name: each tensor, each number, each text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mainspring.checkpoint import (
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    PROGRESS_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    SHARDED_MODEL_FOLDER,
    SHARDED_OPTIMIZER_FOLDER,
    TRAINER_STATE_NAME,
    load_torch,
)
from mainspring.errors import CheckpointError

Leaves = dict[str, Callable[[], Any]]
"""Each thing by its name, to be read when it is called."""

_WEIGHTS = re.compile(
    r"(?P<stem>model|adapter_model|pytorch_model|pytorch_model_fsdp)(-\d+-of-\d+)?\.(safetensors|bin)"
)
_WHOLE = ("model", "pytorch_model", "pytorch_model_fsdp")
# Endings of what is measured with a clock.
_TIMES = ("runtime", "per_second", "_time", "_seconds", "wait_fraction", "mfu")


def weights(root: Path) -> Leaves:
    """The tensors of the model and of its adapters; of those in folders of their own, with the folder's name."""
    leaves = _of_shards(root / SHARDED_MODEL_FOLDER, "model")
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        files = {path: found["stem"] for path in sorted(folder.iterdir()) if (found := _WEIGHTS.fullmatch(path.name))}
        safe = [path for path in files if path.suffix == ".safetensors"]
        for path in safe or files:
            place = folder.relative_to(root).as_posix()
            before = "" if place == "." else f"{place}: "
            kind = "" if files[path] in _WHOLE else f"{files[path]}: "
            leaves |= {f"{before}{kind}{name}": read for name, read in _tensors(path).items()}
    return leaves


def optimizer(root: Path) -> Leaves:
    """The optimizer's state."""
    name = OPTIMIZER_NAME if (root / OPTIMIZER_NAME).is_file() else OPTIMIZER_NAME_BIN
    return _of_torch(root, name) or _of_shards(root / SHARDED_OPTIMIZER_FOLDER, "optimizer")


def schedule(root: Path) -> Leaves:
    """The schedule's state."""
    return _of_torch(root, SCHEDULER_NAME)


def loss_scale(root: Path) -> Leaves:
    """The state of the loss scaler."""
    return _of_torch(root, SCALER_NAME)


def random_states(root: Path) -> Leaves:
    """The random states of all processes."""
    leaves: Leaves = {}
    for path in sorted(root.glob("rng_state*.pth")):
        leaves |= {f"{path.stem}.{name}": read for name, read in _of_torch(root, path.name).items()}
    return leaves


def trainer_state(root: Path) -> Leaves:
    """What `trainer_state.json` says, without times; of the best checkpoint only the name."""
    content = _json(root / TRAINER_STATE_NAME)
    if isinstance(content.get("best_model_checkpoint"), str):
        content["best_model_checkpoint"] = Path(content["best_model_checkpoint"]).name
    history = content.get("log_history")
    if isinstance(history, list):
        content["log_history"] = [_without_times(one) if isinstance(one, dict) else one for one in history]
    return _flat(content)


def progress(root: Path) -> Leaves:
    """What `progress.json` says: the position in the data, the open loss window."""
    return _flat(_json(root / PROGRESS_NAME))


PARTS: Mapping[str, Callable[[Path], Leaves]] = {
    "weights": weights,
    "optimizer": optimizer,
    "schedule": schedule,
    "loss scale": loss_scale,
    "random states": random_states,
    "trainer state": trainer_state,
    "progress": progress,
}
"""The parts of a checkpoint in the order in which they are compared."""


def _tensors(path: Path) -> Leaves:
    if path.suffix != ".safetensors":
        return _flat(load_torch(path))
    try:
        file: Any = safe_open(path, framework="pt")
        return {name: partial(file.get_tensor, name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} could not be read: {error}") from error


def _of_torch(root: Path, name: str) -> Leaves:
    return _flat(load_torch(root / name)) if (root / name).is_file() else {}


def _of_shards(folder: Path, part: str) -> Leaves:
    if not folder.is_dir():
        return {}
    from mainspring.checkpoint.sharded import shard_readers  # only here, since torch's distributed checkpoints are dear

    return dict(sorted(shard_readers(folder, part).items()))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} could not be read: {error}") from error


def _without_times(log: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in log.items() if not name.endswith(_TIMES)}


def _flat(content: Any) -> Leaves:
    return {name: partial(_same, value) for name, value in _walk(content, "")}


def _walk(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested containers, named by the way to it: `state.0.exp_avg`."""
    if isinstance(content, (dict, list, tuple)) and content:
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from _walk(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


def _same(value: Any) -> Any:
    return value
