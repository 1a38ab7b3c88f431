"""A run begun with one library and continued with the other ends as the uninterrupted one: losses, metrics and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import data, models
from tests.helpers.sides import REFERENCE, SUBJECT, Side

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about going from one library to the other"),
]

EXACT = Side("compat 5", "mainspring", {"compat": "5"})
DEFAULT = Side("defaults", "mainspring")

TIMES = ("runtime", "per_second", "wait_fraction")
MODELS: dict[str, tuple[Callable[[], Any], Callable[[int, int], list[Any]], Any, int]] = {
    "language model": (lambda: models.tiny_gpt2(dropout=0.1), data.ragged_text, data.collate_text, 2),
    "classifier": (lambda: models.tiny_bert(dropout=0.1), data.sentences, None, 1),
    "plain": (lambda: models.Regressor(dropout=0.1), data.points, None, 2),
}
"""Model, rows, collator, and micro-batches per update."""

# Our own defaults make other numbers by design where labels are counted, and where a classifier accumulates.
RUNS = [(EXACT, name) for name in MODELS] + [(DEFAULT, "classifier"), (DEFAULT, "plain")]


def train(side: Side, folder: Path, model: str, resume: Path | None = None) -> Any:
    """Three epochs of four updates of eight samples, dropout, a schedule with warm-up, and evaluations.

    Every update is logged, and evaluated before its checkpoint is written: the reference stores neither a loss window
    that is half full nor an evaluation that is still to come.
    """
    make, rows, collate, parts = MODELS[model]
    batches = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts, "num_train_epochs": 3}
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 3}
    events = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    torch.manual_seed(5)
    trainer = side.api.Trainer(
        make(),
        side.arguments(folder, **batches, **schedule, **events),
        train_dataset=data.Items(rows(32, 0)),
        eval_dataset=data.Items(rows(9, 1)),
        data_collator=collate,
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def curve(trainer: Any) -> list[dict[str, Any]]:
    """The log without times, and without the last entry's mean loss: the reference's is of one call of `train` alone."""
    logs = trainer.state.log_history
    own = ("train_loss", *OURS_ALONE)
    return [{k: v for k, v in log.items() if k not in own and not any(t in k for t in TIMES)} for log in logs]


OURS_ALONE = ("nonfinite_steps", "clipped_fraction")
"""What only our logs count."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Side, str], Any]:
    """`begun(side, model)`: an uninterrupted run with a checkpoint of each update."""
    runs: dict[tuple[str, str], Any] = {}

    def run(side: Side, model: str) -> Any:
        key = side.name, model
        if key not in runs:
            runs[key] = train(side, tmp_path_factory.mktemp("begun"), model)
        return runs[key]

    return run


@pytest.mark.parametrize("step", [3, 4, 10], ids=["inside an epoch", "at an epoch's end", "inside the last epoch"])
@pytest.mark.parametrize(("own", "model"), RUNS, ids=str)
@pytest.mark.parametrize("begins", ["the reference begins", "ours begins"])
def test_the_run_goes_on(
    begins: str, own: Side, model: str, step: int, begun: Callable[[Side, str], Any], tmp_path: Path
) -> None:
    writer, reader = (REFERENCE, own) if begins == "the reference begins" else (own, REFERENCE)
    whole = begun(writer, model)
    resumed = train(reader, tmp_path, model, resume=Path(whole.args.output_dir) / f"checkpoint-{step}")
    assert resumed.state.global_step == 12
    for ours, theirs in zip(curve(resumed), curve(whole), strict=True):
        # By default an evaluation's mean is taken in double precision: it differs in its last digits.
        assert ours == (pytest.approx(theirs, rel=1e-6) if "eval_loss" in theirs else theirs)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
