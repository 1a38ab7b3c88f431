"""Worlds that are announced in other words than torch's, and starts that went wrong. No process is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from mainspring import TrainingArguments
from mainspring.arguments import launchers, runtime
from mainspring.errors import NotAvailableError, OptionError

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_TASK_PID": "99",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}
"""A task of a step of four on two machines, inside a job of eight tasks."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The machines whose names the network knows: none but these."""
    known = {"node07", "127.0.0.1"}

    def look_up(host: str, port: object) -> list[object]:
        if host not in known:
            raise OSError(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def test_a_task_of_slurm_is_a_rank(names: set[str]) -> None:
    words = launchers.torch_words(STEP)
    port = int(words.pop("MASTER_PORT"))
    assert words == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node07",
    }
    assert 15000 <= port < 30000


def test_every_task_of_a_step_meets_at_the_same_port_and_other_steps_at_another(names: set[str]) -> None:
    port = launchers.torch_words(STEP)["MASTER_PORT"]
    assert launchers.torch_words({**STEP, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})["MASTER_PORT"] == port
    assert launchers.torch_words({**STEP, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != port
    assert launchers.torch_words({**STEP, "SLURM_JOB_ID": "4712"})["MASTER_PORT"] != port


def test_a_machine_whose_name_means_nothing_is_met_where_srun_was_started(names: set[str]) -> None:
    names.clear()
    assert launchers.torch_words(STEP)["MASTER_ADDR"] == "10.0.0.1"


def test_tasks_of_one_machine_meet_there() -> None:
    minimal = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_NNODES": "1"}
    assert launchers.torch_words(minimal) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


def test_tasks_without_any_address_are_told_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="set MASTER_ADDR"):
        launchers.torch_words({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"})


def test_what_a_script_exports_wins_over_slurm(names: set[str]) -> None:
    """Many batch scripts export the address and the size, and leave the rank to the program."""
    exported = {"MASTER_ADDR": "here", "MASTER_PORT": "1", "WORLD_SIZE": "4"}
    words = launchers.torch_words({**STEP, **exported})
    assert words == {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launchers.torch_words({**STEP, "WORLD_SIZE": "16"}) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "0", "WORLD_SIZE": "4"},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_JOB_NAME": "interactive"},
        {"SLURM_JOB_NAME": "bash"},
        {"SLURM_PTY_PORT": "40000"},
        {"SLURM_STEP_ID": str(0xFFFFFFFA)},
        {"SLURM_PROCID": ""},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_torchrun_inside_a_job_a_single_task_and_a_prompt_are_not_taken_for_tasks(
    changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert launchers.torch_words({**STEP, **changes}) == {}


@pytest.mark.parametrize("mark", [{"SLURM_JOB_NAME": "interactive"}, {"SLURM_PTY_PORT": "40000"}], ids=str)
def test_tasks_that_srun_starts_from_a_prompt_are_one_run(
    mark: dict[str, str], names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They inherit the name of `salloc`'s job: each would train by itself, and report success."""
    monkeypatch.setattr(os, "isatty", lambda _: False)
    assert launchers.torch_words({**STEP, **mark})["RANK"] == "3"
    monkeypatch.setattr(os, "isatty", lambda _: True)  # the first task of `srun --pty`
    assert launchers.torch_words({**STEP, **mark, "SLURM_TASK_PID": str(os.getpid())})["RANK"] == "3"


def test_a_rank_alone_is_no_world(names: set[str]) -> None:
    words = launchers.torch_words({**STEP, "RANK": "3"})
    assert (words["WORLD_SIZE"], "RANK" in words) == ("4", False)
    assert launchers.torch_words({"RANK": "3"}) == {}


def test_a_batch_script_is_no_task_and_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    batch = {name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_TASK_PID", "SLURM_LOCALID", "SLURM_NTASKS")}
    batch["SLURM_PROCID"] = "0"
    assert launchers.torch_words(batch) == {}
    assert "8 tasks" in str(launchers.left_alone(batch))
    for other in (STEP, {}, {**batch, "SLURM_NTASKS": "1"}, {**batch, "SLURM_JOB_NAME": "bash"}):
        assert launchers.left_alone(other) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node01", "node01"),
        ("node[01-03,07],login", "node01"),
        ("a,b[1-2]", "a"),
        ("rack[2,5]n[10-11]", "rack2n10"),
        ("gpu[003]", "gpu003"),
        ("a-b-c[1-2]-ib", "a-b-c1-ib"),
        ("", ""),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert launchers.first_host(nodes) == first


@pytest.mark.parametrize(("text", "counts"), [("2(x2),1", [2, 2, 1]), ("4", [4]), ("1,3", [1, 3]), ("", [])])
def test_the_tasks_of_each_machine(text: str, counts: list[int]) -> None:
    assert launchers.counts_of(text) == counts


OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
INTEL = {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
MVAPICH = {name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items()}


@pytest.mark.parametrize("environ", [OPEN_MPI, INTEL, MVAPICH], ids=["open", "intel", "mvapich"])
def test_a_process_of_mpi_is_the_rank_that_accelerate_sees(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import get_cpu_distributed_information

    for name, value in {**environ, "MASTER_ADDR": "first"}.items():
        monkeypatch.setenv(name, value)
    words = launchers.torch_words(os.environ)
    seen = get_cpu_distributed_information()
    assert words == {
        "RANK": str(seen.rank),
        "WORLD_SIZE": str(seen.world_size),
        "LOCAL_RANK": str(seen.local_rank),
        "LOCAL_WORLD_SIZE": str(seen.local_world_size),
        "MASTER_PORT": "29500",
    }
    assert (seen.rank, seen.world_size) == (2, 4)


def test_processes_of_mpi_on_several_machines_are_told_to_name_the_first() -> None:
    with pytest.raises(RuntimeError, match=r"OMPI_COMM_WORLD_SIZE=4 .* MASTER_ADDR cannot be told"):
        launchers.torch_words(OPEN_MPI)
    here = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert launchers.torch_words(here)["MASTER_ADDR"] == "127.0.0.1"


def test_mpi_knows_better_than_the_slurm_job_it_runs_in() -> None:
    """There `srun` started MPI's daemons, one per machine."""
    words = launchers.torch_words({**STEP, **OPEN_MPI, "MASTER_ADDR": "first"})
    assert (words["RANK"], words["WORLD_SIZE"]) == ("2", "4")


def test_slurm_knows_better_than_the_variables_of_pmi_that_it_sets_itself(names: set[str]) -> None:
    words = launchers.torch_words({**STEP, "PMI_RANK": "3", "PMI_SIZE": "4"})
    assert (words["RANK"], words["LOCAL_RANK"]) == ("3", "1")


# ---- in a run ----


def test_a_run_learns_its_place_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_STEP_NUM_NODES": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that they are put back
        monkeypatch.delenv(name)
    assert runtime._asked() == 4
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["MASTER_ADDR"]) == ("3", "1", "127.0.0.1")


def test_explain_tells_of_the_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {**STEP, "SLURM_STEP_NODELIST": "localhost"}.items():
        monkeypatch.setenv(name, value)
    TrainingArguments("out", use_cpu=True).explain()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "world_size" in line]
    assert line.split() == ["world_size", "4", "environment", "SLURM", "or", "MPI"]


def test_one_process_of_several_is_refused() -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves: tests/distributed/test_launchers.py starts it."""
    left = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1"}
    with pytest.raises(RuntimeError, match="asked for several processes and started one"):
        launchers.refuse_one_of_several(left)
    for other in ({**left, "WORLD_SIZE": "2"}, {**left, "LOCAL_RANK": "0"}, {"MASTER_ADDR": "127.0.0.1"}):
        launchers.refuse_one_of_several(other)
    launchers.refuse_one_of_several({name: value for name, value in left.items() if name != "MASTER_ADDR"})


def test_an_engine_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed, megatron = {"ACCELERATE_USE_DEEPSPEED": "true"}, {"ACCELERATE_USE_MEGATRON_LM": "true"}
    for asked in (deepspeed, megatron):
        monkeypatch.setattr("mainspring.arguments.not_yet.OPTIONS", frozenset({"deepspeed"}))
        with pytest.raises(NotAvailableError, match="^ACCELERATE_USE_.*='true': this version has no such engine"):
            launchers.refuse_what_no_engine_does(asked)
    launchers.refuse_what_no_engine_does({"ACCELERATE_USE_DEEPSPEED": "false"})
    monkeypatch.setattr("mainspring.arguments.not_yet.OPTIONS", frozenset())
    launchers.refuse_what_no_engine_does(deepspeed)


def test_a_precision_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(OptionError, match=r"^ACCELERATE_MIXED_PRECISION='fp8': .*; launch with no, bf16 or fp16"):
        TrainingArguments("out", use_cpu=True).device  # noqa: B018 - the look-up is what is tested


def test_compiling_that_a_launcher_asked_for_in_vain_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.warns(UserWarning, match="ACCELERATE_DYNAMO_BACKEND=INDUCTOR: has no effect; set torch_compile=True"):
        assert TrainingArguments("out", use_cpu=True).world_size == 1


def test_a_copy_of_the_process_looks_its_place_up_itself() -> None:
    """As in a notebook, where the processes of a run are copies of one that may have looked at its own place."""
    script = """
import os
from mainspring import TrainingArguments
from mainspring.arguments import runtime
args = TrainingArguments("out", use_cpu=True)
first = args.world_size
find, calls = runtime.find_place, []
runtime.find_place = lambda **wanted: calls.append(1) or find(**wanted)
args.world_size
assert not calls
if os.fork() == 0:
    args.world_size
    os._exit(len(calls))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
