"""Spellings of the older generation: each is read as what it meant, with one warning that names the new one."""

from __future__ import annotations

import os
import sys
import time
import typing
import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from mainspring.arguments import fsdp_words
from mainspring.arguments.masking import mask_of
from mainspring.arguments.normalise import read
from mainspring.arguments.option import file_name
from mainspring.arguments.translations import (
    NOTHING_SETTLED,
    TRANSLATED,
    Options,
    Settled,
    given_too,
    with_organization,
)
from mainspring.arguments.typed import accepted_types
from mainspring.errors import Problem

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments

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
    "_n_gpu": "one process that no launcher started drives all GPUs that CUDA_VISIBLE_DEVICES shows it",
    "use_legacy_prediction_loop": "there is one evaluation loop",
}
"""Older options whose meaning is gone or is the default now; setting one is accepted, said, and changes nothing.
The value can be read back: scripts ask for `overwrite_output_dir` themselves."""

REFUSED: dict[str, str] = {
    "sharded_ddp": "use fsdp=True",
    "jit_mode_eval": "use torch_compile=True",
    "use_ipex": "use torch_compile=True",
    "mp_parameters": "SageMaker's model parallelism is not available; use fsdp=True",
    "tpu_num_cores": "start one process for each TPU, as torch_xla's own launcher does",
}
"""Older options that cannot be served; their inert values are accepted."""

_INERT: dict[str, tuple[Any, ...]] = {
    "sharded_ddp": ("", [], None, False),
    "jit_mode_eval": (False,),
    "use_ipex": (False,),
    "mp_parameters": ("",),
    "tpu_num_cores": (None,),
}

_UNSET: dict[str, Any] = {
    **{name: values[0] for name, values in _INERT.items()},
    **dict.fromkeys(("overwrite_output_dir", "use_mps_device", "use_legacy_prediction_loop"), False),
    **dict.fromkeys(("half_precision_backend", "fp16_backend"), "auto"),
    "save_safetensors": True,
    "fp16_opt_level": "O1",
    "ray_scope": "last",
}
"""What older options without a place among the newer ones read as, where they were not set."""

ON_UNLESS_SAID: frozenset[str] = frozenset(name for name, value in _UNSET.items() if value is True)
"""Older options that were on unless something was said: `--no_x` switches them off."""

_SAYS_NOTHING: dict[str, tuple[Any, ...]] = {
    "no_cuda": (False,),
    **dict.fromkeys(("per_gpu_train_batch_size", "per_gpu_eval_batch_size", "torchdynamo"), (None,)),
    **dict.fromkeys(("push_to_hub_model_id", "push_to_hub_token"), (None,)),
}
"""Values of renamed options that leave the newer one as it is: 4.37 saved them beside it."""

DYNAMO_BACKENDS = (
    "eager",
    "aot_eager",
    "inductor",
    "nvfuser",
    "aot_nvfuser",
    "aot_cudagraphs",
    "ofi",
    "fx2trt",
    "onnxrt",
    "ipex",
)
"""What `torchdynamo` took, by the documentation of 4.37."""

_BACKENDS = Literal["auto", "apex", "cpu_amp", "cuda_amp"]

OLDER_TYPES: dict[str, Any] = {
    **{name: translation.kind for name, translation in TRANSLATED.items()},
    "half_precision_backend": _BACKENDS,
    "fp16_backend": _BACKENDS,
    "fp16_opt_level": Literal["O0", "O1", "O2", "O3"],
    "ray_scope": str,
    "logging_dir": str | None,
    "save_safetensors": bool | None,
    "_n_gpu": int,
    "sharded_ddp": str | list[str] | bool | None,
    "mp_parameters": str,
    "tpu_num_cores": int | None,
}
"""The types of older options that were not renamed; those that are not here are truth values."""

OLDER_NAMES: frozenset[str] = frozenset({*RENAMED, *WITHOUT_EFFECT, *REFUSED, *TRANSLATED})


def translate(
    given: Options, own: Collection[str] = (), settled: Settled = NOTHING_SETTLED
) -> tuple[Options, list[Problem]]:
    """Return the options in their newer spellings, and what could not be translated. `given` is not changed.

    Args:
        given: What the user wrote.
        own: Names that mean themselves: a subclass may have an option that is called as an older one was.
        settled: The options of finished arguments, where these are set on them.
    """
    older = [name for name in given if name in OLDER_NAMES and name not in own]
    words = fsdp_words.words_of(given.get("fsdp"))
    if not older and not words:
        return dict(given), []
    options = {name: value for name, value in given.items() if name not in older}
    written = with_organization(given)
    found = [_rename(name, written[name], options) for name in older if name in RENAMED]
    found += [_put(name, given[name], options, settled) for name in older if name not in RENAMED]
    if words:
        _warn(f"fsdp in words is now {fsdp_words.NOW}")
        found.append(fsdp_words.put_words(words, options, settled))
    return options, [problem for problem in found if problem is not None]


def read_older(name: str, value: Any) -> tuple[Any, Problem | None]:
    """The value of an older option that was not renamed, as its type, or what is wrong with it."""
    kind = OLDER_TYPES.get(name, bool)
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
    value, problem = read(name, value, accepted_types(kind), choices, False)
    if name != "logging_dir" or problem is not None or value is None:
        return value, problem
    if complaint := file_name(value):
        return value, Problem(name, value, complaint, "correct it")
    return os.path.expanduser(value), None


def kept(given: Options, own: Collection[str] = ()) -> Options:
    """The older options among those given that do nothing here, but that scripts read back."""
    return {name: read_older(name, given[name])[0] for name in given if name in WITHOUT_EFFECT and name not in own}


def older_value(args: TrainingArguments, name: str) -> Any:
    """What an option of the older generation would read as, where it was not set."""
    if name in RENAMED:
        _warn(f"{name} is now {RENAMED[name]}")
        return getattr(args, RENAMED[name])
    if name in TRANSLATED:
        _warn(f"{name} is now {TRANSLATED[name].now}")
        return TRANSLATED[name].read(args)
    _warn_of_gone(name)
    if name == "_n_gpu":
        return args.n_gpu
    if name == "logging_dir":
        return vars(args).setdefault(name, older_logging_dir(args))  # it holds the time: the next read is to be equal
    return _UNSET[name]


def _put(name: str, value: Any, options: Options, settled: Settled) -> Problem | None:
    """Put an option that was not renamed where it belongs."""
    value, problem = read_older(name, value)
    if problem is not None:
        return problem
    if name in TRANSLATED:
        _warn(f"{name} is now {TRANSLATED[name].now}")
        return TRANSLATED[name].put(value, options, settled)
    if name in REFUSED and value not in _INERT[name]:
        return Problem(name, value, "is gone", REFUSED[name])
    _warn_of_gone(name)
    return None


def _rename(name: str, value: Any, options: Options) -> Problem | None:
    new = RENAMED[name]
    if isinstance(value, str) and value == mask_of(name):  # from saved options, which hold no tokens
        value = None
    nothing = any(value is silent for silent in _SAYS_NOTHING.get(name, ()))
    if name == "torchdynamo" and not nothing:
        value, problem = read(name, value, frozenset({str}), DYNAMO_BACKENDS, False)
        if problem is not None:
            return problem
    if new in options and not nothing and not _same(options[new], value):
        return given_too(name, value, new, options[new])
    _warn(f"{name} is now {new}")
    if not nothing or (new not in options and value is not None):
        options[new] = value
    return None


def _same(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except (TypeError, ValueError):  # arrays are compared item by item
        return False


def older_logging_dir(args: TrainingArguments) -> str:
    """Where 4.37 would have written its logs, by its default."""
    return os.path.join(str(args.output_dir), "runs", f"{time.strftime('%b%d_%H-%M-%S')}_{os.uname().nodename}")


def _warn_of_gone(name: str) -> None:
    """Warn of an older option that no newer one replaces."""
    if name in WITHOUT_EFFECT:
        _warn(f"{name} has no effect any more: {WITHOUT_EFFECT[name]}")
    else:
        _warn(f"{name} is gone: {REFUSED[name]}")


def _warn(message: str) -> None:
    warn(message, FutureWarning)


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's that led here, however deep in the package that is."""
    depth = 1
    while sys._getframe(depth).f_globals.get("__name__", "").startswith("mainspring."):
        depth += 1
    warnings.warn(message, category, stacklevel=depth + 1)
