"""The third phase: device and processes, looked up on first use, once."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mainspring import TrainingArguments
from mainspring.arguments import runtime
from mainspring.arguments.enums import ParallelMode
from mainspring.errors import OptionError, ProcessesError


def python(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process whose environment names no launcher but the given one."""
    kept = {n: v for n, v in os.environ.items() if n not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**kept, **variables},
    )


def test_one_process_on_the_cpu() -> None:
    args = TrainingArguments("out", use_cpu=True, per_device_train_batch_size=3, per_device_eval_batch_size=5)
    assert args.device == torch.device("cpu")
    assert (args.n_gpu, args.world_size, args.process_index, args.local_process_index) == (0, 1, 0, 0)
    assert (args.train_batch_size, args.eval_batch_size) == (3, 5)
    assert args.parallel_mode is ParallelMode.NOT_PARALLEL
    assert args.should_log
    assert args.should_save
    assert args.place_model_on_device is None
    assert args.ddp_timeout_delta == timedelta(seconds=1800)
    assert args.distributed_state.num_processes == 1
    with args.main_process_first(desc="nothing"):
        pass


@pytest.mark.filterwarnings("ignore:ddp_timeout:UserWarning")
def test_the_place_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    find = runtime.find_place
    monkeypatch.setattr(runtime, "find_place", lambda **options: calls.append(options) or find(**options))
    args = TrainingArguments("out", use_cpu=True, ddp_timeout=60)
    assert calls == []
    assert {args.world_size for _ in range(3)} == {1}
    assert args.device.type == "cpu"
    assert calls == [{"use_cpu": True, "backend": None, "timeout_s": 60, "local_rank": -1, "configured": False}]


DDP_OPTIONS = {
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": 10,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 9,
    "average_tokens_across_devices": False,
    "local_rank": 0,
    "log_level_replica": "error",
    "log_on_each_node": False,
}

DEFAULTS = {"ddp_timeout": 1800, "average_tokens_across_devices": True, "local_rank": -1, "log_on_each_node": True}


def test_options_between_processes_are_one_warning_in_a_run_of_one() -> None:
    args = TrainingArguments("out", use_cpu=True, **DDP_OPTIONS)
    with pytest.warns(UserWarning, match="torchrun") as caught:
        world_size = args.world_size
    assert (world_size, args.device.type) == (1, "cpu")
    assert [warning.filename for warning in caught] == [__file__]
    assert all(f"{name}={value}" in str(caught[0].message) for name, value in DDP_OPTIONS.items())


@pytest.mark.parametrize(("world_size", "options"), [(2, DDP_OPTIONS), (1, DEFAULTS)])
def test_options_between_processes_that_act_are_not_spoken_of(
    world_size: int, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = runtime.Place(torch.device("cpu"), world_size, 0, 0)
    monkeypatch.setattr(runtime, "find_place", lambda **_: place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TrainingArguments("out", use_cpu=True, **options).world_size == world_size


def test_what_set_logging_sets_of_its_own_accord_is_not_spoken_of() -> None:
    args = TrainingArguments("out", use_cpu=True).set_logging(steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (args.world_size, args.log_on_each_node, args.log_level_replica) == (1, False, "passive")


def test_a_second_run_may_choose_the_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate keeps one state per process: the second arguments must not inherit the first's device."""
    from accelerate import PartialState

    made = []

    class State:
        _shared_state: dict[str, object] = {}

        def __init__(self, cpu: bool = False, **_: object) -> None:
            if not State._shared_state:
                kind = "cpu" if cpu else "cuda"
                made.append(kind)
                State._shared_state.update(
                    device=torch.device(kind), num_processes=1, process_index=0, local_process_index=0
                )
            self.__dict__ = State._shared_state

        @staticmethod
        def _reset_state() -> None:
            State._shared_state.clear()

    assert hasattr(PartialState, "_reset_state")
    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr(runtime, "_has_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_cpu, on_gpu = TrainingArguments("out", use_cpu=True), TrainingArguments("out")
    assert on_cpu.device.type == "cpu"
    assert on_gpu.device.type == "cuda"
    assert made == ["cpu", "cuda"]
    assert on_cpu.device.type == "cpu"  # reading it again does not take the device from the run that has it
    assert on_gpu.n_gpu == 1
    assert made == ["cpu", "cuda"]
    assert on_cpu.distributed_state.device.type == "cpu"  # building a run on it does
    assert made == ["cpu", "cuda", "cpu"]


def test_a_state_made_by_someone_else_is_kept_where_it_fits() -> None:
    script = """
from accelerate import PartialState
state = PartialState(cpu=False)
before = dict(state.__dict__)
from mainspring import TrainingArguments
args = TrainingArguments("out", use_cpu=state.device.type == "cpu")
assert args.device == state.device and state.__dict__ == before, (state.__dict__, before)
"""
    done = python(script)
    assert done.returncode == 0, done.stderr


DEVICES = """
import types, torch, accelerate.state as state
from accelerate.state import PartialState
from mainspring import TrainingArguments

there = set()
asked = lambda kind: lambda *_: kind in there
torch.utils.rename_privateuse1_backend("npu")  # as torch_npu does
torch._register_device_module("npu", types.SimpleNamespace(is_available=asked("npu")))
torch.cuda.is_available, torch.cuda.current_device, torch.cuda.device_count = asked("cuda"), lambda: 0, lambda: 1
torch.xpu.is_available = state.is_xpu_available = asked("xpu")
torch.backends.mps.is_available = state.is_mps_available = asked("mps")
state.is_npu_available = asked("npu")
for kinds in (["cuda"], ["xpu"], ["npu"], ["mps"], [], ["cuda", "xpu"]):
    there.clear()
    there.update(kinds)
    for options in ({}, {"use_cpu": True}):
        PartialState._reset_state()
        print(TrainingArguments("out", **options).device, end=" ")
"""


def test_an_accelerator_that_is_there_is_found_and_use_cpu_wins() -> None:
    done = python(DEVICES)
    assert done.stdout == "cuda:0 cpu xpu cpu npu cpu mps cpu cpu cpu cuda:0 cpu ", done.stderr


# ---- number formats ----


@pytest.mark.parametrize("name", ["half_precision_backend", "fp16_backend"])
def test_another_backend_of_half_precision_is_refused_where_it_would_act(name: str) -> None:
    def device(backend: str, **options: Any) -> str:
        with pytest.warns(FutureWarning, match=f"{name} has no effect any more"):
            args = TrainingArguments("out", use_cpu=True, **{name: backend}, **options)
        return args.device.type

    for accepted in ("auto", "cpu_amp", "cuda_amp"):
        assert device(accepted, bf16=True) == "cpu"
    assert device("apex") == "cpu"
    with pytest.raises(OptionError, match=f"^{name}='apex': NVIDIA's apex is not used .*leave it out"):
        device("apex", bf16=True)


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(OptionError, match="^tf32=True: cpu has no TF32"):
        TrainingArguments("out", tf32=True, use_cpu=True).device  # noqa: B018


def test_tf32_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability in ((8, 0), (7, 5)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda answer=capability: answer)
        if capability >= (8, 0):
            runtime.check_precision(mixed_precision="no", tf32=True, device_type="cuda")
        else:
            with pytest.raises(OptionError, match="^tf32=True: this GPU has no TF32"):
                runtime.check_precision(mixed_precision="no", tf32=True, device_type="cuda")


def test_bf16_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=supported: answer)
        if supported:
            runtime.check_precision(mixed_precision="bf16", tf32=None, device_type="cuda")
        else:
            with pytest.raises(OptionError, match="bf16"):
                runtime.check_precision(mixed_precision="bf16", tf32=None, device_type="cuda")
    runtime.check_precision(mixed_precision="bf16", tf32=False, device_type="cpu")


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, "as before"),
        ({"tf32": True}, True),
        ({"tf32": False}, False),
        ({"torch_compile": True}, True),
        ({"torch_compile": True, "bf16": True}, True),
        ({"torch_compile": True, "fp16": True}, "as before"),
        ({"torch_compile": True, "tf32": False}, False),
    ],
)
def test_tf32_is_applied_with_the_device(
    options: dict[str, bool], allowed: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = runtime.Place(torch.device("cuda", 0), 1, 0, 0)
    monkeypatch.setattr(runtime, "find_place", lambda **_: place)
    monkeypatch.setattr(runtime, "has_tf32", lambda device_type: device_type == "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    matmul, cudnn = SimpleNamespace(allow_tf32="as before"), SimpleNamespace(allow_tf32="as before")
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    args = TrainingArguments("out", **options)
    assert matmul.allow_tf32 == "as before"
    assert args.device.type == "cuda"
    assert matmul.allow_tf32 == cudnn.allow_tf32 == allowed


def test_the_setting_of_tf32_can_still_be_read() -> None:
    """Compiling reads it, and not all flags of torch can be read beside each other."""
    script = (
        "import torch; from mainspring.arguments import runtime; runtime.has_tf32 = lambda _: True\n"
        "runtime.apply_tf32(True, 'cuda'); print(torch.get_float32_matmul_precision())"
    )
    done = python(script)
    assert done.stdout == "high\n", done.stderr


def test_tf32_does_not_touch_the_cpu() -> None:
    before = torch.get_float32_matmul_precision()
    assert TrainingArguments("out", use_cpu=True, tf32=False).device.type == "cpu"
    assert torch.get_float32_matmul_precision() == before


def test_one_process_drives_all_gpus_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(device=torch.device("cuda"), num_processes=1, process_index=0, local_process_index=0)
    monkeypatch.setattr(runtime, "processes", lambda **_: state)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    runtime._say_that_gpus_share_batches.cache_clear()
    runs = [TrainingArguments("out", per_device_train_batch_size=3) for _ in range(2)]
    with pytest.warns(UserWarning, match="4 GPUs are visible to one process.*torchrun --nproc_per_node 4") as said:
        places = [args.device for args in runs]
    assert len(said) == 1
    assert places == [torch.device("cuda", 2)] * 2
    assert (runs[0].n_gpu, runs[0].train_batch_size, runs[0].parallel_mode) == (4, 12, "not_distributed")
    runtime._say_that_gpus_share_batches.cache_clear()


def test_a_launched_process_drives_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime._driven("cuda") == 1
    assert runtime._driven("cpu") == 0


@pytest.mark.parametrize(
    ("options", "environment", "precision"),
    [
        ({}, None, "no"),
        ({"bf16": True}, None, "bf16"),
        ({"fp16": True}, None, "fp16"),
        ({}, "bf16", "bf16"),
        ({}, "BF16", "bf16"),
        ({"fp16": True}, "bf16", "fp16"),
    ],
)
def test_the_launcher_may_choose_the_precision(
    options: dict[str, bool], environment: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if environment is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
    assert TrainingArguments("out", **options).mixed_precision == precision


# ---- worlds ----

ASK = (
    "from mainspring import TrainingArguments; print(TrainingArguments('out', use_cpu=True, ddp_timeout=5).world_size)"
)


def test_a_world_that_nobody_started_is_refused_at_once() -> None:
    done = python(ASK, WORLD_SIZE="2")
    assert done.returncode != 0
    assert "RuntimeError: WORLD_SIZE=2 is set, but RANK, MASTER_ADDR" in done.stderr
    assert "torchrun" in done.stderr


def test_a_world_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {"device": torch.device("cpu"), "num_processes": 1})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)  # so that no other group can be formed
    with pytest.raises(RuntimeError, match="WORLD_SIZE=2, but this process sees a world of 1"):
        TrainingArguments("out", use_cpu=True).world_size  # noqa: B018


def test_the_launcher_may_choose_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import PartialState

    made = []
    monkeypatch.setattr(runtime, "_has_accelerator", lambda: True)
    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setattr(PartialState, "__init__", lambda self, cpu=False, **_: made.append(cpu))
    for value in ("true", "0"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", value)
        runtime.processes(use_cpu=False, backend=None, timeout_s=5, local_rank=-1)
    assert made == [True, False]


def test_a_world_of_one_needs_no_launcher() -> None:
    done = python(ASK, WORLD_SIZE="1")
    assert done.stdout == "1\n", done.stderr


def test_a_local_rank_without_a_launcher_starts_no_group() -> None:
    script = (
        ASK.replace("use_cpu=True", "use_cpu=True, local_rank=0") + "; import os; assert 'LOCAL_RANK' not in os.environ"
    )
    done = python(script)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.distributed
def test_two_processes_know_their_ranks() -> None:
    script = """
import os, sys, subprocess
if "RANK" not in os.environ:
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", SCRIPT], env={**os.environ, **world, "RANK": r, "LOCAL_RANK": r},
            stdout=subprocess.PIPE, text=True) for r in "01"]
    print(sorted(p.communicate()[0] for p in both))
else:
    from mainspring import TrainingArguments
    args = TrainingArguments("out", use_cpu=True, ddp_backend="gloo", ddp_timeout=60)
    print(args.process_index, args.local_process_index, args.world_size, args.should_log, args.should_save, args.parallel_mode)
    from mainspring.errors import OptionError
    try:
        TrainingArguments("out", use_cpu=True, ddp_backend="mpi").device
    except OptionError as error:
        assert "ddp_backend='mpi': the processes had been joined before, with 'cpu:gloo" in str(error), error
    else:
        raise AssertionError("gloo instead of mpi, and nothing said")
    import torch
    torch.distributed.destroy_process_group()
"""
    done = python(f"SCRIPT = {script!r}\nSCRIPT = 'SCRIPT = None\\n' + SCRIPT\n{script}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["0 0 2 True True distributed\n", "1 1 2 False False distributed\n"])


# ---- logging ----


def test_the_log_level_depends_on_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    place = runtime.Place(torch.device("cpu"), world_size=4, rank=2, local_rank=0)
    monkeypatch.setattr(runtime, "find_place", lambda **_: place)
    args = TrainingArguments("out", log_level="info", log_level_replica="error", use_cpu=True)
    assert args.get_process_log_level() == 20  # the first of its machine
    alone = TrainingArguments("out", log_level="info", log_level_replica="error", log_on_each_node=False, use_cpu=True)
    assert alone.get_process_log_level() == 40
    from mainspring.utils.logging import get_verbosity

    assert TrainingArguments("out", use_cpu=True).get_process_log_level() == get_verbosity()


def test_a_world_that_could_not_be_joined_is_said_each_time() -> None:
    """Accelerate keeps what it had noted before it failed; that is no state to read from."""
    script = (
        "from mainspring import TrainingArguments\n"
        "args = TrainingArguments('out', use_cpu=True)\n"
        "for name in ('device', 'world_size', 'parallel_mode'):\n"
        "    try:\n"
        "        getattr(args, name)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    environment = {**os.environ, "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("MASTER_ADDR") == 3


def test_an_error_of_torchs_between_processes_gets_rank_and_phase() -> None:
    torchs = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:152] Connection refused")
    with pytest.raises(ProcessesError) as caught, runtime.named_loss("the start", 3, 8, 60, hint="; try again"):
        raise torchs
    assert str(caught.value) == (
        f"rank 3 of 8 lost the other processes in the start (ddp_timeout=60 s): {torchs}; try again"
    )
    assert caught.value.phase == "the start"
    with pytest.raises(RuntimeError, match="^a mistake$"), runtime.named_loss("the start", 3, 8, 60):
        raise RuntimeError("a mistake")


@pytest.mark.parametrize(
    ("variables", "hints"),
    [
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2"}, True),
        ({"TORCHELASTIC_USE_AGENT_STORE": "False", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2"}, False),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "0", "GROUP_WORLD_SIZE": "2"}, False),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "1"}, True),
        ({}, False),
    ],
)
def test_machines_that_restart_are_told_what_torch_needs(
    variables: dict[str, str], hints: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in runtime._hint_for_agents()) == hints
