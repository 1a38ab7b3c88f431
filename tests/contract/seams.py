"""Run a probe (see `seam_probes`) the way its method is reached, and say what it changed.

One process and several run the same table: `test_seams.py` here, `tests/distributed/test_seams_ddp.py` under torchrun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.contract.seam_probes import Probe
from tests.helpers import data, models
from tests.helpers.sides import Side
from tests.parity.harness import SEED_OF_MODELS, as_plain, seed_all, without_clock
from tests.parity.tasks import mean_error

Outcome = dict[str, Any]
"""What a run left: `weights`, `logs`, `output`, `files`, `columns` the collator saw, `counters` of the state."""


class NotingCollator:
    """Stacks features and labels, and remembers which columns reached it.

    Attributes:
        columns: Names of all columns seen.
    """

    def __init__(self) -> None:
        self.columns: set[str] = set()

    def __call__(self, items: Sequence[data.Item]) -> dict[str, Tensor]:
        """Batch `x` and `labels`; drop what else there is."""
        self.columns |= {name for item in items for name in item}
        x = torch.stack([torch.as_tensor(item["x"]) for item in items])
        return {"x": x, "labels": torch.tensor([item["labels"] for item in items])}


def _rows(count: int, seed: int) -> list[data.Item]:
    return [{**item, "note": index} for index, item in enumerate(data.points(count, seed))]


def _table(rows: list[data.Item]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{**row, "x": row["x"].tolist()} for row in rows])


def _counted_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    loss: Tensor = ((outputs["logits"] - labels) ** 2).sum() / num_items_in_batch
    return loss


def _train(build: Callable[..., Any]) -> tuple[Any, Any]:
    trainer = build()
    return trainer, trainer.train()


def _resume(build: Callable[..., Any]) -> tuple[Any, Any]:
    build(max_steps=2).train()
    trainer = build()
    return trainer, trainer.train(resume_from_checkpoint=True)


def _predict(build: Callable[..., Any]) -> tuple[Any, Any]:
    trainer = build()
    return trainer, trainer.predict(trainer.eval_dataset)


@dataclass(frozen=True)
class Setting:
    """A way to run in which a method is reached.

    Attributes:
        options: Arguments added to the common ones.
        inputs: Builds constructor arguments added to the common ones.
        drive: What the script does.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Any]] = dict
    drive: Callable[[Callable[..., Any]], tuple[Any, Any]] = _train


COMMON = {"num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0}
"""Plain gradient descent without clipping: twice the loss is twice the change of every weight."""

EVALUATE = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "greater_is_better": False}
SAVE = {"save_strategy": "steps", "save_steps": 2}

SETTINGS: Mapping[str, Setting] = {
    "train": Setting(),
    "clip": Setting({"max_grad_norm": 1.0}),
    "counted": Setting(inputs=lambda: {"compute_loss_func": _counted_loss}),
    "decay": Setting({"weight_decay": 0.5}),
    "evaluate": Setting({**EVALUATE}, lambda: {"compute_metrics": mean_error}),
    "predict": Setting(drive=_predict),
    "table": Setting(inputs=lambda: {"train_dataset": _table(_rows(16, 0))}),
    "model_init": Setting(inputs=lambda: {"model": None, "model_init": lambda: models.Regressor(0.1)}),
    "save": Setting(SAVE),
    "resume": Setting({**SAVE, "optim": "adamw_torch", "learning_rate": 1e-2}, drive=_resume),
    "best": Setting({**EVALUATE, **SAVE, "load_best_model_at_end": True}),
}


def run(side: Side, probe: type[Probe] | None, setting: Setting, folder: Path) -> tuple[Outcome, int]:
    """Run `setting` with the probe before the Trainer class, or without one.

    Args:
        side: The library.
        probe: The mixin, or None for the plain Trainer.
        setting: The way to run.
        folder: The output folder, the same on every process.

    Returns:
        The outcome as this process sees it, and how often the probe was called here.
    """
    if probe is not None:
        probe.hits = 0
    base: Any = side.api.Trainer
    trainer_class: Any = base if probe is None else type(f"With{probe.__name__}", (probe, base), {})
    collator = NotingCollator()

    def build(**more: Any) -> Any:
        seed_all(SEED_OF_MODELS)
        common = {
            "model": models.Regressor(0.1),
            "args": side.arguments(folder, **{**COMMON, **setting.options, **more}),
            "train_dataset": data.Items(_rows(16, 0)),
            "eval_dataset": data.Items(_rows(10, 99)),
            "data_collator": collator,
        }
        return trainer_class(**{**common, **setting.inputs()})

    trainer, output = setting.drive(build)
    trainer.accelerator.wait_for_everyone()
    hits = 0 if probe is None else max(probe.hits, trainer_class.hits)
    return _outcome(trainer, output, folder, collator), hits


def _outcome(trainer: Any, output: Any, folder: Path, collator: NotingCollator) -> Outcome:
    counters = ("total_flos", "num_input_tokens_seen", "best_metric", "global_step", "max_steps")
    return {
        "weights": {name: value.detach().clone() for name, value in trainer.model.state_dict().items()},
        "logs": without_clock(trainer.state.log_history),
        "output": without_clock(as_plain(output)),
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
        "columns": sorted(collator.columns),
        "counters": [getattr(trainer.state, name) for name in counters],
    }


def changed(plain: Outcome, probed: Outcome) -> set[str]:
    """The parts of the outcome that differ."""
    return {part for part in plain if not _same(plain[part], probed[part])}


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if hasattr(left, "shape"):
        return bool(left.shape == right.shape and (left == right).all())
    return bool(left == right)
