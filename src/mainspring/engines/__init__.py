"""How a model runs on the hardware: one class per way, chosen once per run.

`choice` is the only place that decides; everything else calls the methods of `SingleProcess`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mainspring.engines import choice
from mainspring.registry import Registry

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.engines.base import EngineOptions, SingleProcess

ENGINES = Registry(
    "engine",
    {
        "single": "mainspring.engines.base:SingleProcess",
        "data_parallel": "mainspring.engines.data_parallel:DataParallel",
        "ddp": "mainspring.engines.ddp:DDP",
        "deepspeed": "mainspring.engines.deepspeed:DeepSpeed",
        "parallel": "mainspring.engines.parallel:build",
        "fsdp": "mainspring.engines.fsdp:build",
        "sagemaker": "mainspring.engines.sagemaker:SageMaker",
        "xla": "mainspring.engines.xla:XLA",
    },
)


def build_engine(accelerator: MainspringAccelerator, options: EngineOptions) -> SingleProcess:
    """Choose the engine for this process and bind the accelerator's verbs to it.

    Args:
        accelerator: What the user's code sees as `trainer.accelerator`.
        options: What the run's options ask for.

    Returns:
        The engine that `choice.LADDER` finds.

    Raises:
        OptionError: Options of which no engine can do all.
    """
    name = choice.choose(choice.Asked.of(accelerator, options))
    engine: SingleProcess = ENGINES[name](accelerator, options)
    accelerator.bind(engine)
    return engine
