"""Texts for models that predict tokens in a random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mainspring.data.collators.base import Batch, DataCollatorMixin, mappings, not_empty
from mainspring.data.collators.language_modeling import padded_ids
from mainspring.data.collators.padding import in_framework
from mainspring.data.collators.tokens import IGNORED, Array, has_a_mask_token, is_special
from mainspring.errors import OptionError, Problem

Draw = Callable[[int, int], int]
"""A random integer from the first number to the second one, both included."""


@dataclass
class DataCollatorForPermutationLanguageModeling(DataCollatorMixin):
    """Hide spans of texts, to be predicted in a random order, as XLNet is trained.

    Text is cut into contexts, in each of which one span of 1 to ``max_span_length`` tokens is hidden, so that the share
    ``plm_probability`` of all tokens is. Special tokens are never hidden. The order is one in which the first and the
    second half of a text are permuted alike; the padded length must be even.

    A batch has ``input_ids`` with the mask token where tokens are hidden, ``labels`` with -100 where they are not,
    ``perm_mask`` of shape (samples, tokens, tokens) with 1 where the first token may not see the second one, and
    ``target_mapping`` of the same shape, in which every token predicts itself. Other entries of samples are left out.

    Z. Yang, Z. Dai, Y. Yang, J. Carbonell, R. Salakhutdinov, Q. V. Le, 2019, https://arxiv.org/abs/1906.08237.

    With ``"np"``, spans may be one token longer and one token further on: the bounds of ``random.randint`` are included,
    and the numbers are drawn so that batches are those of the reference.

    Args:
        tokenizer: With ``mask_token_id``, ``pad_token_id`` and ``all_special_ids``.
        plm_probability: The share of tokens to hide; above 0.
        max_span_length: In tokens.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.

    Raises:
        OptionError: If one of the numbers cannot be.
    """

    tokenizer: Any
    plm_probability: float = 1 / 6
    max_span_length: int = 5
    return_tensors: str = "pt"

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.plm_probability <= 1:
            why = "the share of tokens to hide is above 0 and at most 1"
            problems.append(Problem("plm_probability", self.plm_probability, why, "change it"))
        if self.max_span_length < 1:
            why = "a span has at least one token"
            problems.append(Problem("max_span_length", self.max_span_length, why, "raise it"))
        if problems:
            raise OptionError(problems)

    def torch_call(self, examples: list[Any]) -> Batch:
        """A batch of torch tensors."""
        return self._batch(in_framework(self._ids(examples), "pt"), self.torch_mask_tokens)

    def numpy_call(self, examples: list[Any]) -> Batch:
        """A batch of NumPy arrays."""
        return self._batch(self._ids(examples), self.numpy_mask_tokens)

    def _ids(self, examples: list[Any]) -> Array:
        name = type(self).__name__
        if isinstance(not_empty(examples, name)[0], Mapping):
            examples = [sample["input_ids"] for sample in mappings(examples, name, "input_ids")]
        return padded_ids(examples, self.tokenizer, name)

    def _batch(self, ids: Any, mask_tokens: Callable[[Any], tuple[Any, ...]]) -> Batch:
        names = ("input_ids", "perm_mask", "target_mapping", "labels")
        return dict(zip(names, mask_tokens(ids), strict=True))

    def torch_mask_tokens(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hide spans of a batch of ids of shape (samples, tokens).

        Returns:
            The ids, ``perm_mask``, ``target_mapping`` and the labels.

        Raises:
            ValueError: If there is no mask token, or the number of tokens is odd.
        """
        results = self._masked(inputs.numpy(), _torch_integer, _torch_order)
        return tuple(map(torch.from_numpy, results))

    def numpy_mask_tokens(self, inputs: Array) -> tuple[Array, ...]:
        """As :meth:`torch_mask_tokens`, of arrays."""
        return self._masked(inputs, _python_integer, _numpy_order)

    def _masked(self, ids: Array, integer: Draw, order: Callable[[int], Array]) -> tuple[Array, ...]:
        samples, length = ids.shape
        self._check(length)
        special = is_special(self.tokenizer, ids)
        if self.tokenizer.pad_token_id is not None:
            special |= ids == self.tokenizer.pad_token_id
        hidden = np.stack([self._spans(length, integer) for _ in range(samples)]) & ~special
        orders = np.stack([order(length // 2) for _ in range(samples)])
        places = np.concatenate([orders, orders + length // 2], axis=1)
        # What is neither hidden nor special is seen by all; special tokens come where the order has them.
        places = np.where(hidden | special, places, -1).astype(np.int32)  # compared several times as fast
        unseen = (places[:, :, None] <= places[:, None, :]) & hidden[:, None, :]
        targets = np.broadcast_to(np.eye(length, dtype=np.float32), (samples, length, length)).copy()
        masked = np.where(hidden, self.tokenizer.mask_token_id, ids)
        return masked, unseen.astype(np.float32), targets, np.where(hidden, ids, IGNORED)

    def _check(self, length: int) -> None:
        name = type(self).__name__
        if not has_a_mask_token(self.tokenizer):
            raise ValueError(f"{name}: {type(self.tokenizer).__name__} has no mask token; add one")
        if length % 2:
            raise ValueError(
                f"{name}: the longest text of the batch has {length} tokens; pad or cut texts to an even number, for "
                "both halves to be permuted alike"
            )

    def _spans(self, length: int, integer: Draw) -> Array:
        """Which tokens of one text lie in spans."""
        hidden = np.zeros(length, dtype=bool)
        begin = 0
        while begin < length:
            span = integer(1, self.max_span_length)
            context = int(span / self.plm_probability)
            start = begin + integer(0, context - span)
            hidden[start : start + span] = True
            begin += context
        return hidden


def _torch_integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (1,)))


def _python_integer(low: int, high: int) -> int:
    return random.randint(low, high + 1)


def _torch_order(count: int) -> Array:
    order: Array = torch.randperm(count).numpy()
    return order


def _numpy_order(count: int) -> Array:
    # Pairs, as the reference shuffles: one row of numbers would be shuffled by other draws.
    pairs = np.arange(2 * count).reshape(2, count).T
    np.random.shuffle(pairs)
    order: Array = pairs[:, 0]
    return order
