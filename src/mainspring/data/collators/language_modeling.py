"""Texts for language models: what is to be predicted is made of the texts themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mainspring.data.collators.base import DataCollatorMixin, mappings, not_empty
from mainspring.data.collators.draws import SeededDraws
from mainspring.data.collators.padding import in_framework, padded, padded_rows, padding_side, rounded_up
from mainspring.data.collators.tokens import (
    IGNORED,
    Array,
    has_a_mask_token,
    is_special,
    whole_words,
    words_by_offsets,
)
from mainspring.errors import OptionError, Problem


@dataclass
class DataCollatorForLanguageModeling(DataCollatorMixin):
    """Pad texts and make ``labels`` of them, by masking some tokens or, with ``mlm=False``, as they are.

    Texts are mappings with ``input_ids``, or rows of ids. Masking changes ``input_ids`` where a token was chosen: to the
    mask token, to a random one, or not at all; ``labels`` are -100 elsewhere. Special tokens are never chosen: those that
    a sample's ``special_tokens_mask`` names, or else the tokenizer. Without masking, labels are -100 at padding. Labels
    that samples bring are replaced.

    The masking is that of BERT: J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, 2019, section 3.1,
    https://arxiv.org/abs/1810.04805.

    Args:
        tokenizer: With ``pad``, a length, ``mask_token_id``, ``pad_token_id`` and ``all_special_ids``.
        mlm: Mask tokens.
        whole_word_mask: Choose words, which all samples' ``offset_mapping`` tells: a token that begins where the one
            before it ends belongs to the same word. All of their tokens become mask tokens.
        mlm_probability: Of each token, or word, to be chosen.
        mask_replace_prob: Of a chosen token to become the mask token.
        random_replace_prob: Of a chosen token to become a random one.
        pad_to_multiple_of: Round the length up to a multiple.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
        seed: Draw from generators of the collator's own, see :class:`~mainspring.data.collators.draws.SeededDraws`.

    Attributes:
        generator: What the last batch was drawn from; None for the global generator of torch, or of NumPy.

    Raises:
        OptionError: If a probability cannot be, or the tokenizer has no mask token.
    """

    tokenizer: Any
    mlm: bool = True
    whole_word_mask: bool = False
    mlm_probability: float | None = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    seed: int | None = None
    generator: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._draws = SeededDraws()
        problems = self._problems()
        if problems:
            raise OptionError(problems)
        if self.whole_word_mask and self.mask_replace_prob < 1:
            warnings.warn(
                "whole_word_mask=True makes every token of a chosen word the mask token: mask_replace_prob is 1 and "
                "random_replace_prob is 0; pass these values to be rid of this warning",
                stacklevel=3,
            )
            self.mask_replace_prob, self.random_replace_prob = 1.0, 0.0

    def _problems(self) -> list[Problem]:
        if not self.mlm:
            why, fix = "words are chosen for masking only", "set mlm=True"
            return [Problem("whole_word_mask", True, why, fix)] if self.whole_word_mask else []
        problems = [] if has_a_mask_token(self.tokenizer) else [_no_mask_token(self)]
        for name in ("mlm_probability", "mask_replace_prob", "random_replace_prob"):
            value = getattr(self, name)
            if value is None or not 0 <= value <= 1:
                problems.append(Problem(name, value, "a probability is a number from 0 to 1", "change it"))
        if not problems and self.mask_replace_prob + self.random_replace_prob > 1:
            why = f"with mask_replace_prob={self.mask_replace_prob} it makes more than 1"
            problems.append(Problem("random_replace_prob", self.random_replace_prob, why, "lower one of them"))
        return problems

    def torch_call(self, examples: list[Any]) -> Any:
        """A batch of torch tensors."""
        return self._batch(examples, "pt")

    def numpy_call(self, examples: list[Any]) -> Any:
        """A batch of NumPy arrays."""
        return self._batch(examples, "np")

    def _batch(self, examples: list[Any], framework: str) -> Any:
        self.generator = None if self.seed is None else self._draws.generator(self.seed, framework)
        batch, offsets = self._padded(examples, framework)
        special = batch.pop("special_tokens_mask", None)
        if self.mlm:
            mask_tokens: Callable[..., Any] = self.numpy_mask_tokens if framework == "np" else self.torch_mask_tokens
            batch["input_ids"], batch["labels"] = mask_tokens(batch["input_ids"], special, offsets)
        else:
            batch["labels"] = _without_padding(batch["input_ids"], self.tokenizer)
        return batch

    def _padded(self, examples: list[Any], framework: str) -> tuple[Any, Array | None]:
        """The padded texts, and where their tokens stand in the text if that is needed."""
        name = type(self).__name__
        if self.whole_word_mask:
            _refuse_without_offsets(examples, name)
        if not isinstance(not_empty(examples, name)[0], Mapping):
            ids = padded_ids(examples, self.tokenizer, name, self.pad_to_multiple_of)
            return {"input_ids": in_framework(ids, framework)}, None
        samples = mappings(examples, name, "input_ids")
        texts = [{key: value for key, value in sample.items() if key != "offset_mapping"} for sample in samples]
        batch = padded(self.tokenizer, texts, framework, pad_to_multiple_of=self.pad_to_multiple_of)
        if not self.whole_word_mask:
            return batch, None
        length = batch["input_ids"].shape[1]
        return batch, _padded_offsets(samples, length, padding_side(self.tokenizer))

    def torch_mask_tokens(
        self, inputs: torch.Tensor, special_tokens_mask: Any = None, offset_mapping: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask a batch.

        Args:
            inputs: Ids, of shape (samples, tokens).
            special_tokens_mask: Which are not to be masked; the tokenizer says it if None.
            offset_mapping: Of shape (samples, tokens, 2): where tokens begin and end in the text; for whole words.

        Returns:
            The masked ids, and the labels.
        """
        inputs = inputs.long()
        never, words = self._never_chosen(inputs.numpy(), special_tokens_mask, offset_mapping)
        probability = torch.full(inputs.shape, self._share()).masked_fill_(torch.from_numpy(never), 0.0)
        chosen = torch.bernoulli(probability, generator=self.generator).bool()
        if words is not None:
            chosen = torch.from_numpy(whole_words(words, chosen.numpy()))
        return self.torch_replaced(inputs, chosen)

    def torch_replaced(self, inputs: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace chosen tokens.

        Args:
            inputs: Ids, of shape (samples, tokens); left as they are.
            chosen: Which ones, of the same shape.

        Returns:
            The masked ids, and the labels.
        """
        labels = inputs.masked_fill(~chosen, IGNORED)
        masked = self._coin(inputs.shape, self.mask_replace_prob) & chosen
        replaced = inputs.masked_fill(masked, self.tokenizer.mask_token_id)
        if self._replaces_at_random():
            randomly = self._coin(inputs.shape, self._random_share()) & chosen & ~masked
            words = torch.randint(len(self.tokenizer), inputs.shape, dtype=torch.long, generator=self.generator)
            replaced = torch.where(randomly, words, replaced)
        return replaced, labels

    def _share(self) -> float:
        assert self.mlm_probability is not None  # checked where texts are masked
        return float(self.mlm_probability)

    def _coin(self, shape: torch.Size, probability: float) -> torch.Tensor:
        return torch.bernoulli(torch.full(shape, float(probability)), generator=self.generator).bool()

    def numpy_mask_tokens(
        self, inputs: Array, special_tokens_mask: Any = None, offset_mapping: Any = None
    ) -> tuple[Array, Array]:
        """As :meth:`torch_mask_tokens`, of arrays."""
        never, words = self._never_chosen(inputs, special_tokens_mask, offset_mapping)
        probability = np.where(never, 0.0, self._share())
        chosen = self._numpy_draws().binomial(1, probability, size=inputs.shape).astype(bool)
        return self.numpy_replaced(inputs, chosen if words is None else whole_words(words, chosen))

    def numpy_replaced(self, inputs: Array, chosen: Array) -> tuple[Array, Array]:
        """As :meth:`torch_replaced`, of arrays."""
        draws = self._numpy_draws()
        masked = draws.binomial(1, self.mask_replace_prob, size=inputs.shape).astype(bool) & chosen
        replaced = np.where(masked, self.tokenizer.mask_token_id, inputs)
        if self._replaces_at_random():
            randomly = draws.binomial(1, self._random_share(), size=inputs.shape).astype(bool) & chosen & ~masked
            integers = draws.randint if self.generator is None else draws.integers
            replaced[randomly] = integers(low=0, high=len(self.tokenizer), size=randomly.sum(), dtype=np.int64)
        return replaced, np.where(chosen, inputs, IGNORED)

    def _numpy_draws(self) -> Any:
        return np.random if self.generator is None else self.generator

    def _replaces_at_random(self) -> bool:
        return self.random_replace_prob > 0

    def _random_share(self) -> float:
        """Of the chosen tokens that do not become the mask token."""
        return self.random_replace_prob / (1 - self.mask_replace_prob)

    def _never_chosen(self, ids: Array, special: Any, offsets: Any) -> tuple[Array, Array | None]:
        """Which tokens are not drawn for, and with whole words the number of each token's word."""
        never = is_special(self.tokenizer, ids) if special is None else np.asarray(special).astype(bool)
        if not self.whole_word_mask:
            return never, None
        if offsets is None:
            raise ValueError(f"{type(self).__name__}: whole_word_mask=True needs the offset_mapping of the tokens")
        words, first = words_by_offsets(np.asarray(offsets), never)
        return never | ~first, words


def _no_mask_token(collator: DataCollatorForLanguageModeling) -> Problem:
    kind = type(collator.tokenizer).__name__
    return Problem("mlm", True, f"{kind} has no mask token", "add one, or set mlm=False for a causal language model")


def padded_ids(rows: Sequence[Any], tokenizer: Any, collator: str, multiple: int | None = None) -> Array:
    """Rows of ids as one array.

    Args:
        rows: Lists, arrays or tensors of ids.
        tokenizer: Says with what, and on which side, is padded.
        collator: Its name, for the message.
        multiple: Round the length up to a multiple.

    Raises:
        ValueError: If padding is needed and the tokenizer has no padding token.
    """
    ids = [np.asarray(row).astype(np.int64) for row in rows]
    longest = max(map(len, ids))
    length = rounded_up(longest, multiple)
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None and any(len(row) < length for row in ids):
        kind = type(tokenizer).__name__
        raise ValueError(f"{collator} has to pad, but {kind} has no padding token; set its pad_token")
    return padded_rows(ids, 0 if padding is None else padding, length, padding_side(tokenizer))


def _without_padding(ids: Any, tokenizer: Any) -> Any:
    labels = ids.copy() if isinstance(ids, np.ndarray) else ids.clone()
    if tokenizer.pad_token_id is not None:
        labels[labels == tokenizer.pad_token_id] = IGNORED
    return labels


def _refuse_without_offsets(examples: Sequence[Any], collator: str) -> None:
    for number, sample in enumerate(examples):
        if not isinstance(sample, Mapping) or "offset_mapping" not in sample:
            raise ValueError(
                f"{collator}: sample {number} of the batch has no 'offset_mapping', which whole_word_mask=True needs: "
                "tokenize with return_offsets_mapping=True, and set remove_unused_columns=False for the Trainer"
            )


def _padded_offsets(samples: Sequence[Mapping[str, Any]], length: int, side: str) -> Array:
    """The samples' ``offset_mapping``, of shape (samples, tokens, 2); 0 at padding."""
    rows = [np.asarray(sample["offset_mapping"], dtype=np.int64).reshape(-1, 2) for sample in samples]
    parts = [padded_rows([row[:, end] for row in rows], 0, length, side) for end in range(2)]
    return np.stack(parts, axis=-1)
