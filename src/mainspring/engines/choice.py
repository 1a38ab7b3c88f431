"""Which engine a run gets, and which combinations no engine can run: a ladder of engines and a list of rules.

`choose` reads down the ladder and takes the first rung that fits. Before it does, every rule is asked, and all that is
wrong is said at once. What depends on the model itself is asked later, by `check_subjects`, when the trainer has one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mainspring.arguments import sagemaker
from mainspring.arguments.spellings import warn
from mainspring.arguments.typed import truth
from mainspring.engines.loaded import is_divided, is_divided_by_zero
from mainspring.errors import OptionError, Problem
from mainspring.model import devices_of_map, is_quantized_base

if TYPE_CHECKING:
    from torch import nn

    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.engines.base import EngineOptions, SingleProcess


@dataclass(frozen=True)
class Asked:
    """What the choice looks at.

    Attributes:
        options: What the run's options ask of the engine.
        processes: Number of processes that train together.
        device: Kind of device, such as "cpu", "cuda" or "xla".
        environment: What the launcher left.
    """

    options: EngineOptions
    processes: int = 1
    device: str = "cpu"
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, accelerator: MainspringAccelerator, options: EngineOptions) -> Asked:
        """What is asked of this process, here and now."""
        return cls(options, accelerator.num_processes, accelerator.device.type, os.environ)

    @property
    def launched(self) -> bool:
        """Whether a launcher started this process, be it the only one."""
        return "RANK" in self.environment or self.processes > 1

    @property
    def split(self) -> tuple[str, ...]:
        """The ways in which processes share the work on one sample: "tp", "cp", "sp"."""
        sizes = self.options.parallelism
        return () if sizes is None else tuple(name for name in sizes.names if name in _SPLITS)

    @property
    def xla(self) -> bool:
        """Whether PyTorch/XLA is to run the model."""
        return self.device == "xla" or (self.options.fsdp is not None and self.options.fsdp.xla)

    def says(self, variable: str) -> bool:
        """Whether the environment has a true value for a variable."""
        return truth(self.environment.get(variable, "")) is True


_SPLITS = ("tp", "cp", "sp")
_DDPS = ("ddp", "sagemaker")
"""Engines that wrap the model in torch's `DistributedDataParallel`."""

LADDER: tuple[tuple[str, Callable[[Asked], bool]], ...] = (
    ("xla", lambda asked: asked.xla),
    ("deepspeed", lambda asked: asked.options.deepspeed is not None),
    ("sagemaker", lambda asked: sagemaker.asks_for_data_parallel(asked.environment)),
    ("parallel", lambda asked: bool(asked.split)),
    ("fsdp", lambda asked: asked.options.fsdp is not None),
    ("ddp", lambda asked: asked.processes > 1),
    ("data_parallel", lambda asked: asked.options.devices > 1),
    ("single", lambda asked: True),
)
"""Names in `ENGINES`, each with what it takes to get it; the first that fits is taken."""


def choose(asked: Asked) -> str:
    """The name of the engine; options that it does not look at are warned of.

    Raises:
        OptionError: Naming every combination that cannot be.
    """
    problems = [problem for rule in RULES if (problem := rule(asked)) is not None]
    if problems:
        raise OptionError(problems)
    name = rung(asked)
    for notice in idle(name, asked):
        warn(str(notice), UserWarning)
    return name


def rung(asked: Asked) -> str:
    """The first engine of the ladder that fits."""
    return next(name for name, fits in LADDER if fits(asked))


# ---- what cannot be ----


def fsdp_needs_a_launcher(asked: Asked) -> Problem | None:
    """A process alone has nobody to share the model with; that it was started alone is most likely an oversight."""
    if asked.options.fsdp is None or asked.launched or asked.xla:
        return None
    return Problem(
        "fsdp",
        True,
        "the run is one process that no launcher started, and would hold the whole model",
        "start it with torchrun or accelerate launch, or leave fsdp out",
    )


def fsdp_or_deepspeed(asked: Asked) -> Problem | None:
    """Both divide the model's state, each in its own way."""
    if asked.options.fsdp is not None and (
        asked.options.deepspeed is not None or asked.says("ACCELERATE_USE_DEEPSPEED")
    ):
        return Problem("fsdp", True, "DeepSpeed is asked for too, and both divide the model", "choose one of the two")
    return None


def deepspeed_divides_in_its_own_ways(asked: Asked) -> Problem | None:
    """Layers and sequences it divides itself ("tp", "sp"); nothing else divides what it has."""
    ways = [way for way in asked.split if way == "cp"]
    if asked.options.deepspeed is None or not ways:
        return None
    given = {f"{way}_size": getattr(asked.options.parallelism, f"{way}_size") for way in ways}
    why = "DeepSpeed is asked for too, which does not divide sequences in this way"
    return Problem("parallelism_config", given, why, "leave one of the two out: context parallelism goes with FSDP")


def deepspeed_has_no_rival(asked: Asked) -> Problem | None:
    """XLA and SageMaker's own data parallelism run the model themselves."""
    if asked.options.deepspeed is None:
        return None
    rival = "PyTorch/XLA" if asked.xla else "SageMaker's own data parallelism"
    if not asked.xla and not sagemaker.asks_for_data_parallel(asked.environment):
        return None
    return Problem("deepspeed", True, f"{rival} is asked for too, and runs the model itself", "leave deepspeed out")


def a_launcher_is_heeded(asked: Asked) -> Problem | None:
    """What a launcher's configuration asks for is what trains, or nothing does."""
    for variable, option, wanted in (
        ("ACCELERATE_USE_FSDP", "fsdp", asked.options.fsdp is not None),
        ("ACCELERATE_USE_DEEPSPEED", "deepspeed", asked.options.deepspeed is not None),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config", asked.options.parallelism is not None),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM", False),
    ):
        if asked.says(variable) and not wanted:
            why = f"the launcher asks for it, but the options of the run do not have {option}: it would train otherwise"
            return Problem(variable, asked.environment[variable], why, "take it out of the launcher's configuration")
    return None


def sizes_make_the_world(asked: Asked) -> Problem | None:
    """Every process has its place in each of the dimensions."""
    sizes = asked.options.parallelism
    if sizes is None or sizes.total_size == asked.processes:
        return None
    given = {f"{name}_size": size for name, size in sizes.sizes.items() if size > 1}
    why = f"the product of the sizes is {sizes.total_size}, and the run has {asked.processes} process" + (
        "es" if asked.processes > 1 else ", as no launcher started more"
    )
    return Problem("parallelism_config", given, why, f"start {sizes.total_size} processes, or change the sizes")


def shards_need_fsdp(asked: Asked) -> Problem | None:
    """How a model is sharded is what `fsdp` says."""
    sizes = asked.options.parallelism
    if sizes is None or sizes.dp_shard_size == 1 or asked.options.fsdp is not None:
        return None
    given = {"dp_shard_size": sizes.dp_shard_size}
    return Problem("parallelism_config", given, "fsdp is off, which is what shards a model", "set fsdp=True")


def fsdp_needs_somebody_to_share_with(asked: Asked) -> Problem | None:
    """Where all processes hold parts of one model, nothing is left to shard, and no setting of FSDP would act."""
    sizes = asked.options.parallelism
    if asked.options.fsdp is None or not asked.split or sizes is None or sizes.total_size != asked.processes:
        return None
    if sizes.data_size * sizes.cp_size > 1:
        return None
    why = f"all {sizes.total_size} processes hold parts of one model ({', '.join(asked.split)}), and none is left to shard it over"
    return Problem("fsdp", True, why, "leave it out, or start more processes, with dp_shard_size above 1")


def splits_need_the_second_version(asked: Asked) -> Problem | None:
    """Version 1 flattens parameters, which leaves nothing to split."""
    fsdp = asked.options.fsdp
    if fsdp is None or fsdp.version != 1 or not asked.split:
        return None
    why = f"version 1 flattens the parameters, and {', '.join(asked.split)} splits or shares them as they are"
    return Problem("fsdp_config", {"version": 1}, why, "leave the version out, which is 2")


def hooks_are_ddps(asked: Asked) -> Problem | None:
    """Only DDP lets its sums of gradients be compressed."""
    hook, name = asked.options.ddp.comm_hook, rung(asked)
    if hook is None or asked.processes == 1 or name in _DDPS:
        return None
    why = f"only DDP's sums of gradients can be compressed, and the engine of this run is {name!r}"
    return Problem("ddp_comm_hook", hook, why, "leave it out")


def xla_shards_in_its_own_way(asked: Asked) -> Problem | None:
    """The FSDP of torch does not know these devices."""
    fsdp = asked.options.fsdp
    if asked.device != "xla" or fsdp is None or fsdp.xla:
        return None
    return Problem(
        "fsdp_config", {"xla": False}, "this is an XLA device, which has an FSDP of its own", "set xla to true"
    )


def some_engines_split_nothing(asked: Asked) -> Problem | None:
    """XLA and SageMaker have their own ways, which are not here."""
    name = rung(asked)
    if name not in ("xla", "sagemaker") or not asked.split:
        return None
    given = {f"{way}_size": getattr(asked.options.parallelism, f"{way}_size") for way in asked.split}
    return Problem("parallelism_config", given, f"the engine of this run, {name!r}, splits no model", "leave it out")


def sagemaker_shards_nothing(asked: Asked) -> Problem | None:
    """Its sums are of whole gradients."""
    if asked.options.fsdp is None or rung(asked) != "sagemaker":
        return None
    why = "the SageMaker job asks for its own data parallelism, which shards nothing"
    return Problem("fsdp", True, why, "use torch_distributed in the job's distribution, or leave fsdp out")


def replicas_are_not_compiled(asked: Asked) -> Problem | None:
    """Copies of a compiled module would all run the original, on the first device."""
    if rung(asked) != "data_parallel" or not asked.options.compiles:
        return None
    why = f"this process drives {asked.options.devices} GPUs with copies of the model, which cannot be compiled"
    return Problem("torch_compile", True, why, _ONE_GPU)


def replicas_read_whole_rows(asked: Asked) -> Problem | None:
    """Where samples begin in packed rows is told by tensors that are not divided as the rows are."""
    if rung(asked) != "data_parallel" or not asked.options.packs:
        return None
    why = f"this process drives {asked.options.devices} GPUs and divides each batch among them, which packed rows do not allow"
    return Problem("pack_sequences", True, why, _ONE_GPU)


_BY_DEEPSPEED = {"CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "MASTER_ADDR"}
"""Variables that DeepSpeed's launcher leaves, and torch's does not."""

_ONE_GPU = "start with torchrun, one process for each GPU, or set CUDA_VISIBLE_DEVICES to one of them"

RULES: tuple[Callable[[Asked], Problem | None], ...] = (
    fsdp_needs_a_launcher,
    fsdp_or_deepspeed,
    deepspeed_divides_in_its_own_ways,
    deepspeed_has_no_rival,
    a_launcher_is_heeded,
    sizes_make_the_world,
    shards_need_fsdp,
    fsdp_needs_somebody_to_share_with,
    splits_need_the_second_version,
    hooks_are_ddps,
    xla_shards_in_its_own_way,
    some_engines_split_nothing,
    sagemaker_shards_nothing,
    replicas_are_not_compiled,
    replicas_read_whole_rows,
)
"""One function a rule, as in `mainspring.arguments.rules`: its name is the rule, what it returns is what is wrong."""


# ---- what does nothing ----


def idle(name: str, asked: Asked) -> Iterable[Problem]:
    """A complaint for each option of DDP's in a run of several processes that has another engine.

    In one process nothing acts that is between processes: the arguments say so themselves. And one for DeepSpeed's launcher,
    where nobody asks for DeepSpeed.
    """
    if asked.options.deepspeed is None and asked.environment.keys() >= _BY_DEEPSPEED:
        why = f"DeepSpeed's launcher started this run, and the engine is {name!r}: a launcher sets up no engine"
        yield Problem("deepspeed", None, why, "set it to a configuration, or start with torchrun")
    if name in _DDPS or asked.processes == 1:
        return
    for option, value in asked.options.ddp.chosen.items():
        why = f"has no effect, because the engine of this run is {name!r} and not DDP"
        yield Problem(option, value, why, "leave it out")


# ---- the model and what came with it ----


def check_subjects(engine: SingleProcess, model: nn.Module, *, given_optimizer: bool) -> None:
    """Refuse a model or an optimizer that the engine cannot train.

    Args:
        engine: The run's.
        model: The model as the user passed it.
        given_optimizer: Whether the user passed an optimizer of the model's parameters as well.

    Raises:
        RuntimeError: An optimizer of parameters that the engine replaces.
        ValueError: A model on several devices of its own, where the engine wants one on each. A model in pieces, where it
            wants a whole one. A model that nobody can train, for its weights are quantized.
    """
    if given_optimizer and engine.replaces_parameters and not engine.joins_optimizer:
        raise RuntimeError(
            f"optimizers=(optimizer, ...) cannot be combined with the engine {engine.kind!r}, which replaces the parameters "
            "that the optimizer was made for: leave it out, and set optim or pass optimizer_cls_and_kwargs"
        )
    mapped = devices_of_map(model)
    if len(mapped) > 1 and engine.kind != "single":
        raise ValueError(
            f"the model lies on several devices by its device map ({', '.join(map(str, mapped))}), and the engine "
            f"{engine.kind!r} wants a whole one on each: start one process, and pass the model as model=... and not by "
            "model_init; or load it without device_map"
        )
    if not engine.replaces_parameters and is_divided(model):
        raise ValueError(
            f"the parameters of the model lie in pieces on several processes, and the engine {engine.kind!r} wants all of them "
            "on each: set fsdp=True, which goes on with the pieces, or load the model whole"
        )
    if not engine.joins_optimizer and is_divided_by_zero(model):
        raise ValueError(
            "the weights of the model lie in pieces: it was loaded while a DeepSpeed configuration of stage 3 was in force, or "
            "another trainer has divided it; set deepspeed to one of stage 3, or load the model when none is alive "
            "(HfDeepSpeedConfig, arguments with deepspeed)"
        )
    if is_quantized_base(model):
        raise ValueError(
            "the weights of the model are quantized and cannot be trained: add adapters to it, such as peft's LoRA, or load "
            "it without quantization"
        )
    engine.check_model(model)
