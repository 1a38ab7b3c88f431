"""A script for an elastic job: it resumes from whatever is there, and notes which samples each update was made of.

python -m tests.distributed.worker_elastic FOLDER shrinks|grows      under a launcher; NODE says under which of two
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from mainspring import Trainer, TrainerCallback, TrainingArguments
from tests.faults.runs import Classifier, Noisy, masking

SAMPLES, EPOCHS, BATCH = 48, 2, 4
OPTIONS = {
    "per_device_train_batch_size": BATCH,
    "num_train_epochs": EPOCHS,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "ddp_timeout": 60,
    "use_cpu": True,
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "report_to": "none",
}
ALONE = "training begins, alone"
WORKER_DIES_AT, NODE_DIES_AT = 3, 5
"""Updates: in the first the second node's worker is killed, in the other that node with all that runs on it."""


class Noting(Classifier):
    """Remembers the samples of the update being made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor, sample: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.seen += sample.tolist()
        return super().forward(x, sample, labels)


class Notes(TrainerCallback):
    """A line for each update that this process had a part in, and one for each start."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, **line: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        self.write(began_at=state.global_step, world_size=args.world_size, attempt=attempt)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Noting, **kwargs: Any) -> None:
        self.write(step=state.global_step, epoch=int(state.epoch - 1e-9), samples=model.seen)
        model.seen = []


class Deaths(TrainerCallback):
    """What becomes of the second node."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if os.environ["NODE"] != "1" or args.world_size != 2:
            return
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if attempt == 0 and state.global_step == WORKER_DIES_AT - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if attempt == 1 and state.global_step == NODE_DIES_AT - 1:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class DiesIn(TrainerCallback):
    """The end of this process, once an update is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, notes: Notes, end: TrainerCallback, **options: Any) -> None:
    """Train to the end, or to where a callback ends it."""
    trainer = Trainer(
        Noting(),
        TrainingArguments(str(folder / "run"), **{**OPTIONS, **options}),
        data_collator=masking,
        train_dataset=Noisy(SAMPLES, seed=1),
        callbacks=[notes, end],
    )
    trainer.train(resume_from_checkpoint="auto")
    notes.write(ended_at=trainer.state.global_step, planned=trainer.state.max_steps)


def train_until(folder: Path, step: int | None) -> None:
    """Go on up to an update, which is saved, and die; None: to the end."""
    notes = Notes(folder / f"rank{os.environ['RANK']}.jsonl")
    train(folder, notes, DiesIn(-1 if step is None else step), save_steps=1)


class WaitsForASecond(TrainerCallback):
    """Alone it trains on and on; three updates with a second process end the training."""

    began_at = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began_at = state.global_step
        if args.world_size == 1:
            print(ALONE, flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = args.world_size == 2 and state.global_step == self.began_at + 3


def main(folder: Path, mode: str) -> None:
    """A node of an elastic job, which shrinks or grows."""
    notes = Notes(folder / f"node{os.environ['NODE']}.jsonl")
    if mode == "shrinks":
        train(folder, notes, Deaths())
    else:
        train(folder, notes, WaitsForASecond(), max_steps=1_000_000, save_steps=1_000_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
