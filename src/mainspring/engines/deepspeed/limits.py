"""What DeepSpeed cannot do here, said in the words of the options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from mainspring.arguments.deepspeed import DeepSpeedSettings
from mainspring.arguments.deepspeed.reading import setting
from mainspring.engines.deepspeed.parts import FromConfiguration
from mainspring.errors import NotAvailableError, OptionError, Problem
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)


def check_given(settings: DeepSpeedSettings, optimizer: Any, schedule: Any) -> None:
    """Refuse an optimizer or a schedule that was passed beside one in the configuration.

    Raises:
        OptionError: Naming both.
    """
    problems = [
        Problem(
            f"deepspeed {section}", _type_of(settings.config, section), f"{name} is passed too", "choose one of them"
        )
        for section, name, given in (("optimizer", "an optimizer", optimizer), ("scheduler", "a schedule", schedule))
        if given is not None and section in settings.config
    ]
    if optimizer is not None:
        problems += _two_sets(optimizer[0] if isinstance(optimizer, tuple) else optimizer)
    if problems:
        raise OptionError(problems)


def _two_sets(optimizer: Any) -> list[Problem]:
    """What is wrong with an optimizer, or a class of one, that trains with other weights than it evaluates with."""
    if not callable(getattr(optimizer, "eval", None)):
        return []
    name = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
    why = "it trains with other weights than it evaluates with, and DeepSpeed steps one set only"
    return [Problem("optimizers", name, why, "choose another optimizer")]


def refuse_without_training(settings: DeepSpeedSettings) -> None:
    """Refuse to evaluate before training where ZeRO divides only what training has.

    Raises:
        OptionError: Naming the stage.
    """
    if settings.stage == 3:
        return
    why = "without training there are no gradients and no optimizer to divide, and only stage 3 divides the weights"
    fix = "set it to 3, evaluate after train() or with eval_on_start, or leave deepspeed out to evaluate"
    raise OptionError([Problem("deepspeed zero_optimization.stage", settings.stage, why, fix)])


def say_what_rests(settings: DeepSpeedSettings) -> None:
    """Say of an engine that does not train which sections of its configuration wait for one that does."""
    resting = [section for section in ("optimizer", "scheduler") if section in settings.config]
    if resting:
        logger.warning("DeepSpeed evaluates without %s, which train() will make", " and ".join(resting))


def say_what_stays(started: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Say of a run that goes on with the engine of the one before what has been changed of its configuration for nothing.

    Args:
        started: What the engine was started with.
        config: What is asked for now; a schedule begins anew, and has its settings.
    """
    changed = [name for name in {**started, **config} if name != "scheduler" and started.get(name) != config.get(name)]
    if changed:
        logger.warning(
            "deepspeed %s: changed since the engine was started, which goes on as it is; a new Trainer starts another one",
            ", ".join(changed),
        )


def check_evaluation(settings: DeepSpeedSettings, dtype: torch.dtype | None) -> None:
    """Refuse evaluations in another precision than the model's: its weights lie in buffers, and cannot be cast.

    Args:
        settings: The configuration.
        dtype: What `bf16_full_eval` or `fp16_full_eval` asks for; None: neither is set.

    Raises:
        OptionError: Naming the option.
    """
    name = None if dtype is None else {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    if name is None or settings.precision == name:
        return
    why = f"the model computes in {settings.precision} by its DeepSpeed configuration, and its weights cannot be cast"
    raise OptionError([Problem(f"{name}_full_eval", True, why, f"set {name}.enabled to 'auto' there, or leave it out")])


def check_precision(settings: DeepSpeedSettings) -> None:
    """Refuse a precision that DeepSpeed finds this device unable to compute in: it would say so when training begins.

    Raises:
        NotAvailableError: Naming the section.
    """
    from deepspeed.accelerator import get_accelerator  # the engine has found it to be there

    device = get_accelerator()
    able = {"fp16": device.is_fp16_supported, "bf16": device.is_bf16_supported}.get(settings.precision)
    if able is None or able():
        return
    why = f"DeepSpeed does not compute in {settings.precision} on this device ({device.device_name()})"
    others = {"fp16": "bf16, or in fp32 by leaving it out", "bf16": "fp32 by leaving it out"}
    problem = Problem(f"deepspeed {settings.precision}.enabled", True, why, f"compute in {others[settings.precision]}")
    raise NotAvailableError([problem])


def check_sums(settings: DeepSpeedSettings) -> None:
    """Refuse sums of gradients in another precision than the model's where nothing of ZeRO keeps them.

    Raises:
        OptionError: Naming the setting.
    """
    path = "data_types.grad_accum_dtype"
    kind = setting(settings.config, path)
    if settings.stage > 0 or kind in (None, settings.precision):
        return
    why = f"the stage is 0, where DeepSpeed sums gradients in what the model computes in: {settings.precision}"
    raise OptionError([Problem(f"deepspeed {path}", kind, why, "leave it out, or set stage to 1, 2 or 3")])


def makes_other_norms(optimizer: Optimizer, settings: DeepSpeedSettings) -> bool:
    """Whether ZeRO's norm is that of what the optimizer has made of the gradients, rather than theirs: so it is with Muon."""
    found = settings.stage > 0 and type(optimizer).__name__ == "MuonWithAuxAdam"
    limit = settings.config.get("gradient_clipping")
    if found and limit:
        logger.warning(
            "max_grad_norm=%s: with Muon, DeepSpeed clips what Muon has made of the gradients, not the gradients", limit
        )
    return found


def say_where_not_clipped(wanted: float, norm_type: float, limit: float) -> None:
    """Say of a norm that gradients are to be clipped to that DeepSpeed clips to another one.

    Args:
        wanted: The norm that was asked for.
        norm_type: Its kind.
        limit: The norm in the engine's configuration; 0: it does not clip.
    """
    if float(wanted) != limit or float(norm_type) != 2.0:
        asked = wanted if norm_type == 2.0 else f"{wanted} (norm_type={norm_type})"
        logger.warning_once(
            f"clipping to {asked} has no effect: DeepSpeed clips by itself, to {limit} in its configuration, where 0 is not at "
            "all; set gradient_clipping there, or max_grad_norm before the first train()"
        )


def warn_of_flattened(optimizer: Optimizer, settings: DeepSpeedSettings) -> None:
    """Say of an optimizer that looks at the shapes of parameters that ZeRO leaves it none to look at."""
    name = type(optimizer).__name__
    if settings.stage > 0 and any(word in name.lower() for word in _LOOKS_AT_SHAPES):
        logger.warning(
            "%s looks at the shapes of parameters, which ZeRO lays out flat from stage 1 on: its steps are others than without "
            "DeepSpeed",
            name,
        )


_LOOKS_AT_SHAPES = ("adafactor", "galore", "apollo", "shampoo", "soap", "came")


@contextlib.contextmanager
def why_not_started(config: Mapping[str, Any], optimizer: Optimizer) -> Iterator[None]:
    """Say of an optimizer that DeepSpeed cannot make or divide which it is, and what can be taken instead."""
    try:
        yield
    except OptionError:
        raise
    except _OF_OPTIMIZERS as error:
        described = isinstance(optimizer, FromConfiguration)
        name = _type_of(config, "optimizer") if described else type(optimizer).__name__
        if not _is_about(error, str(name)):
            raise
        option = "deepspeed optimizer.type" if described else "optim"
        raise NotAvailableError(
            [Problem(option, name, f"DeepSpeed cannot use it here: {_first_line(error)}", _INSTEAD)]
        ) from error


_OF_OPTIMIZERS = (ImportError, RuntimeError, AssertionError, AttributeError, TypeError, ValueError, OSError)
_INSTEAD = "take AdamW with torch_adam, Adam, Adagrad or Muon, or leave the section out: optim then says which"
_CAUSES = ("optimizer", "this op", "ninja", "muon", "unexpected keyword")
"""What DeepSpeed's own errors have in them where an optimizer is the trouble."""


def _is_about(error: BaseException, name: str) -> bool:
    text = str(error).lower()
    return any(cause in text for cause in (*_CAUSES, name.lower()))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _type_of(config: Mapping[str, Any], section: str) -> Any:
    return (config.get(section) or {}).get("type")
