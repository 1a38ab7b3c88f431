"""A pre-trained model small enough for a test: a tokenizer of the words it will see, and a BERT that has seen none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tiny_encoder(folder: Path, words: Iterable[str]) -> Path:
    """A folder that `from_pretrained` opens."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *dict.fromkeys(words)])}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,  # words far enough apart to be told from each other in a few updates
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return folder
