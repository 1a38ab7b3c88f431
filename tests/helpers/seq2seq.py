"""Tiny models that generate, and ragged pairs of texts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.helpers.data import IGNORED, Item
from tests.helpers.models import POSITIONS, VOCABULARY, tiny_gpt2

PAD, BEGIN, END = 0, 1, 2


def _endless(model: Any) -> Any:
    """The model, with an end that it rarely chooses: random weights would otherwise repeat or stop at once."""
    model.generation_config.forced_eos_token_id = None
    return model


def tiny_bart(dropout: float = 0.0) -> Any:
    """A BART with random weights."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=2 * POSITIONS,
        dropout=dropout,
        init_std=0.5,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
        decoder_start_token_id=BEGIN,
        forced_eos_token_id=None,
    )
    return _endless(BartForConditionalGeneration(config))


def tiny_t5(dropout: float = 0.0) -> Any:
    """A T5 with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=dropout,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=BEGIN,
    )
    return _endless(T5ForConditionalGeneration(config))


def tiny_decoder() -> Any:
    """A GPT-2 with random weights, wide enough not to repeat one token."""
    model = tiny_gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)
    return _endless(model)


def pairs(count: int, seed: int = 0) -> list[Item]:
    """Sources of 3 to 9 tokens and targets of 2 to 7."""
    generator = torch.Generator().manual_seed(seed)

    def text(shortest: int, longest: int) -> Tensor:
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator)

    return [{"input_ids": text(3, 9), "labels": text(2, 7)} for _ in range(count)]


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def collate_pairs(items: Sequence[Item]) -> dict[str, Tensor]:
    """Sources and targets, each padded to its longest."""
    sources = [torch.as_tensor(item["input_ids"]) for item in items]
    batch = {"input_ids": _padded(sources, PAD), "attention_mask": _padded([torch.ones_like(s) for s in sources], 0)}
    if "labels" in items[0]:
        batch["labels"] = _padded([torch.as_tensor(item["labels"]) for item in items], IGNORED)
    return batch


def collate_joined(items: Sequence[Item]) -> dict[str, Tensor]:
    """Source and target as one text, labelled on the target: how decoder-only models are trained."""
    sources = [torch.as_tensor(item["input_ids"]) for item in items]
    targets = [torch.as_tensor(item["labels"]) for item in items]
    texts = [torch.cat(both) for both in zip(sources, targets, strict=True)]
    labels = [torch.cat([torch.full_like(s, IGNORED), t]) for s, t in zip(sources, targets, strict=True)]
    return {
        "input_ids": _padded(texts, PAD),
        "attention_mask": _padded([torch.ones_like(text) for text in texts], 0),
        "labels": _padded(labels, IGNORED),
    }
