"""AdamW with states of 4 or 8 bits, of torchao."""

from __future__ import annotations

from typing import Any

from torchao.optim import AdamW4bit, AdamW8bit

from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, boolean, read_options


def _adamw(cls: Any, request: OptimizerRequest) -> OptimizerSpec:
    options = {"block_size": 256, "bf16_stochastic_round": False}
    return cls, {**request.adam, **options, **read_options(request, block_size=int, bf16_stochastic_round=boolean)}


def four_bits(request: OptimizerRequest) -> OptimizerSpec:
    """`torchao.optim.AdamW4bit`."""
    return _adamw(AdamW4bit, request)


def eight_bits(request: OptimizerRequest) -> OptimizerSpec:
    """`torchao.optim.AdamW8bit`."""
    return _adamw(AdamW8bit, request)
