"""Which tokens of a batch are special, and which belong to one word."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

IGNORED = -100
"""The label that losses leave out."""


def has_a_mask_token(tokenizer: Any) -> bool:
    """Whether a tokenizer has a mask token."""
    return getattr(tokenizer, "mask_token_id", None) is not None


def is_special(tokenizer: Any, ids: Array) -> Array:
    """Which ids are special tokens, padding included.

    Args:
        tokenizer: Asked row by row if its class has a rule of its own.
        ids: Of shape (samples, tokens).
    """
    rule = getattr(type(tokenizer), "get_special_tokens_mask", None)
    if rule is None or rule.__module__ == "transformers.tokenization_utils_base":  # by the id alone
        return np.isin(ids, tokenizer.all_special_ids)
    rows = [tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True) for row in ids.tolist()]
    return np.array(rows, dtype=bool)


def words_by_offsets(offsets: Array, special: Array) -> tuple[Array, Array]:
    """The words of tokens whose places in the text are known.

    Args:
        offsets: Where tokens begin and end, of shape (samples, tokens, 2).
        special: Which tokens belong to no word, of shape (samples, tokens).

    Returns:
        The number of each token's word in its sample, from 1, and -1 for special tokens; which tokens are the first of
        their words.
    """
    follows = np.zeros_like(special)
    follows[:, 1:] = (offsets[:, 1:, 0] == offsets[:, :-1, 1]) & ~special[:, :-1]
    first = ~special & ~follows
    return np.where(special, -1, first.cumsum(axis=1)), first


def whole_words(words: Array, chosen: Array) -> Array:
    """The tokens of all words of which a token is chosen.

    Args:
        words: The number of each token's word in its sample, from 1; -1 for tokens of none.
        chosen: Which tokens, of the same shape (samples, tokens).
    """
    samples, length = words.shape
    word_is_chosen = np.zeros((samples, length + 1), dtype=bool)
    rows, places = np.nonzero(chosen & (words > 0))
    word_is_chosen[rows, words[rows, places]] = True
    return np.take_along_axis(word_is_chosen, np.maximum(words, 0), axis=1) & (words > 0)
