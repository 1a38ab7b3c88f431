"""What must hold inside a DeepSpeed configuration, and between it and other options. One function a rule.

A rule is given the configuration with the options' values in it, and the arguments.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mainspring.arguments.deepspeed.filling import NOWHERE, named
from mainspring.arguments.deepspeed.reading import AUTO, section, setting
from mainspring.errors import Problem

Rule = Callable[[Mapping[str, Any], Any], Iterator[Problem]]

_ZERO = "zero_optimization"


def stage_of(config: Mapping[str, Any]) -> int:
    """The stage of ZeRO; 0 where none is said."""
    stage = setting(config, f"{_ZERO}.stage")
    return stage if isinstance(stage, int) else 0


def tensor_parallel_size(config: Mapping[str, Any]) -> int:
    """How many processes divide each layer (AutoTP); 1 where nothing is said."""
    size = setting(config, "tensor_parallel.autotp_size")
    return size if isinstance(size, int) and size > 1 else 1


def gathers_weights(config: Mapping[str, Any]) -> bool:
    """Whether saved models of stage 3 are whole: by the newer name of the setting, or an older one."""
    names = ("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save")
    older = "stage3_gather_fp16_weights_on_model_save"
    return any(setting(config, f"{_ZERO}.{name}") for name in (*names, older))


def _device(config: Mapping[str, Any], what: str) -> str:
    device = setting(config, f"{_ZERO}.offload_{what}.device")
    return device if isinstance(device, str) else NOWHERE


def one_precision(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """A model computes in one precision."""
    if setting(config, "fp16.enabled") is True and setting(config, "bf16.enabled") is True:
        yield Problem(named("bf16.enabled"), True, "fp16.enabled is true too", "choose one of them")


def apex_is_there(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """`amp` is apex's."""
    if setting(config, "amp.enabled") is True and importlib.util.find_spec("apex") is None:
        why = "the package apex is not installed, and newer versions of DeepSpeed no longer use it"
        yield Problem(named("amp.enabled"), True, why, "use the fp16 or bf16 section, or torch_autocast")


def only_divided_parameters_are_offloaded(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """Parameters wait elsewhere where each process holds a part of them."""
    if (device := _device(config, "param")) != NOWHERE and stage_of(config) < 3:
        why = f"the stage is {stage_of(config)}, and only stage 3 divides the parameters"
        yield Problem(named(f"{_ZERO}.offload_param.device"), device, why, "set stage to 3, or leave it out")


def only_divided_states_are_offloaded(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """Optimizer states wait elsewhere where ZeRO has taken them; on a disk with stage 3."""
    device, stage = _device(config, "optimizer"), stage_of(config)
    path = named(f"{_ZERO}.offload_optimizer.device")
    if device != NOWHERE and stage == 0:
        yield Problem(path, device, "the stage is 0, which has no effect on the optimizer", "set stage to 1, 2 or 3")
    elif device == "nvme" and stage < 3:
        yield Problem(path, device, f"the stage is {stage}, and only stage 3 uses disks", "set stage to 3, or use cpu")


def a_disk_has_a_path(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """What is moved to a disk needs a folder there."""
    for what in ("param", "optimizer"):
        path = setting(config, f"{_ZERO}.offload_{what}.nvme_path")
        if _device(config, what) == "nvme" and path in (None, "", NOWHERE):
            where = named(f"{_ZERO}.offload_{what}.nvme_path")
            yield Problem(where, path, "device is 'nvme'", "name a folder on that disk")


def divided_layers_have_one_norm(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """In half precision at stage 0, DeepSpeed measures and clips what each process has by itself: their weights part ways."""
    size = tensor_parallel_size(config)
    halved = any(setting(config, f"{name}.enabled") is True for name in ("bf16", "fp16"))
    if size > 1 and stage_of(config) == 0 and halved:
        why = "at stage 0 in half precision, DeepSpeed measures the gradients of each process by themselves"
        yield Problem(named("tensor_parallel.autotp_size"), size, why, "set stage to 1, 2 or 3, or compute in fp32")


def divided_layers_are_saved_whole(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """Pieces of parts of layers are put together while they are in memory, or never."""
    if tensor_parallel_size(config) > 1 and stage_of(config) == 3 and not gathers_weights(config):
        why = "processes divide the layers (tensor_parallel.autotp_size), and saved pieces of those cannot be put together"
        yield Problem(named(f"{_ZERO}.stage3_gather_16bit_weights_on_model_save"), False, why, "set it to true")


def divided_layers_give_whole_logits(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """What evaluations, predictions and losses of users read is of the whole vocabulary."""
    if tensor_parallel_size(config) > 1 and setting(config, "tensor_parallel.vocab_parallel_lm_head") is True:
        why = "each process would have the logits of a part of the vocabulary, and predictions are of all of it"
        yield Problem(named("tensor_parallel.vocab_parallel_lm_head"), True, why, "leave it out")


_PLUS_PLUS = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def zero_plus_plus_needs_stage_3(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """ZeRO++ changes how parameters are gathered."""
    if stage_of(config) == 3:
        return
    found = section(config, _ZERO)
    given = [name for name in _PLUS_PLUS if found.get(name)]
    given += ["zero_hpz_partition_size"] if found.get("zero_hpz_partition_size", 1) not in (1, AUTO) else []
    for name in given:
        why = f"the stage is {stage_of(config)}, and ZeRO++ needs stage 3"
        yield Problem(named(f"{_ZERO}.{name}"), found[name], why, "set stage to 3, or leave it out")


def batches_keep_their_sizes(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """Elastic training would choose other batch sizes than the options say."""
    if setting(config, "elasticity.enabled") is True:
        why = "DeepSpeed would choose the batch sizes by itself, and the options say what they are"
        yield Problem(named("elasticity.enabled"), True, why, "leave it out")


def data_comes_from_the_trainer(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """DeepSpeed's own loader, which these sections change, is not used."""
    for path in ("data_efficiency.enabled", "curriculum_learning.enabled", "dataloader_drop_last"):
        if setting(config, path) is True:
            why = "acts on DeepSpeed's own data loader, and batches come from the trainer's"
            yield Problem(named(path), True, why, "leave it out")


_IN_BACKWARD = ("lomo", "adalomo")


def gradients_reach_the_engine(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """Optimizers that act inside the backward pass leave DeepSpeed no gradients; others keep weights that it does not know."""
    why = "steps inside the backward pass, and DeepSpeed would find no gradients to reduce"
    name = str(getattr(a.optim, "value", a.optim))
    if "optimizer" not in config and (name in _IN_BACKWARD or name.endswith("layerwise")):
        yield Problem("optim", name, f"{why} (deepspeed)", "choose another optimizer")
    if "optimizer" not in config and name.startswith("schedule_free"):
        two = "trains with other weights than it evaluates with, and DeepSpeed steps one set only (deepspeed)"
        yield Problem("optim", name, two, "choose another optimizer")
    if getattr(a, "optimizer_in_backward", False):
        yield Problem("optimizer_in_backward", True, f"{why} (deepspeed)", "leave one of the two out")


_OF_MATRICES = ("galore_", "apollo_")


def matrices_reach_the_optimizer(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """From stage 1 on ZeRO lays parameters out flat, and nothing is left to project."""
    name, stage = str(getattr(a.optim, "value", a.optim)), stage_of(config)
    steps_later = not name.endswith("layerwise")  # see `gradients_reach_the_engine`
    if "optimizer" not in config and stage > 0 and name.startswith(_OF_MATRICES) and steps_later:
        why = f"projects the gradients of matrices, which ZeRO lays out flat at stage {stage} (deepspeed)"
        yield Problem("optim", name, why, "choose another optimizer, or set stage to 0")


def a_model_alone_is_whole(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """Checkpoints of the model alone hold no pieces, from which it could be put together."""
    if a.save_only_model and stage_of(config) == 3 and not gathers_weights(config):
        why = "stage 3 divides the weights, and stage3_gather_16bit_weights_on_model_save is off"
        yield Problem("save_only_model", True, f"{why} (deepspeed)", "set that to true, or leave save_only_model out")


def checkpoints_are_whole_when_sealed(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """Writers of DeepSpeed's own, some of which write later, or nothing."""
    for path in ("checkpoint.writer", "datastates_ckpt"):
        if value := setting(config, path):
            why = "has DeepSpeed write by itself, and a checkpoint is sealed, with the sums of all files, once it is there"
            yield Problem(named(path), value, why, "leave it out; save_in_background writes later")


def the_schedule_follows_the_engine(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """A schedule that follows a metric moves an optimizer that is not DeepSpeed's."""
    name = str(getattr(a.lr_scheduler_type, "value", a.lr_scheduler_type))
    if "scheduler" in config and name in ("reduce_lr_on_plateau", "greedy"):
        why = "follows a metric, and the DeepSpeed configuration has a schedule of its own"
        yield Problem("lr_scheduler_type", name, why, "leave one of the two out")


RULES: tuple[Rule, ...] = (
    one_precision,
    apex_is_there,
    only_divided_parameters_are_offloaded,
    only_divided_states_are_offloaded,
    a_disk_has_a_path,
    divided_layers_have_one_norm,
    divided_layers_are_saved_whole,
    divided_layers_give_whole_logits,
    zero_plus_plus_needs_stage_3,
    batches_keep_their_sizes,
    data_comes_from_the_trainer,
    gradients_reach_the_engine,
    matrices_reach_the_optimizer,
    a_model_alone_is_whole,
    checkpoints_are_whole_when_sealed,
    the_schedule_follows_the_engine,
)


def settings_of_stage_3(config: Mapping[str, Any], _: Any) -> Iterator[Problem]:
    """What the others pass over."""
    if stage_of(config) == 3:
        return
    for name, value in section(config, _ZERO).items():
        if name.startswith("stage3_") and value not in (AUTO, False):
            why = f"has no effect, because the stage is {stage_of(config)}"
            yield Problem(named(f"{_ZERO}.{name}"), value, why, "leave it out")
    ratio = setting(config, f"{_ZERO}.offload_optimizer.ratio")
    if ratio not in (None, 1):
        why = f"has no effect, because the stage is {stage_of(config)}: all states are offloaded"
        yield Problem(named(f"{_ZERO}.offload_optimizer.ratio"), ratio, why, "leave it out, or set stage to 3")


def the_configuration_has_an_optimizer(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """DeepSpeed makes the optimizer, and the options that choose another are not looked at."""
    yield from _idle(config, a, "optimizer", ("optim", "optim_args", "optim_target_modules"))


def the_configuration_has_a_schedule(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """DeepSpeed makes the schedule, and the options that choose another are not looked at."""
    yield from _idle(config, a, "scheduler", ("lr_scheduler_type", "lr_scheduler_kwargs"))


def _idle(config: Mapping[str, Any], a: Any, path: str, options: tuple[str, ...]) -> Iterator[Problem]:
    if path not in config:
        return
    for option in options:
        if a.chose(option):
            value = getattr(a, option)
            why = f"has no effect, because the DeepSpeed configuration has a section {path!r}"
            yield Problem(option, getattr(value, "value", value), why, "leave one of the two out")


def gradients_are_summed_by_the_engine(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """When gradients travel follows from the stage."""
    settings = getattr(a.accelerator_config, "gradient_accumulation_kwargs", None) or {}
    if settings.get("sync_each_batch"):
        why = f"has no effect: DeepSpeed sums gradients when its stage, {stage_of(config)}, says so"
        yield Problem("accelerator_config", {"gradient_accumulation_kwargs": settings}, why, "leave it out")


def models_checkpoint_by_themselves(config: Mapping[str, Any], a: Any) -> Iterator[Problem]:
    """DeepSpeed's own way to recompute activations is for models that call it."""
    if section(config, "activation_checkpointing") and not a.gradient_checkpointing:
        why = "has no effect in models that do not call deepspeed.checkpointing themselves"
        fix = "set gradient_checkpointing (activation_checkpointing) to recompute activations"
        yield Problem(named("activation_checkpointing"), config["activation_checkpointing"], why, fix)


NOTICES: tuple[Rule, ...] = (
    gradients_are_summed_by_the_engine,
    models_checkpoint_by_themselves,
    settings_of_stage_3,
    the_configuration_has_an_optimizer,
    the_configuration_has_a_schedule,
)
