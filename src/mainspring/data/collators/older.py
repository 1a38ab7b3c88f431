"""Collators that only the older generation of the reference had."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mainspring.data.collators.base import mappings, not_empty
from mainspring.data.collators.draws import shuffled
from mainspring.data.collators.language_modeling import DataCollatorForLanguageModeling
from mainspring.data.collators.padding import padded_rows, padding_side
from mainspring.data.collators.tokens import Array, is_special
from mainspring.errors import Problem

_MOST_PREDICTIONS = 512
"""Tokens masked of one text, at most."""


@dataclass
class DataCollatorForWholeWordMask(DataCollatorForLanguageModeling):
    """Mask whole words, which the vocabulary of a BERT tells: tokens that begin with ``##`` continue a word.

    Words of each text are taken in random order while they fit into its share of ``mlm_probability``. A sample's
    ``chinese_ref`` names places of tokens that continue a word although they do not look like it. For other
    vocabularies there is ``DataCollatorForLanguageModeling(whole_word_mask=True)``.

    Args:
        tokenizer: As for :class:`DataCollatorForLanguageModeling`, and with ``get_vocab``.
        mlm: Always True.
        whole_word_mask: Always False: that finds words by their places in the text.
        mlm_probability: Share of a text's tokens to be chosen.
        mask_replace_prob: Of a chosen token to become the mask token.
        random_replace_prob: Of a chosen token to become a random one.
        pad_to_multiple_of: Round the length up to a multiple.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
        seed: Draw from generators of the collator's own; without, words are shuffled by ``random``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        vocabulary = self.tokenizer.get_vocab()
        self._continues = np.zeros(1 + max(vocabulary.values()), dtype=bool)
        self._continues[[number for token, number in vocabulary.items() if token.startswith("##")]] = True
        self._between = [vocabulary[token] for token in ("[CLS]", "[SEP]") if token in vocabulary]
        if not self._continues.any():
            warnings.warn(
                "no token of the vocabulary begins with '##', so every token is a word: use "
                "DataCollatorForLanguageModeling(whole_word_mask=True) with tokens that have an offset_mapping",
                stacklevel=3,
            )

    def _problems(self) -> list[Problem]:
        problems = super()._problems()
        if not self.mlm:
            problems.append(Problem("mlm", False, "this collator masks words", "use DataCollatorForLanguageModeling"))
        elif self.whole_word_mask:
            fix = "use DataCollatorForLanguageModeling"
            problems.append(Problem("whole_word_mask", True, "here words are told by '##', not by offsets", fix))
        return problems

    def _batch(self, examples: list[Any], framework: str) -> Any:
        self.generator = None if self.seed is None else self._draws.generator(self.seed, framework)
        samples, rows, joined = self._texts(examples)
        batch, _ = self._padded(samples, framework)
        ids = batch["input_ids"]
        special = batch.pop("special_tokens_mask", None)
        never = is_special(self.tokenizer, np.asarray(ids)) if special is None else np.asarray(special).astype(bool)
        masks = [self._chosen_words(row, places) for row, places in zip(rows, joined, strict=True)]
        chosen = padded_rows(masks, 0, ids.shape[1], padding_side(self.tokenizer)).astype(bool) & ~never
        replaced = self.numpy_replaced if framework == "np" else self._torch_replaced
        batch["input_ids"], batch["labels"] = replaced(ids, chosen)
        return batch

    def _torch_replaced(self, ids: Any, chosen: Array) -> tuple[Any, Any]:
        return self.torch_replaced(ids, torch.from_numpy(chosen))

    def _texts(self, examples: list[Any]) -> tuple[list[Any], list[Array], list[Any]]:
        """What is padded; the ids of each sample; the places in it that continue a word without looking like it."""
        name = type(self).__name__
        if not isinstance(not_empty(examples, name)[0], Mapping):
            return examples, [np.asarray(row) for row in examples], [()] * len(examples)
        samples = mappings(examples, name, "input_ids")
        texts = [{key: value for key, value in sample.items() if key != "chinese_ref"} for sample in samples]
        return texts, [np.asarray(text["input_ids"]) for text in texts], [s.get("chinese_ref", ()) for s in samples]

    def _chosen_words(self, ids: Array, joined: Any) -> Array:
        """1 at the tokens of one text's chosen words."""
        continues = self._continues[ids]
        continues[np.intersect1d(joined, np.arange(len(ids))).astype(np.int64)] = True
        places = np.flatnonzero(~np.isin(ids, self._between))
        chosen = np.zeros(len(ids), dtype=np.int64)
        if not len(places):
            return chosen
        begins = ~continues[places]
        begins[0] = True
        words = begins.cumsum() - 1
        limit = min(_MOST_PREDICTIONS, max(1, round(len(ids) * self._share())))
        taken = self._taken(np.bincount(words).tolist(), limit)
        chosen[places[np.isin(words, taken)]] = 1
        return chosen

    def _taken(self, sizes: list[int], limit: int) -> list[int]:
        """Words in random order, without those that would make more than ``limit`` tokens."""
        taken, tokens = [], 0
        for word in self._shuffled(len(sizes)):
            if tokens >= limit:
                break
            if tokens + sizes[word] <= limit:
                taken.append(word)
                tokens += sizes[word]
        return taken

    def _shuffled(self, count: int) -> list[int]:
        if self.generator is not None:
            return shuffled(self.generator, count)
        order = list(range(count))
        random.shuffle(order)
        return order


@dataclass
class DataCollatorForSOP(DataCollatorForLanguageModeling):
    """Mask tokens of two sentences each, whose order is to be told, too.

    Samples are mappings with ``token_type_ids`` and ``sentence_order_label``.
    :class:`DataCollatorForLanguageModeling` makes the same batches of them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        warnings.warn(
            "DataCollatorForSOP is of the older generation: use DataCollatorForLanguageModeling, which keeps "
            "token_type_ids and sentence_order_label",
            FutureWarning,
            stacklevel=3,
        )

    def _batch(self, examples: list[Any], framework: str) -> Any:
        needed = ("input_ids", "token_type_ids", "sentence_order_label")
        mappings(examples, type(self).__name__, *needed)
        return super()._batch(examples, framework)
