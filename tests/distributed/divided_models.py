"""Models that several processes can divide among them, and the runs that are compared with one process's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

from mainspring import Trainer, TrainingArguments
from tests.helpers import data
from tests.helpers.models import POSITIONS, VOCABULARY

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama(**changes: Any) -> Any:
    """Linear layers without biases, norms of RMS; keys and values have half as many heads as queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **changes}))


def neox(**changes: Any) -> Any:
    """A relative of GPT-2: biases everywhere, one layer for queries, keys and values."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**{**SIZES, **changes}))


def qwen() -> Any:
    """Queries and keys are normalised head by head, by weights that every process has whole."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "num_key_value_heads": 2, "head_dim": 4}))


class Own(nn.Module):
    """A module of nobody's library, with a plan of names; dropout stands where every process sees the same."""

    tp_plan = {"up": "colwise", "down": "rowwise"}

    def __init__(self, dropout: float = 0.0, width: int = 8) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(4, width)
        self.down = nn.Linear(width, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """One number for each row of `x` (batch, 4)."""
        prediction = self.down(torch.tanh(self.up(self.dropout(x * self.scale)))).squeeze(-1)
        loss = {} if labels is None else {"loss": nn.functional.mse_loss(prediction, labels)}
        return {**loss, "logits": prediction}


class Along(nn.Module):
    """A language model whose norms see a part of each sequence, by styles of torch's own."""

    tp_plan = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
        "last": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.last = nn.LayerNorm(16)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The next token of each place of `input_ids` (batch, sequence); no place sees another."""
        hidden = self.embed(input_ids)
        hidden = hidden + self.down(torch.relu(self.up(self.norm(hidden))))
        logits = self.head(self.last(hidden))
        if labels is None:
            return {"logits": logits}
        return {
            "loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
            "logits": logits,
        }


@dataclass(frozen=True)
class Run:
    """One run, as each process has it and as one process alone does it.

    Attributes:
        model: Makes the model.
        sizes: How the processes share it.
        options: Options beyond `PLAIN`.
        points: Whether the samples are points rather than texts.
        full_length: Whether all texts are filled up to the model's length.
        frozen: What of the model is not trained: the beginning of its parameters' names.
        tolerance: How far weights may be apart.
    """

    model: Callable[[], Any]
    sizes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    points: bool = False
    full_length: bool = False
    frozen: str = "nothing"
    tolerance: float = 1e-5

    @property
    def shares(self) -> int:
        """Into how many shares the data is divided."""
        return self.sizes.get("dp_shard_size", 1) * self.sizes.get("dp_replicate_size", 1)


PLAIN = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
TOGETHER = ("fsdp", "torch_compile", "torch_compile_backend")
"""Options that one process alone does without."""
Api = tuple[type[Trainer], type[TrainingArguments]]
BATCH = 4
"""Samples of a micro-batch of one share of the data. One process alone has all shares in its batches."""

TP2 = {"tp_size": 2}
SHARDS = {"tp_size": 2, "dp_shard_size": 2}
COPIES = {"tp_size": 2, "dp_replicate_size": 2}
SGD = {"optim": "sgd", "learning_rate": 0.3}

ON_TWO: Mapping[str, Run] = {
    "llama": Run(llama, TP2, {"max_grad_norm": 0.5, "weight_decay": 0.1}),
    "tied": Run(lambda: llama(tie_word_embeddings=True), TP2, {"max_grad_norm": 0.5}),
    "neox": Run(neox, TP2, {"max_grad_norm": 0.5, **SGD}),
    "per_head_norms": Run(qwen, TP2, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, **SGD}),
    "odd_vocabulary": Run(lambda: llama(vocab_size=51), TP2),
    "own": Run(Own, TP2, {"max_grad_norm": 0.5, "gradient_accumulation_steps": 2}, points=True),
    "own_frozen": Run(Own, TP2, points=True, frozen="up"),
    "along_the_sequence": Run(Along, TP2, {"max_grad_norm": 0.1, **SGD}, full_length=True),
    "bf16": Run(llama, TP2, {"bf16": True, **SGD}, tolerance=2e-3),
    "compiled": Run(llama, TP2, {"torch_compile": True, "torch_compile_backend": "eager", **SGD}),
    "foreach": Run(neox, TP2, {"optim": "adamw_torch", "gradient_checkpointing": True}),
}
ON_FOUR: Mapping[str, Run] = {
    "four": Run(lambda: llama(num_key_value_heads=4), {"tp_size": 4}, {"max_grad_norm": 0.5}),
    "shards": Run(neox, SHARDS, {"max_grad_norm": 0.5, **SGD, "fsdp": True}),
    "shards_tied": Run(
        lambda: llama(tie_word_embeddings=True),
        SHARDS,
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "fsdp": True},
    ),
    "shards_per_head_norms": Run(qwen, SHARDS, {"max_grad_norm": 0.5, **SGD, "fsdp": True}),
    "copies": Run(neox, COPIES, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, **SGD}),
    "copies_own": Run(Own, COPIES, {"max_grad_norm": 0.5}, points=True),
}
WRITERS: Mapping[str, Run] = {"shards": Run(llama, SHARDS, {"fsdp": True}), "copies": Run(llama, COPIES)}
"""Those whose models write texts, of more words in one group than in the other."""


def trainer(
    run: Run,
    folder: Path,
    *,
    alone: bool = False,
    model: Any = None,
    api: Api = (Trainer, TrainingArguments),
    **more: Any,
) -> Any:
    """The Trainer of a run on this process of several; or on the only one, which does all the work."""
    batch = BATCH * (run.shares if alone else 1)
    sizes = {"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch}
    options = {**PLAIN, **sizes, **run.options, **more}
    if alone:
        options = {name: value for name, value in options.items() if name not in TOGETHER}
    elif run.sizes:
        options["parallelism_config"] = dict(run.sizes)
    torch.manual_seed(3 + int(os.environ.get("RANK", "0")))  # other processes begin with other weights than the first
    model = run.model() if model is None else model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(run.frozen))
    kind = {"train_dataset": data.Items(data.ragged_text(32)), "eval_dataset": data.Items(data.ragged_text(11, seed=1))}
    if run.points:
        kind = {"train_dataset": data.Items(data.points(32)), "eval_dataset": data.Items(data.points(11, seed=1))}
    else:
        kind["data_collator"] = data.collate_to_full_length if run.full_length else data.collate_text
    trainer_class, arguments_class = api
    return trainer_class(model, arguments_class(str(folder), **options), **kind)


def numbers(of: Trainer) -> list[dict[str, float]]:
    """What was logged of each update, in full precision."""
    names = ("loss", "grad_norm", "learning_rate", "epoch")
    return [{name: log[name] for name in names} for log in of.state.log_history if "loss" in log]
