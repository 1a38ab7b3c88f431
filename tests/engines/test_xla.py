"""PyTorch/XLA and SageMaker: what is said without their packages, and, on stand-ins, what the engines call.

Neither package is here. The stand-ins record the calls; that these do what they should on such a machine has not been
tried.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mainspring.arguments import TrainingArguments, sagemaker
from mainspring.arguments.fsdp_config import FSDPConfig
from mainspring.diagnostics.aids import DebuggingAids
from mainspring.engines import build_engine
from mainspring.engines.accelerator import build_accelerator
from mainspring.engines.base import EngineOptions, SingleProcess
from mainspring.engines.processes import Processes
from mainspring.engines.sagemaker import SageMaker
from mainspring.engines.xla import XLA
from mainspring.errors import NotAvailableError, OptionError
from mainspring.state import TrainerControl
from tests.helpers.sides import forget_process_state


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    forget_process_state()
    yield
    forget_process_state()


# ---- without the packages ----


def test_xla_without_its_package_is_named() -> None:
    options = EngineOptions(fsdp=FSDPConfig(xla=True))
    with pytest.raises(NotAvailableError, match=r"fsdp_config=\{'xla': True\}: PyTorch/XLA is not installed; install"):
        build_engine(build_accelerator(cpu=True, mixed_precision="no"), options)


DATA_PARALLEL = {"SM_FRAMEWORK_PARAMS": json.dumps({"sagemaker_distributed_dataparallel_enabled": True})}
MODEL_PARALLEL = {
    "SM_HP_MP_PARAMETERS": json.dumps({"partitions": 2}),
    "SM_FRAMEWORK_PARAMS": json.dumps({"sagemaker_mpi_enabled": True}),
}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (DATA_PARALLEL, "SM_FRAMEWORK_PARAMS=.*smdistributed is not installed; use a SageMaker image"),
        (MODEL_PARALLEL, "SM_HP_MP_PARAMETERS=.*model parallelism.*set fsdp=True"),
    ],
    ids=["data", "model"],
)
def test_a_sagemaker_job_without_its_package_is_refused_before_it_joins(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotAvailableError, match=f"(?s){message}"):
        _ = TrainingArguments("out", use_cpu=True).device


@pytest.mark.parametrize("text", ["", "{}", "[]", "no json", '{"sagemaker_distributed_dataparallel_enabled": false}'])
def test_other_jobs_are_left_alone(text: str) -> None:
    environment = {"SM_FRAMEWORK_PARAMS": text, "SM_HP_MP_PARAMETERS": text}
    sagemaker.refuse(environment)
    assert not sagemaker.asks_for_data_parallel(environment)


def test_sagemakers_sums_are_made_sure_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mainspring.engines.ddp.DDP.__init__", lambda self, accelerator, options: None)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "nccl")
    accelerator: Any = SimpleNamespace()
    with pytest.raises(RuntimeError, match="'smddp'.*joined with 'nccl'"):
        SageMaker(accelerator, EngineOptions())
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "smddp")
    SageMaker(accelerator, EngineOptions())


# ---- on stand-ins ----


class Wrapper(nn.Module):
    """Stands in for XLA's wrappers."""

    def __init__(self, module: nn.Module, **keywords: Any) -> None:
        super().__init__()
        self.inner, self.keywords = module, keywords

    def get_shard_metadata(self) -> dict[str, int]:
        return {"rank": 0}

    def clip_grad_norm_(self, max_norm: float, norm_type: float) -> torch.Tensor:
        return torch.tensor(7.0)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A torch_xla of stand-ins; returns what was called of it."""
    calls: list[str] = []

    def noted(name: str, result: Any = None) -> Any:
        return lambda *given, **named: (calls.append(name), result(*given, **named) if callable(result) else result)[1]

    parts: dict[str, dict[str, Any]] = {
        "core.xla_model": {
            "mark_step": noted("mark_step"),
            "reduce_gradients": noted("reduce_gradients"),
            "all_reduce": noted("all_reduce", lambda kind, value: value * 2),
            "mesh_reduce": noted("mesh_reduce", lambda tag, value, reduce: reduce([value, value])),
            "rendezvous": noted("rendezvous"),
        },
        "runtime": {"global_runtime_device_count": lambda: 4},
        "debug.metrics": {"metrics_report": lambda: "Counter: CreateXlaTensor"},
        "distributed.spmd": {
            "Mesh": lambda ids, shape, axis_names: (tuple(ids), shape, axis_names),
            "mark_sharding": noted("mark_sharding"),
        },
        "distributed.fsdp": {
            "XlaFullyShardedDataParallel": Wrapper,
            "checkpoint_module": noted("checkpoint_module", lambda layer: layer),
        },
        "distributed.fsdp.wrap": {
            "transformer_auto_wrap_policy": lambda transformer_layer_cls: transformer_layer_cls,
            "size_based_auto_wrap_policy": lambda min_num_params: min_num_params,
        },
        "experimental.spmd_fully_sharded_data_parallel": {"SpmdFullyShardedDataParallel": Wrapper},
    }
    for name in ("torch_xla", "torch_xla.core", "torch_xla.distributed", "torch_xla.experimental", "torch_xla.debug"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, members in parts.items():
        module = ModuleType(f"torch_xla.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def engine(fsdp: FSDPConfig | None = None, world_size: int = 2) -> XLA:
    made = XLA(build_accelerator(cpu=True, mixed_precision="no"), EngineOptions(fsdp=fsdp))
    made.world_size = world_size
    return made


def updated(xla: XLA, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    xla.prepare_optimizer(optimizer)
    model(torch.ones(2, 3)).sum().backward()
    xla.clip_grad_norm(model.parameters(), 1.0)
    xla.grad_norm(model.parameters())
    xla.step(optimizer)
    return optimizer


def test_gradients_are_summed_once_before_they_are_looked_at(called: list[str]) -> None:
    updated(engine(), nn.Linear(3, 1))
    assert called == ["reduce_gradients", "mark_step"]


def test_one_process_sums_nothing(called: list[str]) -> None:
    updated(engine(world_size=1), nn.Linear(3, 1))
    assert called == ["mark_step"]


def test_the_second_update_is_summed_again(called: list[str]) -> None:
    xla, model = engine(), nn.Linear(3, 1)
    updated(xla, model)
    updated(xla, model)
    assert called == ["reduce_gradients", "mark_step"] * 2


def test_values_travel(called: list[str]) -> None:
    xla = engine()
    assert xla.sum(torch.tensor(3)).item() == 6
    assert xla.mean(torch.tensor(3.0)) == 3.0
    assert xla.any(True)
    assert xla.agree(True)
    assert not xla.any(False)
    assert xla.share({"a": 1}) == {"a": 1}
    assert xla.every("a") == ["a", "a"]
    control = TrainerControl(should_save=True)
    xla.settle(control)
    assert (control.should_save, control.should_log) == (True, False)
    assert xla.each((1, 2)) == [[1, 2], [1, 2]]
    assert xla.pass_on("a", source=1) == "a"
    xla.barrier()
    assert called[-1] == "rendezvous"


def test_debugging_aids(called: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Modules can be watched where the weights are whole; what XLA has counted is printed by the first process."""
    aids = DebuggingAids("underflow_overflow tpu_metrics_debug", engine())
    aids.after_epoch()
    assert capsys.readouterr().out == "Counter: CreateXlaTensor\n"
    with pytest.raises(OptionError, match=r"^debug='underflow_overflow': under the engine 'xla'"):
        DebuggingAids(["underflow_overflow"], engine(FSDPConfig(xla=True)))


def test_nothing_between_processes_is_that_of_one() -> None:
    """Each would take its own answer for everybody's."""
    between = {name for name in vars(Processes) if name in vars(SingleProcess)}
    by_accelerate = {"evaluation_batches", "gather", "gather_rows"}  # whose gathering knows XLA
    in_words = {"session", "during"}  # which only tell more of a loss
    on_the_way = {"forget_wishes"}  # here nothing is
    left_out = by_accelerate | in_words | on_the_way | {"__init__", "__module__", "__doc__"}
    assert between - left_out <= vars(XLA).keys()


def test_threads_of_several_processes_have_no_channel(called: list[str]) -> None:
    with pytest.raises(NotAvailableError, match="save_in_background=True: XLA's processes have no channel"):
        engine().channel()
    with pytest.raises(NotAvailableError, match="'dispatch_batches': True"):
        engine().data_channel()
    assert engine(world_size=1).channel() is None


def test_xlas_first_fsdp_wraps_layers_and_knows_the_norm(called: list[str], tmp_path: Path) -> None:
    settings = {"compute_dtype": "bfloat16"}
    xla = engine(
        FSDPConfig(
            xla=True,
            xla_fsdp_settings=settings,
            xla_fsdp_grad_ckpt=True,
            transformer_layer_cls_to_wrap=("Linear",),
        )
    )
    model = nn.Sequential(nn.Linear(3, 1))
    wrapped: Any = xla.prepare(model)
    assert wrapped.inner is model
    assert wrapped.keywords["compute_dtype"] == "bfloat16"
    assert wrapped.keywords["auto_wrap_policy"].keywords == {"transformer_layer_cls": {nn.Linear}}
    unit = wrapped.keywords["auto_wrapper_callable"](model[0])
    assert unit.inner is model[0]
    assert called == ["checkpoint_module"]
    assert xla.clip_grad_norm(model.parameters(), 1.0).item() == 7.0
    assert "reduce_gradients" not in called
    optimizer = updated(xla, model)
    xla.save_shards(model, str(tmp_path))
    xla.save_optimizer(model, optimizer, str(tmp_path), writes=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rank0-of-2-pytorch_model.pth", "rank0-of-2-optimizer.pt"}


def test_layers_that_are_not_there_are_named(called: list[str]) -> None:
    with pytest.raises(NotAvailableError, match="the model does not say what its layers are"):
        engine(FSDPConfig(xla=True)).prepare(nn.Linear(3, 1))
    with pytest.raises(NotAvailableError, match="no layer called Block"):
        engine(FSDPConfig(xla=True, transformer_layer_cls_to_wrap=("Block",))).prepare(nn.Linear(3, 1))


def test_xlas_second_fsdp_divides_rows_over_one_mesh(called: list[str]) -> None:
    xla = engine(FSDPConfig(xla=True, xla_fsdp_v2=True, auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=5))
    wrapped: Any = xla.prepare(nn.Linear(3, 1))
    assert wrapped.keywords["mesh"] == ((0, 1, 2, 3), (4, 1), ("fsdp", "tensor"))
    assert wrapped.keywords["auto_wrap_policy"].keywords == {"min_num_params": 5}
    xla.to_device(torch.ones(4, 3))
    xla.to_device(torch.tensor(1))
    assert called == ["mark_sharding"]
    wrapped.keywords["shard_output"]({"loss": torch.ones(4, 1)}, wrapped.keywords["mesh"])
    assert called == ["mark_sharding"] * 2
    assert not xla.saves_shards
