"""Teach a small network, from scratch, to read handwritten digits: a vision transformer, or a residual network.

    python examples/image_classification.py --output_dir runs/digits --do_train --do_eval --do_predict
    python examples/image_classification.py --output_dir runs/digits-resnet --do_train --do_eval --do_predict \\
        --model_type resnet --num_train_epochs 10 --learning_rate 2e-3

The 1,797 images of 8 x 8 pixels come with scikit-learn; nothing is downloaded.

It takes the options of `TrainingArguments`; those that this task needs have defaults of their own (`Arguments`). Options
may also stand in a JSON or YAML file that is the only argument. Stop it and run the same command again: it goes on
where it stopped. `--do_predict` writes what the model reads in the images of the test (`predictions.txt`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel, ResNetConfig, ViTConfig

from mainspring import EvalPrediction, HfArgumentParser, Trainer, TrainingArguments, default_data_collator, set_seed
from mainspring.trainer_utils import get_last_checkpoint

PARTS = {"test": slice(0, 360), "validation": slice(360, 500), "train": slice(500, None)}
Example = dict[str, Any]


@dataclass
class Data:
    """What is learned from, and by what."""

    model_type: Literal["vit", "resnet"] = field(default="vit", metadata={"help": "A new network of which kind."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to go on with; default: a new one, or output_dir without --do_train."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Begin anew in a folder that is not empty."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many images only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use so many images only."})


@dataclass
class Arguments(TrainingArguments):
    """The trainer's options, with defaults for this task."""

    num_train_epochs: float = 30
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 128
    learning_rate: float = 1e-3
    logging_steps: float = 50
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2


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
    """The images in three parts, dealt in an order that is the same everywhere."""
    images, numbers = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [{"pixel_values": pixels[i], "labels": int(numbers[i])} for i in order]
    return {name: examples[part] for name, part in PARTS.items()}


def new_config(kind: str) -> PretrainedConfig:
    """A vision transformer of 0.3 million parameters, or a residual network of as many."""
    if kind == "vit":
        return ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=192,
            num_labels=10,
        )
    return ResNetConfig(
        num_channels=1,
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=10,
    )


def load(data: Data, args: Arguments) -> PreTrainedModel:
    source = data.model_name_or_path or (None if args.do_train else args.output_dir)
    if source is not None:
        return AutoModelForImageClassification.from_pretrained(source)
    return AutoModelForImageClassification.from_config(new_config(data.model_type))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    data, args = read_options()
    last = checkpoint_to_resume(args, data.overwrite_output_dir)
    parts = read()
    test = parts["test"][: data.max_predict_samples]

    set_seed(args.seed)  # the model's first weights
    trainer = Trainer(
        model=load(data, args),
        args=args,
        train_dataset=parts["train"][: data.max_train_samples],
        eval_dataset=parts["validation"][: data.max_eval_samples],
        data_collator=default_data_collator,
        compute_metrics=accuracy,
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
            print(f"\nAccuracy on the images for validation: {metrics['eval_accuracy']:.3f}")
    if args.do_predict:
        predicted = trainer.predict(test, metric_key_prefix="predict")
        trainer.log_metrics("predict", predicted.metrics)
        trainer.save_metrics("predict", predicted.metrics)
        if trainer.is_world_process_zero():
            guesses = predicted.predictions.argmax(-1)
            lines = [f"{guess}\t{example['labels']}" for guess, example in zip(guesses, test, strict=True)]
            Path(args.output_dir, "predictions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"\nAccuracy on {len(test)} images of the test: {predicted.metrics['predict_accuracy']:.3f}")


if __name__ == "__main__":
    main()
