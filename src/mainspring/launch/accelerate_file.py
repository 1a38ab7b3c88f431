"""Accelerate's configuration files: read by its own classes, and translated by its own launcher's functions.

What a file comes to is the environment in which `accelerate launch` would start the script. Keys that Accelerate would
pass over in silence are errors here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mainspring.arguments.config_files import options_of_json, options_of_yaml
from mainspring.errors import OptionError, Problem, did_you_mean

if TYPE_CHECKING:
    from argparse import Namespace

    from accelerate.commands.config.config_args import ClusterConfig

_SECTIONS = MappingProxyType(
    {
        "fsdp_config": "fsdp_",
        "deepspeed_config": "",
        "dynamo_config": "dynamo_",
        "fp8_config": "fp8_",
        "parallelism_config": "parallelism_config_",
        "mpirun_config": "mpirun_",
    }
)
"""Keys that hold keys of their own, and what the names of those begin with; Accelerate lets that be left out."""

_NEEDED_KINDS = MappingProxyType(
    {"fsdp_config": "FSDP", "deepspeed_config": "DEEPSPEED", "megatron_lm_config": "MEGATRON_LM"}
)
"""Sections for one kind of run alone."""

_NUMBERS = MappingProxyType({"num_machines": 1, "num_processes": 1, "machine_rank": 0, "main_process_port": 0})
"""Keys that hold whole numbers, and from which on."""

_OLD_KEYS = ("fp16", "dynamo_backend")
"""What Accelerate still reads in files of older versions."""

_OLD_FSDP_KEYS = MappingProxyType({"fsdp_backward_prefetch_policy": "fsdp_backward_prefetch"})
"""Keys of older files that Accelerate has renamed, and would now pass over."""

_ELSEWHERE = MappingProxyType(
    {
        "TPU": "start it with `accelerate launch`, on the TPU host",
        "XLA": "start it with `accelerate launch`, on the TPU host",
        "MEGATRON_LM": "Megatron-LM trains with its own loop: use FSDP or DeepSpeed",
    }
)
"""Kinds of runs that torch's elastic launcher does not start."""


_TORCHS_OWN = "standard"
"""Accelerate's name for torch's launcher, among those that start DeepSpeed on several machines."""


def default_file() -> str | None:
    """The file that `accelerate config` writes, where Accelerate looks for it; None when there is none."""
    from accelerate.commands.config.config_args import default_config_file

    return str(default_config_file) if os.path.isfile(default_config_file) else None


def read(path: str) -> ClusterConfig:
    """Read a configuration file.

    Args:
        path: A file in JSON (`.json`) or YAML.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON or YAML.
        OptionError: It has keys that are none, or is for a kind of run that is started otherwise.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    content = (options_of_json if path.endswith(".json") else options_of_yaml)(path)
    checks = (_unknown_keys, _no_numbers, _idle_sections, _started_elsewhere)
    if problems := [problem for check in checks for problem in check(content)]:
        raise OptionError(problems)
    config: ClusterConfig = load_config_from_file(path)
    return config


def _unknown_keys(content: Mapping[str, Any]) -> list[Problem]:
    """Every key that Accelerate does not have, at the top and in the sections."""
    from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig

    is_local = content.get("compute_environment", "LOCAL_MACHINE") == "LOCAL_MACHINE"
    names = [*(field.name for field in fields(ClusterConfig if is_local else SageMakerConfig)), *_OLD_KEYS]
    problems = [_no_key(key, value, names) for key, value in content.items() if key not in names]
    for section, prefix in _SECTIONS.items():
        inside = content.get(section) or {}
        if not isinstance(inside, Mapping):
            problems.append(Problem(section, inside, "holds no keys", "write one key per line below it"))
            continue
        known = [name for name in (*vars(_parsed([])), *_OLD_FSDP_KEYS) if name.startswith(prefix)]
        for key, value in inside.items():
            if key not in known and f"{prefix}{key}" not in known:
                problems.append(_no_key(key, value, known, f"of {section} "))
    return problems


def _no_key(key: str, value: object, known: list[str], where: str = "") -> Problem:
    why = f"is no key {where}of Accelerate's configuration files"
    return Problem(str(key), value, why, f"leave it out{did_you_mean(str(key), known)}")


def _no_numbers(content: Mapping[str, Any]) -> list[Problem]:
    """Keys for whole numbers that hold something else. Accelerate writes -1 for processes that nobody has counted."""
    return [
        Problem(key, value, f"is no whole number from {least} on", "write one")
        for key, least in _NUMBERS.items()
        if (value := content.get(key)) not in (None, -1)
        and not (re.fullmatch(r"\d+", str(value)) and int(value) >= least)
    ]


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The keys in a section; none where it is absent, or holds something else."""
    inside = content.get(name)
    return inside if isinstance(inside, Mapping) else {}


def _idle_sections(content: Mapping[str, Any]) -> list[Problem]:
    """Sections for a kind of run that this is not."""
    kind = content.get("distributed_type")
    fix = "write that as distributed_type, or leave the section out"
    return [
        Problem(section, content[section], f"is for distributed_type {needed}, and the file says {kind}", fix)
        for section, needed in _NEEDED_KINDS.items()
        if content.get(section) and kind != needed
    ]


def _started_elsewhere(content: Mapping[str, Any]) -> list[Problem]:
    place, kind = content.get("compute_environment", "LOCAL_MACHINE"), content.get("distributed_type")
    if place != "LOCAL_MACHINE":
        fix = "start it with `accelerate launch`, which hands the script to that service"
        return [Problem("compute_environment", place, "is not this machine", fix)]
    if kind is None:
        return [Problem("distributed_type", None, "the file does not say", "write MULTI_GPU, FSDP, DEEPSPEED or NO")]
    if fix := _ELSEWHERE.get(str(kind), ""):
        return [Problem("distributed_type", kind, "is not started by torch's launcher", fix)]
    launcher = _section(content, "deepspeed_config").get("deepspeed_multinode_launcher", _TORCHS_OWN)
    if str(content.get("num_machines") or 1) != "1" and launcher != _TORCHS_OWN:
        fix = f"write {_TORCHS_OWN}, and start the same command on every machine"
        return [Problem("deepspeed_multinode_launcher", launcher, "starts the other machines by itself", fix)]
    hostfile = _section(content, "mpirun_config").get("mpirun_hostfile")
    if hostfile:
        fix = "start the script with mpirun itself, which sets the variables that a run reads"
        return [Problem("mpirun_hostfile", hostfile, "is for MPI's launcher", fix)]
    return []


def environment(path: str, config: ClusterConfig, flags: Mapping[str, object]) -> dict[str, str]:
    """The variables in which `accelerate launch` would start a script with this file, beside those that are set.

    Args:
        path: The file.
        config: What `read` made of it.
        flags: Options of `accelerate launch` that win over the file, by name; None leaves it to the file.

    Raises:
        ValueError: Accelerate refuses the combination.
    """
    from accelerate.commands import launch
    from accelerate.utils import launch as preparation

    given = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    args, defaults, is_precision_of_file = launch._validate_launch_command(_parsed(["--config_file", path, *given]))
    for old, new in _OLD_FSDP_KEYS.items():
        if old in config.fsdp_config:
            setattr(args, new, config.fsdp_config[old])
    if args.use_deepspeed:
        names = [*defaults.deepspeed_config, *(["mixed_precision"] if is_precision_of_file else [])]
        args.deepspeed_fields_from_accelerate_config = ",".join(names)
        args.deepspeed_multinode_launcher = _TORCHS_OWN
        _, whole = preparation.prepare_deepspeed_cmd_env(args)
        whole |= _nvme_paths(config)
    else:
        whole = preparation.prepare_multi_gpu_env(args)
    return {name: value for name, value in whole.items() if os.environ.get(name) != value and name != "OMP_NUM_THREADS"}


def _nvme_paths(config: ClusterConfig) -> dict[str, str]:
    """What Accelerate's plugin reads, and its launcher forgets to say."""
    names = ("offload_optimizer_nvme_path", "offload_param_nvme_path")
    given = {name: config.deepspeed_config.get(name) for name in names}
    return {f"ACCELERATE_DEEPSPEED_{name.upper()}": str(path) for name, path in given.items() if path is not None}


def _parsed(words: list[str]) -> Namespace:
    from accelerate.commands.launch import launch_command_parser

    parsed: Namespace = launch_command_parser().parse_args([*words, "script.py"])
    return parsed
