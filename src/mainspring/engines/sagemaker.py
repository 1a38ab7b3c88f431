"""Data parallel over processes on SageMaker: torch's `DistributedDataParallel` over Amazon's own sums.

This has not been run: it needs SageMaker's images. Without their package the run is refused where it joins the others, in
`mainspring.arguments.sagemaker`.
"""

from __future__ import annotations

from torch import distributed as dist

from mainspring.engines.accelerator import MainspringAccelerator
from mainspring.engines.base import EngineOptions
from mainspring.engines.ddp import DDP

BACKEND = "smddp"
"""What SageMaker's package is called among torch's backends, once it was imported."""


class SageMaker(DDP):
    """As `DDP`; that it is SageMaker's library which sums gradients is the one difference, and is made sure of."""

    kind = "sagemaker"

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        super().__init__(accelerator, options)
        found = dist.get_backend()
        if found != BACKEND:
            raise RuntimeError(
                f"the SageMaker job asks for its own data parallelism ({BACKEND!r}), but the processes were joined with "
                f"{found!r}: make no process group before the Trainer, and leave ddp_backend out"
            )
