"""Generating text while evaluating: where it starts, how long it may get, and what becomes of it.

Nothing here knows a trainer. Batches are mappings of tensors of shape (rows, ...); a text is a row of token ids.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mainspring.errors import MissingPackageError, OptionError, Problem
from mainspring.metrics import find_batch_size
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

IGNORED = -100
"""The label that losses pass over."""

DEFAULT_NEW_TOKENS = 20
"""Where `generate` stops if nobody says otherwise. It is said to it, so that the texts of all batches get one width."""

_TARGETS = ("decoder_input_ids", "decoder_attention_mask")


# --- the configuration -----------------------------------------------------------------------------------------------


def load_generation_config(source: Any) -> Any:
    """The generation configuration that `source` stands for, checked.

    Args:
        source: A `GenerationConfig` (which is copied), a mapping of its settings, the path of a JSON file or of a
            folder with `generation_config.json`, or the name of a model on the hub.

    Raises:
        OptionError: There is no such configuration, or its settings contradict each other.
    """
    try:
        from transformers import GenerationConfig
    except ImportError as error:
        raise MissingPackageError("generation_config needs the package transformers: install it") from error

    if isinstance(source, GenerationConfig):
        config = copy.deepcopy(source)
    elif isinstance(source, Mapping):
        config = GenerationConfig.from_dict(dict(source))
    elif isinstance(source, (str, os.PathLike)):
        config = _read(os.fspath(source), GenerationConfig)
    else:
        raise _refused(source, f"is a {type(source).__name__}", "give a GenerationConfig, a file or a folder")
    _check(config, source)
    return config


def take_special_tokens(config: Any, former: Any) -> None:
    """Let `config` have the special tokens that it leaves open from the configuration which it takes the place of.

    Without an end, texts would never stop; without a start, they could not begin.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        if getattr(config, name, None) is None and getattr(former, name, None) is not None:
            setattr(config, name, getattr(former, name))


def _read(path: str, kind: Any) -> Any:
    try:
        if os.path.isdir(path):
            return kind.from_pretrained(path)
        if os.path.isfile(path):
            return kind.from_pretrained(*os.path.split(os.path.abspath(path)))
    except (OSError, ValueError) as error:
        raise _refused(
            path, f"cannot be read ({_first_line(error)})", "give a file that GenerationConfig saved"
        ) from error
    if os.path.isabs(path) or path.startswith((".", "~")) or path.endswith(".json") or path.count("/") > 1:
        raise _refused(path, "there is no such file or folder", "give the path of one")
    return _from_hub(path, kind)


def _from_hub(name: str, kind: Any) -> Any:
    """The configuration of a model of the hub: from the cache, else downloaded, and said so."""
    try:
        return kind.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        logger.debug("%s is not in the cache of the hub", name)
    if _is_offline():
        why = "is neither a file nor a folder, nor a model in the cache, and the hub is not asked (offline mode)"
        raise _refused(name, why, "give a file or a folder")
    logger.warning("generation_config=%r is neither a file nor a folder: asking the hub for it", name)
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = f"is neither a file nor a folder, and the hub gave none ({_first_line(error)})"
        raise _refused(name, why, "give a file or a folder") from error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _check(config: Any, source: Any) -> None:
    """Refuse what the model could not be saved with after hours of training."""
    try:
        config.validate(strict=True)
    except TypeError:  # before transformers 4.50 there was no such argument
        config.validate()
    except ValueError as error:
        problems = [line.removeprefix("- ") for line in str(error).splitlines() if line.startswith("- ")]
        raise _refused(source, f"is invalid: {' '.join(problems) or error}", "correct these settings") from error


def _refused(source: Any, why: str, fix: str) -> OptionError:
    shown = source if isinstance(source, (str, os.PathLike)) else type(source).__name__
    return OptionError([Problem("generation_config", shown, why, fix)])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


# --- lengths ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """How long a text may get.

    Attributes:
        new: Tokens beyond those that it starts with; None where `total` says it.
        total: Tokens with those.
    """

    new: int | None = None
    total: int | None = None

    def width(self, start: int) -> int:
        """The most tokens that a text of `start` given ones can have."""
        if self.new is not None:
            return start + self.new
        return start if self.total is None else self.total


def limit_of(config: Any, gen_kwargs: Mapping[str, Any]) -> Limit:
    """The limit that keywords of `generate` and a generation configuration come to: keywords win, then new tokens."""
    if (new := gen_kwargs.get("max_new_tokens")) is not None:
        return Limit(new=new)
    if (total := gen_kwargs.get("max_length")) is not None:
        return Limit(total=total)
    if (new := getattr(config, "max_new_tokens", None)) is not None:
        return Limit(new=new)
    if (total := getattr(config, "max_length", None)) is not None:
        return Limit(total=total)
    return Limit(new=DEFAULT_NEW_TOKENS)


def with_limit(gen_kwargs: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The keywords with a limit that holds.

    New tokens of the configuration would win over a length in the keywords, and so are unset there.
    """
    asked = dict(gen_kwargs)
    given = [name for name in ("max_new_tokens", "max_length") if asked.get(name) is not None]
    if given == ["max_length"] and getattr(config, "max_new_tokens", None) is not None:
        asked["max_new_tokens"] = None
    limit = limit_of(config, asked)
    return asked if given or limit != Limit(new=DEFAULT_NEW_TOKENS) else {**asked, "max_new_tokens": limit.new}


# --- padding ---------------------------------------------------------------------------------------------------------


def pad_token(processing_class: Any, *configs: Any) -> int:
    """The id that texts are filled up with: the tokenizer's padding, else its end; then the configurations'.

    Args:
        processing_class: A tokenizer, or anything without these tokens.
        configs: Configurations, asked for padding one after the other, then for ends.

    Raises:
        ValueError: Nobody knows such a token.
    """
    questions = [
        *((processing_class, name) for name in ("pad_token_id", "eos_token_id")),
        *((config, name) for name in ("pad_token_id", "eos_token_id") for config in configs),
    ]
    for source, name in questions:
        found = getattr(source, name, None)
        if isinstance(found, (list, tuple)):  # several ends
            found = found[0] if found else None
        if found is not None:
            return int(found)
    raise ValueError(
        "generated texts cannot be padded: set pad_token_id in the model's config, or pass the tokenizer as "
        "processing_class"
    )


def padded(texts: Tensor, width: int, token: int) -> Tensor:
    """`texts` (rows, length) filled up to `width` on the right; longer ones as they are."""
    missing = width - texts.shape[-1]
    return texts if missing <= 0 else torch.nn.functional.pad(texts, (0, missing), value=token)


# --- what generation starts from -------------------------------------------------------------------------------------


def without_targets(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without what gives the answer away: labels, and decoder inputs made of them, which have their shape."""
    shape = getattr(inputs.get("labels"), "shape", None)
    kept = {name: value for name, value in inputs.items() if name != "labels"}
    if shape is not None:
        for name in _TARGETS:
            if getattr(kept.get(name), "shape", None) == shape:
                del kept[name]
    return kept


def prompts_of(inputs: Mapping[str, Any], token: int) -> dict[str, Any]:
    """The batch of a decoder-only model cut down to its prompts, which end at the right edge as generation needs it.

    A causal language model reads prompt and answer as one text, with labels on the answer. Its prompt is what stands
    before the first label, and at least the first token, which no loss asks for. Labels that are not tokens of the text
    are no part of it: all of it is prompt.

    Args:
        inputs: `input_ids` (rows, length); `attention_mask` and `labels` of that shape if any.
        token: The padding id.

    Returns:
        The batch without labels and positions; whatever has the shape of `input_ids` is cut and moved alike.
    """
    ids: Tensor = inputs["input_ids"]
    keep = _read_tokens(inputs, token)
    labels = inputs.get("labels")
    if labels is not None and are_of_text(labels, ids):
        is_first = keep & (keep.cumsum(-1) == 1)
        keep = keep & (((labels != IGNORED) & keep).cumsum(-1).eq(0) | is_first)
    order = keep.long().argsort(dim=-1, stable=True)  # what is kept goes to the right, in its order
    width = max(int(keep.sum(-1).max()), 1)

    def moved(tensor: Tensor) -> Tensor:
        return tensor.gather(-1, order)[:, -width:]

    mask = moved(keep.long())
    prompts = {
        name: moved(value) if isinstance(value, Tensor) and value.shape == ids.shape else value
        for name, value in inputs.items()
        if name not in ("labels", "position_ids")  # positions follow from the mask
    }
    return {**prompts, "input_ids": prompts["input_ids"].masked_fill(mask == 0, token), "attention_mask": mask}


def are_of_text(labels: Tensor, ids: Tensor) -> bool:
    """Whether labels are tokens of the text itself, in their places; those beside it may have its shape by chance."""
    return labels.shape == ids.shape and bool(((labels == ids) | (labels == IGNORED)).all())


def _read_tokens(inputs: Mapping[str, Any], token: int) -> Tensor:
    """Which elements of `input_ids` are text. Without a mask, padding at either end is not."""
    ids: Tensor = inputs["input_ids"]
    mask: Tensor | None = inputs.get("attention_mask")
    if mask is not None and mask.shape == ids.shape:
        return mask.bool()
    text = ids != token
    return (text.cumsum(-1) > 0) & (text.flip(-1).cumsum(-1).flip(-1) > 0)


def without_prompt(texts: Tensor, prompt: Tensor) -> Tensor:
    """What was generated after the prompt; all of it where the model does not repeat the prompt."""
    length = prompt.shape[-1]
    return texts[:, length:] if torch.equal(texts[:, :length], prompt) else texts


def sequences(generated: Any, rows: int) -> Tensor:
    """The texts in what `generate` returned, one per row.

    Raises:
        ValueError: There are several per row.
    """
    texts: Tensor = getattr(generated, "sequences", generated)
    if texts.shape[0] != rows:
        raise ValueError(
            f"generate returned {texts.shape[0]} texts for {rows} rows, and predictions stand beside one label each: "
            "leave num_return_sequences at 1"
        )
    return texts


def can_reuse_encoder(names: Iterable[str], accepted: Iterable[str]) -> bool:
    """Whether a batch of these inputs can be encoded apart from the rest, with forward taking what comes of it."""
    plain = {"input_ids", "attention_mask", "labels", *_TARGETS}
    return "encoder_outputs" in accepted and plain.issuperset(names)


# --- a batch: ours, and the reference's ------------------------------------------------------------------------------


def is_decoder_only(model: Any) -> bool:
    """Whether the model reads prompt and answer as one text."""
    config = getattr(model, "config", None)
    return config is not None and not getattr(config, "is_encoder_decoder", False)


class Exact:
    """Texts that begin at the prompt, are as wide as the keywords allow, and count once."""

    def take_special_tokens(self, config: Any, former: Any) -> None:
        """Complete a configuration that takes the place of `former`."""
        take_special_tokens(config, former)

    def gatherer(self, accelerator: Any, chosen: Callable[..., Any]) -> Callable[..., Any]:
        """What brings the rows of all processes together: what the trainer chose."""
        return chosen

    def counted(self, held: int, full: int) -> int:
        """As how many samples a batch of `held` rows counts, where a full one has `full`."""
        return held

    def has_loss(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether the batch has labels that the model can be held against.

        A decoder's labels stand on its own input; others are texts to compare the generated ones with.
        """
        labels = inputs.get("labels")
        if labels is None:
            return False
        beside = is_decoder_only(model) and "input_ids" in inputs and not are_of_text(labels, inputs["input_ids"])
        return not beside

    def texts(
        self, model: Any, inputs: dict[str, Any], gen_kwargs: dict[str, Any], pad_token: Callable[[], int]
    ) -> tuple[Tensor, int]:
        """The texts that the model generates for a batch, and the width that they are to be filled up to."""
        config = gen_kwargs.get("generation_config") or getattr(model, "generation_config", None)
        if config is not None:
            gen_kwargs = with_limit(gen_kwargs, config)
        limit = limit_of(config, gen_kwargs)
        rows = find_batch_size(inputs) or 0
        if is_decoder_only(model) and "input_ids" in inputs:
            prompts = prompts_of(inputs, pad_token())
            answers = without_prompt(sequences(model.generate(**prompts, **gen_kwargs), rows), prompts["input_ids"])
            return answers, limit.width(start=0)
        start = without_targets(inputs)
        given = start.get("decoder_input_ids")
        texts = sequences(model.generate(**start, **gen_kwargs), rows)
        return texts, limit.width(start=1 if given is None else given.shape[-1])

    def width_of_labels(self, model: Any, labels: Tensor, width: int) -> int:
        """The width that labels beside texts of this `width` are to be filled up to."""
        return width


class AsTheReference:
    """The same questions, answered as the reference does."""

    def take_special_tokens(self, config: Any, former: Any) -> None:
        """A configuration stays as it was given."""

    def gatherer(self, accelerator: Any, chosen: Callable[..., Any]) -> Callable[..., Any]:
        """One that keeps what only fills the last round up."""
        gather: Callable[..., Any] = accelerator.gather
        return gather

    def counted(self, held: int, full: int) -> int:
        """Every batch counts as a full one, the last one too."""
        return full

    def has_loss(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether there are labels."""
        return inputs.get("labels") is not None

    def texts(
        self, model: Any, inputs: dict[str, Any], gen_kwargs: dict[str, Any], pad_token: Callable[[], int]
    ) -> tuple[Tensor, int]:
        """Whatever the model: all that it reads is its prompt, and comes back in the texts."""
        start = without_targets(inputs)
        if "decoder_input_ids" not in inputs and "decoder_attention_mask" in inputs:
            start["decoder_attention_mask"] = inputs["decoder_attention_mask"]
        texts = model.generate(**start, **gen_kwargs)
        return texts, self.width_of_labels(model, texts, 0)

    def width_of_labels(self, model: Any, labels: Tensor, width: int) -> int:
        """What the model's own configuration says, whatever the keywords do; once asked, it holds a maximal length."""
        config = model.generation_config
        if config.max_length is None:
            config.max_length = DEFAULT_NEW_TOKENS
        if labels.shape[-1] < config.max_length:
            return int(config.max_length)
        return 0 if config.max_new_tokens is None else int(config.max_new_tokens) + 1
