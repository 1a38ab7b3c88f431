"""Small causal language models of several makings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.models import POSITIONS, VOCABULARY, tiny_gpt2

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2(attention: str = "sdpa") -> Any:
    """GPT-2, without dropout."""
    torch.manual_seed(0)
    model = tiny_gpt2()
    model.set_attn_implementation(attention)
    return model


def llama(attention: str = "sdpa") -> Any:
    """Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _built(LlamaForCausalLM, LlamaConfig, attention)


def mistral(attention: str = "sdpa") -> Any:
    """Mistral, whose layers see four tokens back."""
    from transformers import MistralConfig, MistralForCausalLM

    return _built(MistralForCausalLM, MistralConfig, attention, sliding_window=4)


def _built(model: Callable[..., Any], config: Callable[..., Any], attention: str, **options: Any) -> Any:
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": VOCABULARY, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    made = model(config(**shape, **options, use_cache=False))
    made.set_attn_implementation(attention)
    return made


class Plain(nn.Module):
    """A language model of one layer that takes a mask as torch's attention does, or as a tokenizer gives it.

    Args:
        leaks: Whether it lets every token see all before it, whatever the mask says.
        restarts: Whether it takes positions as they are given.
    """

    def __init__(self, leaks: bool = False, restarts: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.leaks, self.restarts = leaks, restarts
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.places = nn.Embedding(64, 16)
        self.mixing = nn.Linear(16, 48)
        self.out = nn.Linear(16, VOCABULARY)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss, a mean over the labels of the batch, and the logits."""
        length = input_ids.shape[1]
        if position_ids is None or not self.restarts:
            position_ids = torch.arange(length).expand_as(input_ids)
        hidden = self.tokens(input_ids) + self.places(position_ids)
        query, key, value = self.mixing(hidden)[:, None].chunk(3, dim=-1)
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        if attention_mask is not None and not self.leaks:
            # Padding sees itself: a token that saw nothing would have no mean to take.
            given = attention_mask if attention_mask.dim() == 4 else attention_mask[:, None, None].bool()
            seen = (given & seen) | torch.eye(length, dtype=torch.bool)
        hidden = hidden + functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)[:, 0]
        logits = self.out(hidden)
        if labels is None:
            return {"logits": logits}
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


KEEPING_APART: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "gpt2 eager": lambda: gpt2("eager"),
    "llama": llama,
    "llama eager": lambda: llama("eager"),
    "mistral": mistral,
    "mistral eager": lambda: mistral("eager"),
    "plain": Plain,
}
"""Models that can train on packed rows."""

FORWARD_ALONE: dict[str, Callable[[], nn.Module]] = {
    "llama flex": lambda: llama("flex_attention"),
    "mistral flex": lambda: mistral("flex_attention"),
}
"""Models whose attention torch computes on a CPU, but not its gradient."""
