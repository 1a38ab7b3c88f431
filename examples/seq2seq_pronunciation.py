"""Teach a small BART, from scratch, how English words are pronounced: letters in, phonemes out, generated to be measured.

    python examples/prepare_dictionary.py      # once: fetches the dictionary through pip
    python examples/seq2seq_pronunciation.py --output_dir runs/pronunciation --do_train --do_eval --do_predict

It takes the options of `Seq2SeqTrainingArguments`; those that this task needs have defaults of their own (`Arguments`).
Stop it and run the same command again: it goes on where it stopped. `generated_predictions.txt` in the output folder
then holds what the model says of the words of the test set.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from mainspring import (
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)
from mainspring.text_metrics import decoded, of_texts
from mainspring.trainer_utils import get_last_checkpoint

DATA = Path(__file__).resolve().parent / "data" / "dictionary"  # made by prepare_dictionary.py
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
LONGEST = 32  # phonemes with the tokens around them
Entry = dict[str, list[str]]


@dataclass
class Data:
    """What is learned from."""

    data_dir: str = field(default=str(DATA), metadata={"help": "Folder of prepare_dictionary.py."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Begin anew in a folder that is not empty."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many words only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many words only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use so many words only."})


@dataclass
class Arguments(Seq2SeqTrainingArguments):
    """The trainer's options, with defaults for this task."""

    max_steps: int = 1000
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 250
    learning_rate: float = 7e-4
    warmup_steps: float = 100
    logging_steps: float = 50
    save_steps: float = 250
    save_total_limit: int | None = 2
    predict_with_generate: bool = True
    generation_max_length: int | None = LONGEST


def read(folder: str, name: str, limit: int | None) -> list[Entry]:
    file = Path(folder, f"{name}.jsonl")
    if not file.is_file():
        sys.exit(f"{file} is missing: run prepare_dictionary.py first.")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()[:limit]]


def tokenizer_of(entries: list[Entry]) -> PreTrainedTokenizerFast:
    """One token per letter and per phoneme; texts are written with spaces between them."""
    letters = sorted({letter for entry in entries for letter in entry["letters"]})
    phonemes = sorted({phoneme for entry in entries for phoneme in entry["phonemes"]})
    tokens = {token: number for number, token in enumerate([*SPECIAL, *letters, *phonemes])}
    core = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def encode(entries: list[Entry], tokenizer: PreTrainedTokenizerFast) -> list[dict[str, list[int]]]:
    def ids(tokens: list[str]) -> list[int]:
        numbers: list[int] = tokenizer.convert_tokens_to_ids(tokens[: LONGEST - 2])
        return [*numbers, tokenizer.eos_token_id]

    return [{"input_ids": ids(entry["letters"]), "labels": ids(entry["phonemes"])} for entry in entries]


def new_model(tokenizer: PreTrainedTokenizerFast) -> BartForConditionalGeneration:
    """An encoder of three layers and a decoder of two, with 0.9 million parameters."""
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer),
            d_model=128,
            encoder_layers=3,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=512,
            decoder_ffn_dim=512,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=None,
        )
    )


def errors(guess: list[str], truth: list[str]) -> int:
    """Phonemes to insert, delete or replace (Levenshtein distance)."""
    row = list(range(len(truth) + 1))
    for i, said in enumerate(guess, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(truth, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (said != right))
    return row[-1]


def scores(guesses: list[str], truths: list[str]) -> dict[str, float]:
    """Share of wrong phonemes, and of words without any."""
    pairs = [(guess.split(), truth.split()) for guess, truth in zip(guesses, truths, strict=True)]
    wrong = sum(errors(guess, truth) for guess, truth in pairs)
    return {
        "phoneme_error": wrong / sum(len(truth) for _, truth in pairs),
        "word_accuracy": sum(guess == truth for guess, truth in pairs) / len(pairs),
    }


def checkpoint_to_resume(args: Arguments, overwrite: bool) -> Any:
    """The newest checkpoint of the folder; a folder of something else is not written into unless asked to."""
    folder = Path(args.output_dir)
    if (
        args.resume_from_checkpoint
        or overwrite
        or not args.do_train
        or not folder.is_dir()
        or not any(folder.iterdir())
    ):
        return args.resume_from_checkpoint
    last = get_last_checkpoint(args.output_dir)
    if last is None:
        sys.exit(f"{folder} is not empty and holds no checkpoint: choose another, or add --overwrite_output_dir.")
    print(f"Going on from {last}.")
    return last


def main() -> None:
    data, args = HfArgumentParser((Data, Arguments)).parse_args_into_dataclasses()
    last = checkpoint_to_resume(args, data.overwrite_output_dir)
    train = read(data.data_dir, "train", None)
    validation = read(data.data_dir, "validation", data.max_eval_samples)
    test = read(data.data_dir, "test", data.max_predict_samples)
    tokenizer = tokenizer_of(train)

    set_seed(args.seed)  # the model's first weights
    model = new_model(tokenizer) if args.do_train else BartForConditionalGeneration.from_pretrained(args.output_dir)
    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=encode(train[: data.max_train_samples], tokenizer),
        eval_dataset=encode(validation, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=of_texts(tokenizer, scores),
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
    if args.do_predict:
        predicted = trainer.predict(encode(test, tokenizer), metric_key_prefix="predict")
        trainer.log_metrics("predict", predicted.metrics)
        trainer.save_metrics("predict", predicted.metrics)
        if trainer.is_world_process_zero():
            lines = [
                f"{''.join(entry['letters'])}\t{guess}\t{' '.join(entry['phonemes'])}"
                for entry, guess in zip(test, decoded(tokenizer, predicted.predictions), strict=True)
            ]
            Path(args.output_dir, "generated_predictions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print("\n".join(lines[:10]))
            print(f"\nPhoneme error on {len(test)} held-out words: {predicted.metrics['predict_phoneme_error']:.3f}")


if __name__ == "__main__":
    main()
