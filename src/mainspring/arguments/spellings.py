"""Spellings of the older generation: each is read as what it meant, with one warning that names the new one."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Collection
from typing import Any

from mainspring.arguments.masking import shown
from mainspring.errors import Problem

Options = dict[str, Any]

RENAMED: dict[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
}
"""Older name and newer name of the same option."""

WITHOUT_EFFECT: dict[str, str] = {
    "overwrite_output_dir": "scripts may read it; nothing is ever overwritten silently",
    "save_safetensors": "weights are always saved as safetensors",
    "half_precision_backend": "torch's own mixed precision is used",
    "fp16_backend": "torch's own mixed precision is used",
    "fp16_opt_level": "it belonged to apex",
    "use_mps_device": "an MPS device is found by itself",
    "ray_scope": "set the environment variable RAY_SCOPE",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "_n_gpu": "one process drives one device",
    "use_legacy_prediction_loop": "there is one evaluation loop",
    "tpu_metrics_debug": "use debug='tpu_metrics_debug'",
}
"""Older options whose meaning is gone or is the default now; setting one is accepted, said, and changes nothing.
The value can be read back: scripts ask for `overwrite_output_dir` themselves."""

REFUSED: dict[str, str] = {
    "sharded_ddp": "use fsdp='full_shard'",
    "jit_mode_eval": "use torch_compile=True",
    "use_ipex": "use torch_compile=True",
    "mp_parameters": "SageMaker's model parallelism is not available yet",
    "tpu_num_cores": "TPUs are not available yet",
    "past_index": "recurrent memory is not available yet: leave it out",
    "push_to_hub_organization": "use hub_model_id='organization/name'",
}
"""Older options that cannot be served; their inert values are accepted."""

_INERT: dict[str, tuple[Any, ...]] = {
    "sharded_ddp": ("", [], None, False),
    "jit_mode_eval": (False,),
    "use_ipex": (False,),
    "mp_parameters": ("",),
    "tpu_num_cores": (None,),
    "past_index": (-1,),
    "push_to_hub_organization": (None,),
}


OLDER_TYPES: dict[str, Any] = {
    "warmup_ratio": float,
    "fsdp_min_num_params": int,
    "past_index": int,
    "tpu_num_cores": int,
    "_n_gpu": int,
    **dict.fromkeys(("half_precision_backend", "fp16_backend", "fp16_opt_level", "ray_scope", "logging_dir"), str),
    **dict.fromkeys(("sharded_ddp", "mp_parameters", "push_to_hub_organization"), str),
    "fsdp_transformer_layer_cls_to_wrap": str,
}
"""How the command line reads older options that were not renamed; those that are not here are truth values."""

Translator = Callable[[Any, Options], "Problem | None"]


def _warmup_ratio(value: Any, options: Options) -> Problem | None:
    share = float(value)
    if not 0 <= share <= 1:
        return Problem("warmup_ratio", value, "is no share of the run", "give a number from 0 to 1")
    if not options.get("warmup_steps"):
        options["warmup_steps"] = min(share, math.nextafter(1.0, 0.0))  # 1 itself would be one update
    return None


def _choice(option: str, choice: str) -> Translator:
    def put(value: Any, options: Options) -> None:
        if value:
            options[option] = choice

    return put


def _include_inputs(value: Any, options: Options) -> None:
    if value:
        options["include_for_metrics"] = [*(options.get("include_for_metrics") or []), "inputs"]


def _tokens_per_second(value: Any, options: Options) -> None:
    if value:
        options.setdefault("include_num_input_tokens_seen", "all")


def _setting(option: str, key: str) -> Translator:
    def put(value: Any, options: Options) -> Problem | None:
        if not value:
            return None
        settings = options.get(option) or {}
        if not isinstance(settings, dict):
            return Problem(key, value, f"{option} is given too, and as a file or an object", f"put {key} in there")
        options[option] = {**settings, key.removeprefix("fsdp_"): value}
        return None

    return put


TRANSLATED: dict[str, tuple[str, Translator]] = {
    "warmup_ratio": ("warmup_steps (below 1, a share)", _warmup_ratio),
    "group_by_length": (
        "train_sampling_strategy='group_by_length'",
        _choice("train_sampling_strategy", "group_by_length"),
    ),
    "adafactor": ("optim='adafactor'", _choice("optim", "adafactor")),
    "include_inputs_for_metrics": ("include_for_metrics=['inputs']", _include_inputs),
    "include_tokens_per_second": ("include_num_input_tokens_seen", _tokens_per_second),
    "split_batches": ("accelerator_config={'split_batches': ...}", _setting("accelerator_config", "split_batches")),
    "dispatch_batches": (
        "accelerator_config={'dispatch_batches': ...}",
        _setting("accelerator_config", "dispatch_batches"),
    ),
    "fsdp_min_num_params": ("fsdp_config={'min_num_params': ...}", _setting("fsdp_config", "fsdp_min_num_params")),
    "fsdp_transformer_layer_cls_to_wrap": (
        "fsdp_config={'transformer_layer_cls_to_wrap': ...}",
        _setting("fsdp_config", "fsdp_transformer_layer_cls_to_wrap"),
    ),
}
"""Older options that became part of another one: what it is called, and how it is put there."""

OLDER_NAMES: frozenset[str] = frozenset({*RENAMED, *WITHOUT_EFFECT, *REFUSED, *TRANSLATED})


def translate(given: Options, own: Collection[str] = ()) -> tuple[Options, list[Problem]]:
    """Return the options in their newer spellings, and what could not be translated. `given` is not changed.

    Args:
        given: What the user wrote.
        own: Names that mean themselves: a subclass may have an option that is called as an older one was.
    """
    older = [name for name in given if name in OLDER_NAMES and name not in own]
    if not older:
        return dict(given), []
    options = {name: value for name, value in given.items() if name not in older}
    problems: list[Problem] = []
    for name in older:
        value = given[name]
        if name in RENAMED:
            _rename(name, value, options, problems)
        elif name in TRANSLATED:
            _warn(f"{name} is now {TRANSLATED[name][0]}")
            if (problem := TRANSLATED[name][1](value, options)) is not None:
                problems.append(problem)
        elif name in WITHOUT_EFFECT:
            _warn(f"{name} has no effect any more: {WITHOUT_EFFECT[name]}")
        elif value not in _INERT[name]:
            problems.append(Problem(name, value, "is gone", REFUSED[name]))
    return options, problems


def _rename(name: str, value: Any, options: Options, problems: list[Problem]) -> None:
    new = RENAMED[name]
    if new in options and options[new] != value:
        both = Problem(
            name, shown(name, value), f"{new}={shown(new, options[new])!r} was given too", f"give only {new}"
        )
        problems.append(both)
        return
    _warn(f"{name} is now {new}")
    if value is not None:
        options[new] = value


def _warn(message: str) -> None:
    warn(message, FutureWarning)


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's that led here, however deep in the package that is."""
    depth = 1
    while sys._getframe(depth).f_globals.get("__name__", "").startswith("mainspring."):
        depth += 1
    warnings.warn(message, category, stacklevel=depth + 1)
