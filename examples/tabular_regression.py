"""Train a plain `torch.nn.Module` on a table: how far will a patient's diabetes have gone in a year?

    python examples/tabular_regression.py --output_dir runs/diabetes --do_train --do_eval --do_predict

The 442 patients with ten measurements each come with scikit-learn; nothing is downloaded, and transformers is not
needed: a module serves that returns its loss under "loss" when it is given labels.

It takes the options of `TrainingArguments`; those that this task needs have defaults of their own (`Arguments`). Options
may also stand in a JSON or YAML file that is the only argument. Stop it and run the same command again: it goes on
where it stopped. `--do_predict` writes what the model says of the patients of the test (`predictions.txt`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]
from torch import Tensor, nn

from mainspring import EvalPrediction, HfArgumentParser, Trainer, TrainingArguments, set_seed
from mainspring.trainer_utils import get_last_checkpoint

PARTS = {"test": slice(0, 88), "validation": slice(88, 132), "train": slice(132, None)}
Example = dict[str, Tensor]


@dataclass
class Data:
    """What is learned from, and by what."""

    hidden_size: int = field(default=64, metadata={"help": "Width of the two hidden layers."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Begin anew in a folder that is not empty."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many patients only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many patients only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use so many patients only."})


@dataclass
class Arguments(TrainingArguments):
    """The trainer's options, with defaults for this task."""

    num_train_epochs: float = 30
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    logging_steps: float = 20
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2


class Network(nn.Module):
    """Two hidden layers; a patient's measurements in, one number out."""

    def __init__(self, measurements: int, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(measurements, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1),
        )

    def forward(self, measurements: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        predicted = self.layers(measurements).squeeze(-1)
        if labels is None:
            return {"predicted": predicted}
        return {"loss": nn.functional.mse_loss(predicted, labels), "predicted": predicted}


def read_options() -> tuple[Data, Arguments]:
    """From the command line, or from the one JSON or YAML file that it names."""
    parser = HfArgumentParser((Data, Arguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        data, args = parser.parse_json_file(sys.argv[1])
    elif len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml")):
        data, args = parser.parse_yaml_file(sys.argv[1])
    else:
        data, args = parser.parse_args_into_dataclasses()
    if not (args.do_train or args.do_eval or args.do_predict):
        sys.exit("Nothing to do: add --do_train, --do_eval or --do_predict.")
    return data, args


def checkpoint_to_resume(args: Arguments, overwrite: bool) -> Any:
    """The newest checkpoint of the folder; a folder of something else is not written into unless asked to."""
    folder = args.output_dir
    if args.resume_from_checkpoint or overwrite or not args.do_train:
        return args.resume_from_checkpoint
    if not os.path.isdir(folder) or not os.listdir(folder):
        return None
    last = get_last_checkpoint(folder)
    if last is None:
        sys.exit(f"{folder} is not empty and holds no checkpoint: choose another, or add --overwrite_output_dir.")
    print(f"Going on from {last}.")
    return last


def read() -> dict[str, list[Example]]:
    """The patients in three parts, dealt in an order that is the same everywhere; numbers in the training part's units."""
    measured, progress = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(measured))
    x, y = measured[order], progress[order]
    x = (x - x[PARTS["train"]].mean(0)) / x[PARTS["train"]].std(0)
    y = (y - y[PARTS["train"]].mean()) / y[PARTS["train"]].std()
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    examples = [{"measurements": row, "labels": number} for row, number in zip(x, y, strict=True)]
    return {name: examples[part] for name, part in PARTS.items()}


def r2(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the variance that is explained: 1 is perfect, 0 is what the mean alone would give."""
    truth = prediction.label_ids
    return {"r2": float(1 - ((prediction.predictions - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())}


def main() -> None:
    data, args = read_options()
    last = checkpoint_to_resume(args, data.overwrite_output_dir)
    parts = read()
    test = parts["test"][: data.max_predict_samples]

    set_seed(args.seed)  # the model's first weights
    model = Network(len(parts["train"][0]["measurements"]), data.hidden_size)
    if not args.do_train:
        model.load_state_dict(load_file(Path(args.output_dir, "model.safetensors")))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=parts["train"][: data.max_train_samples],
        eval_dataset=parts["validation"][: data.max_eval_samples],
        compute_metrics=r2,
    )
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=last)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            print(f"\nShare of the variance explained, for validation: {metrics['eval_r2']:.3f}")
    if args.do_predict:
        predicted = trainer.predict(test, metric_key_prefix="predict")
        trainer.log_metrics("predict", predicted.metrics)
        trainer.save_metrics("predict", predicted.metrics)
        if trainer.is_world_process_zero():
            pairs = zip(predicted.predictions, predicted.label_ids, strict=True)
            lines = [f"{guess:.3f}\t{truth:.3f}" for guess, truth in pairs]
            Path(args.output_dir, "predictions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"\nShare of the variance explained, {len(test)} patients: {predicted.metrics['predict_r2']:.3f}")


if __name__ == "__main__":
    main()
