"""Models small enough that a whole training run takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 48
POSITIONS = 32
FEATURES = 4


def tiny_gpt2(dropout: float = 0.0, layers: int = 2, width: int = 16) -> Any:
    """A GPT-2 language model with random weights and tied embeddings (takes label counts, shifts labels itself)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config)


def tiny_bert(dropout: float = 0.0, labels: int = 2, layers: int = 2, width: int = 16) -> Any:
    """A BERT sequence classifier with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=labels,
    )
    return BertForSequenceClassification(config)


def word_tokenizer() -> Any:
    """A tokenizer that knows the words "w3", "w4", ... by their number and pads with 0."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, **{f"w{index}": index for index in range(3, VOCABULARY)}}
    core = Tokenizer(WordLevel(words, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")


def loss_and_prediction_tuple(loss: Tensor | None, prediction: Tensor) -> tuple[Tensor, ...]:
    """Outputs in the positional form: `(loss, prediction)`, or `(prediction,)` when there is no loss."""
    return (prediction,) if loss is None else (loss, prediction)


def loss_and_prediction_dict(loss: Tensor | None, prediction: Tensor) -> dict[str, Tensor]:
    """Outputs in the named form: `loss` (when there is one) and `logits`."""
    return {"logits": prediction} if loss is None else {"loss": loss, "logits": prediction}


class Regressor(nn.Module):
    """A two-layer regression network that knows nothing of any library: mean squared error on one target.

    Args:
        dropout: Probability of dropping a hidden unit.
        outputs: How `forward` packs loss and prediction.
    """

    def __init__(
        self, dropout: float = 0.0, outputs: Callable[[Tensor | None, Tensor], Any] = loss_and_prediction_dict
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 1)
        self._pack = outputs

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Predict one number per row of `x` (batch, 4); with `labels` (batch,), also the mean squared error."""
        prediction = self.head(self.dropout(torch.tanh(self.norm(self.hidden(x))))).squeeze(-1)
        loss = None if labels is None else nn.functional.mse_loss(prediction, labels)
        return self._pack(loss, prediction)
