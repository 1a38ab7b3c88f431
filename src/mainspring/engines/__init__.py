"""How a model runs on the hardware: one class per way, chosen once per run.

`build_engine` is the only place that decides; everything else calls the methods of `SingleProcess`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mainspring.registry import Registry

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.engines.base import SingleProcess, WrapOptions

ENGINES = Registry(
    "engine",
    {
        "single": "mainspring.engines.base:SingleProcess",
        "ddp": "mainspring.engines.ddp:DDP",
    },
)


def build_engine(accelerator: MainspringAccelerator, wrap: WrapOptions) -> SingleProcess:
    """Choose the engine for this process and bind the accelerator's verbs to it.

    Args:
        accelerator: What the user's code sees as `trainer.accelerator`.
        wrap: How a data-parallel engine wraps the model.

    Returns:
        The engine: `SingleProcess` in a world of one, `DDP` otherwise.
    """
    name = "ddp" if accelerator.num_processes > 1 else "single"
    engine: SingleProcess = ENGINES[name](accelerator, wrap)
    accelerator.bind(engine)
    return engine
