"""Accelerate's configuration files: the environment equals that of its own launcher, and mistakes are named."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.commands import launch as accelerates
from accelerate.commands.config import config_args

from mainspring.errors import OptionError
from mainspring.launch import accelerate_file
from mainspring.launch.job import Job, Wanted, job_of

COMMON = {
    "compute_environment": "LOCAL_MACHINE",
    "downcast_bf16": "no",
    "machine_rank": 0,
    "main_training_function": "main",
    "num_machines": 1,
    "num_processes": 2,
    "rdzv_backend": "static",
    "same_network": True,
    "tpu_env": [],
    "tpu_use_cluster": False,
    "tpu_use_sudo": False,
    "use_cpu": False,
}
"""What `accelerate config` writes into every file."""

FORMS: dict[str, dict[str, Any]] = {
    "ddp": {"distributed_type": "MULTI_GPU", "mixed_precision": "bf16"},
    "ddp on two machines": {
        "distributed_type": "MULTI_GPU",
        "main_process_ip": "192.168.20.1",
        "main_process_port": 9898,
        "mixed_precision": "fp16",
        "num_machines": 2,
        "num_processes": 8,
    },
    "compiled": {
        "distributed_type": "MULTI_GPU",
        "dynamo_config": {"dynamo_backend": "INDUCTOR", "dynamo_mode": "reduce-overhead"},
        "debug": True,
        "enable_cpu_affinity": True,
    },
    "fsdp": {
        "distributed_type": "FSDP",
        "mixed_precision": "bf16",
        "fsdp_config": {
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_backward_prefetch": "BACKWARD_POST",
            "fsdp_forward_prefetch": True,
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_offload_params": False,
            "fsdp_sharding_strategy": 1,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_sync_module_states": True,
            "fsdp_transformer_layer_cls_to_wrap": "BertLayer",
            "fsdp_use_orig_params": True,
        },
    },
    "fsdp2": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "auto_wrap_policy": "SIZE_BASED_WRAP",
            "min_num_params": 2000,
            "activation_checkpointing": True,
        },
        "parallelism_config": {"parallelism_config_tp_size": 2},
    },
    "deepspeed by file": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"deepspeed_config_file": "zero3.json", "zero3_init_flag": True},
    },
    "deepspeed plugin": {
        "distributed_type": "DEEPSPEED",
        "mixed_precision": "bf16",
        "deepspeed_config": {
            "gradient_accumulation_steps": 4,
            "gradient_clipping": 0.7,
            "offload_optimizer_device": "cpu",
            "offload_param_device": "none",
            "zero3_init_flag": True,
            "zero_stage": 2,
        },
    },
    "old keys": {"distributed_type": "MULTI_GPU", "fp16": True, "dynamo_backend": "EAGER"},
}

OURS = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "CUDA_VISIBLE_DEVICES")
"""What the variables begin with by which a run is configured."""


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables of other launches, no default file, and a script to start."""
    for name in os.environ:
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """`file(keys)`: the path of a file with these keys beside the common ones."""

    def write(keys: dict[str, Any], name: str = "config.yaml", common: bool = True) -> str:
        content = {**(COMMON if common else {}), **keys}
        dump = json.dumps if name.endswith(".json") else yaml.safe_dump
        Path(tmp_path / name).write_text(dump(content))
        return str(tmp_path / name)

    return write


def accelerates_start(path: str, *flags: str) -> tuple[dict[str, str], Namespace]:
    """The variables and the torchrun options with which `accelerate launch` would start a script."""
    seen: list[tuple[dict[str, str], Namespace]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.run.run", lambda args: seen.append((dict(os.environ), args)))
        patch.setattr(accelerates, "is_deepspeed_available", lambda: True)
        patch.setitem(sys.modules, "deepspeed.launcher.runner", SimpleNamespace(DEEPSPEED_ENVIRONMENT_NAME=""))
        words = ["--config_file", path, *flags, "train.py"]
        accelerates.launch_command(accelerates.launch_command_parser().parse_args(words))
    ((environment, options),) = seen
    return environment, options


def ours(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(OURS)}


def start(path: str, **flags: Any) -> Job:
    return job_of(Wanted("train.py", config=path, **flags))


@pytest.mark.filterwarnings("ignore:Port")
@pytest.mark.parametrize("form", FORMS)
def test_the_environment_is_that_of_accelerates_own_launcher(form: str, file: Callable[..., str]) -> None:
    path = file(FORMS[form])
    wanted, options = accelerates_start(path)
    job = start(path)
    assert ours(job.environment) == ours(wanted)
    assert ours(wanted)["ACCELERATE_MIXED_PRECISION"] == FORMS[form].get("mixed_precision", job_precision(form))
    assert job.nproc == int(options.nproc_per_node)
    assert str(job.meeting.nnodes[1]) == options.nnodes.split(":")[-1]


def job_precision(form: str) -> str:
    return "fp16" if FORMS[form].get("fp16") else "no"


def test_json_files_are_read_alike(file: Callable[..., str]) -> None:
    keys = FORMS["deepspeed plugin"]
    assert start(file(keys, "config.json")).environment == start(file(keys)).environment


def test_the_machines_of_the_file_are_taken_over(file: Callable[..., str]) -> None:
    path = file(FORMS["ddp on two machines"])
    _, options = accelerates_start(path)
    job = start(path)
    assert (job.nproc, job.meeting.nnodes, job.meeting.rank) == (4, (2, 2), 0)
    assert job.meeting.endpoint == options.rdzv_endpoint == "192.168.20.1:9898"
    assert job.meeting.backend == options.rdzv_backend == "static"


def test_flags_win_over_the_file(file: Callable[..., str]) -> None:
    path = file(FORMS["ddp on two machines"])
    flags = {"nproc": 3, "node_rank": 1, "master_port": 1234, "mixed_precision": "bf16", "rdzv_backend": "c10d"}
    job = start(path, **flags)
    assert (job.nproc, job.meeting.endpoint, job.meeting.backend) == (3, "192.168.20.1:1234", "c10d")
    assert job.environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert start(path, node_rank=1).meeting.rank == 1
    assert start(path, master_addr="other").meeting.endpoint == "other:9898"
    one = start(path, nnodes="1", nproc=2)
    assert (one.nproc, one.meeting.nnodes, one.meeting.endpoint) == (2, (1, 1), "127.0.0.1:9898")


def test_the_cpu_of_the_file_reaches_the_run(file: Callable[..., str]) -> None:
    """Accelerate's launcher forgets it for several processes, and starts one where the file says MULTI_CPU."""
    for kind in ("MULTI_CPU", "MULTI_GPU"):
        job = start(file({"distributed_type": kind, "use_cpu": True}))
        assert (job.nproc, job.environment["ACCELERATE_USE_CPU"]) == (2, "true")


def test_a_disk_for_offloading_reaches_the_run(file: Callable[..., str]) -> None:
    """Accelerate's launcher forgets it, and its plugin reads this variable."""
    keys = {"zero_stage": 3, "offload_param_device": "nvme", "offload_param_nvme_path": "/disk"}
    job = start(file({"distributed_type": "DEEPSPEED", "deepspeed_config": keys}))
    assert job.environment["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH"] == "/disk"


def test_a_key_that_accelerate_has_renamed_still_acts(file: Callable[..., str]) -> None:
    keys = {"fsdp_backward_prefetch_policy": "BACKWARD_POST"}
    job = start(file({"distributed_type": "FSDP", "fsdp_config": keys}))
    assert job.environment["FSDP_BACKWARD_PREFETCH"] == "BACKWARD_POST"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_proceses": 4}, "^num_proceses=4: is no key .*did you mean 'num_processes'"),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_offload_param": True}},
            "fsdp_offload_param=True: is no key of fsdp_config .*did you mean 'fsdp_offload_params'",
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stag": 2}},
            "zero_stag=2: is no key of deepspeed_config .*did you mean 'zero_stage'",
        ),
        ({"fsdp_config": {"fsdp_version": 2}}, "is for distributed_type FSDP, and the file says MULTI_GPU"),
        ({"megatron_lm_config": {"megatron_lm_tp_degree": 2}}, "is for distributed_type MEGATRON_LM"),
        ({"mpirun_config": "hosts"}, "mpirun_config='hosts': holds no keys"),
        ({"fsdp_config": "yes"}, "fsdp_config='yes': holds no keys"),
        ({"distributed_type": None}, "distributed_type=None: the file does not say"),
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type='MEGATRON_LM'.*use FSDP"),
        ({"distributed_type": "XLA"}, "distributed_type='XLA'.*accelerate launch"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "compute_environment='AMAZON_SAGEMAKER'"),
        ({"num_machines": 3, "num_processes": 8, "main_process_ip": "h"}, "num_processes=8: cannot be shared by 3"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": "yes"}, "deepspeed_config='yes': holds no keys"),
        ({"num_machines": "two"}, "^num_machines='two': is no whole number from 1 on"),
        ({"num_processes": 0}, "^num_processes=0: is no whole number from 1 on"),
        ({"machine_rank": 0.5}, r"^machine_rank=0\.5: is no whole number from 0 on"),
        ({"num_machines": 2}, "several machines need to know where they meet"),
        ({"mpirun_config": {"mpirun_hostfile": "hosts"}}, "mpirun_hostfile='hosts'"),
        (
            {
                "distributed_type": "DEEPSPEED",
                "num_machines": 2,
                "deepspeed_config": {"deepspeed_multinode_launcher": "pdsh"},
            },
            "deepspeed_multinode_launcher='pdsh'.*standard",
        ),
    ],
)
def test_mistakes_are_named(keys: dict[str, Any], message: str, file: Callable[..., str]) -> None:
    with pytest.raises(OptionError, match=message):
        start(file({"distributed_type": "MULTI_GPU", **keys}))


def test_several_mistakes_are_one_error(file: Callable[..., str]) -> None:
    with pytest.raises(OptionError) as caught:
        start(file({"distributed_type": "FSDP", "num_procs": 2, "fsdp_config": {"polcy": 1}}))
    assert [problem.option for problem in caught.value.problems] == ["num_procs", "polcy"]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        start(str(tmp_path / "absent.yaml"))
    for text in ("[1", "word", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.yaml"):
            start(str(tmp_path / "bad.yaml"))


def test_the_default_file_is_found_where_accelerate_puts_it(
    file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert accelerate_file.default_file() is None
    path = file(FORMS["ddp"], "default_config.yaml")
    assert accelerate_file.default_file() == path
    assert job_of(Wanted("train.py")).nproc == 2
    assert job_of(Wanted("train.py", nproc=3)).environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    for unread in (Wanted("train.py", reads_default_config=False), Wanted("train.py", cpu=True)):
        job = job_of(unread)
        assert job.nproc == 1
        assert "ACCELERATE_MIXED_PRECISION" not in job.environment
