"""A run whose two processes, each with a GPU, share every sequence; what came of it is written to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.distributed.divided_models import Run, llama, numbers, trainer

RUN = Run(
    lambda: llama(hidden_size=64, intermediate_size=128, num_key_value_heads=4, attn_implementation="sdpa"),
    {"cp_size": 2},
    {"bf16": True, "use_cpu": False, "optim": "sgd", "learning_rate": 0.3},
    tolerance=5e-2,
)
"""In bf16: the kernels that are passed round know no fp32."""


def main(out: Path) -> None:
    """Write `rank<r>.pt`."""
    of = trainer(RUN, out / "run")
    of.train()
    facts = {"logs": numbers(of), "sizes": of.get_cp_size(), "data": of._engine.data_world_size}
    torch.save(facts, out / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
