"""Write `golden.json`: what version 4.37.2 of the reference gives in each scenario.

It needs an environment of its own, since that version and the current one cannot be installed together:

    python -m venv v437
    v437/bin/pip install torch transformers==4.37.2 accelerate==0.27.2 "numpy<2"
    v437/bin/python -m tests.compat437.make_golden

Run it from the root of the repository.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
import transformers.trainer
from torch.utils.data import IterableDataset, SequentialSampler
from transformers.trainer_callback import PrinterCallback

from tests.compat437 import scenarios

GOLDEN = Path(__file__).parent / "golden.json"

# Since torch 2.6 files are read with weights_only=True, which refuses that version's random states.
_load = torch.load
torch.load = lambda *args, **kwargs: _load(*args, **{"weights_only": False, **kwargs})


class InOrder(transformers.Trainer):
    """That version always shuffles, from torch's global generator; and its printing callback writes to the terminal."""

    def __init__(self, **inputs: Any) -> None:
        super().__init__(**inputs)
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self) -> SequentialSampler | None:
        return None if isinstance(self.train_dataset, IterableDataset) else SequentialSampler(self.train_dataset)


def arguments(folder: Path, **options: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(str(folder), **options)


LIBRARY = scenarios.Library(InOrder, arguments, transformers.EarlyStoppingCallback, transformers.trainer)


class StopAtOnce(transformers.TrainerCallback):
    """Ends a run after its first update: only its plan is wanted."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def plan(count: int, group: int, epochs: float, max_steps: int, folder: Path) -> list[int]:
    options = {"gradient_accumulation_steps": group, "num_train_epochs": epochs, "max_steps": max_steps}
    args = arguments(folder, **scenarios.QUIET, **options)
    data = scenarios.Items(scenarios.rows(count))
    trainer = InOrder(model=scenarios.Net(), args=args, train_dataset=data, callbacks=[StopAtOnce])
    trainer.train()
    return [trainer.state.max_steps, trainer.state.num_train_epochs]


def kept(limit: int, best: int | None, folder: Path) -> list[str]:
    """The checkpoints that rotation leaves, oldest first."""
    scenarios.write_checkpoints(folder)
    args = arguments(folder, **scenarios.QUIET, save_total_limit=limit)
    trainer = InOrder(model=scenarios.Net(), args=args)
    trainer.state.best_model_checkpoint = best and str(folder / f"checkpoint-{best}")
    trainer._rotate_checkpoints(use_mtime=True, output_dir=str(folder))
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def decayed(model: Any, folder: Path) -> list[str]:
    return InOrder(model=model, args=arguments(folder, **scenarios.QUIET)).get_decay_parameter_names(model)


def defaults(folder: Path) -> dict[str, Any]:
    args = arguments(folder, no_cuda=True)
    logging_dir = Path(args.logging_dir)
    return {
        "optim": args.optim.value,
        "run_name": str(Path(args.run_name).relative_to(folder)),
        "hub_private_repo": args.hub_private_repo,
        "report_to": args.report_to,  # nothing is installed there
        "logging_dir": [str(logging_dir.parent.relative_to(folder)), len(logging_dir.name.split("_"))],
    }


def over_two_processes() -> dict[str, Any]:
    """The record of the first process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        subprocess.run([*command, "-m", "tests.compat437.make_golden", folder], check=True)
        return json.loads((Path(folder) / "record.json").read_text())


def be_one_of_two(folder: Path) -> None:
    found = scenarios.run(scenarios.OVER_TWO_PROCESSES, LIBRARY, folder / "run")
    if os.environ["RANK"] == "0":
        (folder / "record.json").write_text(json.dumps(found))
    scenarios.leave()


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        folders = (Path(root) / str(number) for number in itertools.count())
        golden = {
            "made with": {
                "transformers": transformers.__version__,
                "accelerate": accelerate.__version__,
                **scenarios.arithmetic(),
            },
            "runs": {case.name: scenarios.run(case, LIBRARY, next(folders)) for case in scenarios.SCENARIOS},
            "over two processes": over_two_processes(),
            "plans": [plan(*case, next(folders)) for case in scenarios.PLANS],
            "kept": [kept(*case, next(folders)) for case in scenarios.KEPT],
            "decayed": {name: decayed(model, next(folders)) for name, model in scenarios.transformers_models().items()},
            "greater_is_better": {
                name: arguments(next(folders), no_cuda=True, metric_for_best_model=name).greater_is_better
                for name in scenarios.METRICS
            },
            "defaults": defaults(next(folders)),
        }
    GOLDEN.write_text(scenarios.as_text(golden) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        be_one_of_two(Path(sys.argv[1]))
    else:
        main()
