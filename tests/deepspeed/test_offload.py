"""Optimizer and weights on the host: trained as on the device, resumed, settings that reach the engine, memory reckoned truly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mainspring.engines.deepspeed.on_host import check_device, follow_rates, for_host
from mainspring.errors import NotAvailableError, OptionError
from tests.deepspeed.offload import KEYS, RUNS
from tests.deepspeed.read import found
from tests.deepspeed.runs import whole
from tests.distributed.launch import torchrun

pytestmark = [pytest.mark.deepspeed]

WORK = "offload"
NEAR = 1e-6
"""How far losses may be from those of a run on the device, relatively: its Adam for the host rounds otherwise."""

FP32, BF16 = 1e-5, 1e-2
"""How far weights may be, after two updates, from those of the uninterrupted run with DeepSpeed's Adam for the host."""


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory: pytest.TempPathFactory, cpu_adam: None) -> Path:
    """What two processes found out."""
    out = tmp_path_factory.mktemp("offloaded")
    torchrun("tests.deepspeed.worker_offload", str(out), WORK)
    return out


def _of_launch(test: Any) -> Any:
    return pytest.mark.distributed(pytest.mark.slow(test))


def _on_host(name: str) -> tuple[bool, bool]:
    """Whether the optimizer, and the weights, of a run lie on the host."""
    zero = RUNS[name]["zero_optimization"]
    return "offload_optimizer" in zero, "offload_param" in zero


@_of_launch
@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", RUNS)
def test_runs_train_as_on_the_device(name: str, rank: int, offloaded: Path) -> None:
    """Whoever makes the optimizer; with DeepSpeed's own for the host to the last digit but one."""
    facts, here = found(offloaded, name, WORK, rank), found(offloaded, "here", WORK, rank)
    assert facts["loss"] == pytest.approx(here["loss"], rel=NEAR)
    assert facts["grad_norm"] == pytest.approx(here["grad_norm"], rel=1e-5)
    assert facts["learning_rate"] == here["learning_rate"]
    if facts["inner"] == "AdamW":
        assert facts["loss"] == here["loss"]


@_of_launch
@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", RUNS)
def test_parts_lie_where_they_were_asked_to(name: str, rank: int, offloaded: Path) -> None:
    """The engine, its stage, the class that steps, and half of the states on each process."""
    facts = found(offloaded, name, WORK, rank)
    stage = RUNS[name]["zero_optimization"]["stage"]
    assert (facts["world_size"], facts["wrapper"], facts["stage"]) == (2, "DeepSpeedEngine", stage)
    assert (facts["host_optimizer"], facts["host_weights"]) == _on_host(name)
    assert facts["flag"] == facts["host_optimizer"], "the engine's optimizer does not know of it"
    assert sum(facts["rows"]) == whole() / 2
    assert whole() <= facts["states"] < 1.02 * whole()
    assert facts["numbers"] == (whole() / 2 if stage == 3 else whole())
    assert facts["second"] == (whole() / 2 if name == "hpz" else 0)
    makes_own = name.split("_")[0] in ("own", "ours", "groups", "ratio") or name == "both"
    assert facts["inner"] == ("DeepSpeedCPUAdam" if makes_own else "AdamW")


@_of_launch
@pytest.mark.parametrize("name", ["groups", "ratio"])
def test_sub_groups_are_as_large_as_they_are_asked_to_be(name: str, offloaded: Path) -> None:
    """Up to the parameter that fills one."""
    rows = found(offloaded, name, WORK)["rows"]
    assert len(rows) == 7
    assert max(rows) < 2000 + 1600


@_of_launch
def test_what_a_ratio_leaves_on_the_device_follows_the_schedule(offloaded: Path) -> None:
    """DeepSpeed's second optimizer has the groups of the first, and so their rates."""
    assert found(offloaded, "ratio", WORK)["follows"] == [True, True]
    assert found(offloaded, "groups", WORK)["follows"] is None


@_of_launch
@pytest.mark.parametrize("name", ["own_1", "own_2", "own_3", "ours_2", "both", "groups"])
def test_deepspeeds_adam_resumes_nearly(name: str, offloaded: Path) -> None:
    """Not bit for bit in itself: what it rounds depends on where it begins."""
    facts = found(offloaded, f"resumes_{name}", WORK)
    assert facts["again"] == pytest.approx(facts["losses"], rel=NEAR)
    assert facts["far"] < FP32


@_of_launch
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_adam_resumes_nearly_in_half_precision(stage: int, offloaded: Path) -> None:
    """Weights are up to a rounding away where gradients are next to nothing."""
    facts = found(offloaded, f"resumes_own_{stage}_bf16", WORK)
    assert facts["again"] == pytest.approx(facts["losses"], rel=1e-4)
    assert facts["far"] < BF16


@_of_launch
@pytest.mark.parametrize("name", ["client_2", "client_3", "hpz"])
def test_torchs_adam_resumes_exactly(name: str, offloaded: Path) -> None:
    """On the host too, and with a second division of the weights."""
    facts = found(offloaded, f"resumes_{name}", WORK)
    assert (facts["again"], facts["far"]) == (facts["losses"], 0.0)


@_of_launch
def test_settings_of_stage_3_reach_the_engine(offloaded: Path) -> None:
    """All of them, and what acts by them."""
    facts = found(offloaded, "keys_3", WORK)
    assert facts["held"] == KEYS
    assert facts["acts"] == {name: KEYS[name] for name in facts["acts"]}
    assert len(facts["acts"]) == 5
    assert facts["groups"] == 5
    assert 0 < facts["whole"] <= KEYS["stage3_model_persistence_threshold"]
    assert facts["losses"] == found(offloaded, "here", WORK)["loss"]


@_of_launch
def test_buckets_of_stage_2_reach_the_engine(offloaded: Path) -> None:
    """And change nothing of the numbers."""
    facts = found(offloaded, "keys_2", WORK)
    assert facts["acts"] == facts["asked"]
    assert facts["losses"] == found(offloaded, "here", WORK)["loss"]


@_of_launch
def test_what_cannot_act_is_said_before_training(offloaded: Path) -> None:
    """One error that names the key and the reason; memory that nobody copies from is not pinned, which is told."""
    said = found(offloaded, "said", WORK)
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        assert said[name].startswith(f"NotAvailableError: deepspeed zero_optimization.{name}=True: ")
        assert "CUDA" in said[name]
    assert said["sp_size"].startswith("NotAvailableError: parallelism_config=")
    assert "Ulysses" in said["sp_size"]
    assert "offload_optimizer.super_offload=True" in said["super_offload"]
    assert said["sgd"].startswith("OptionError: deepspeed zero_optimization.offload_optimizer.device='cpu'")
    assert "zero_force_ds_cpu_optimizer=false" in said["sgd"]
    assert len(said["pinned"]) == 1
    assert "has no effect" in said["pinned"][0]


@_of_launch
def test_a_schedule_of_the_users_moves_the_optimizer_on_the_host(offloaded: Path) -> None:
    """Although DeepSpeed's takes the place of the one that it was made for."""
    given = found(offloaded, "given", WORK)
    assert (given["here"]["inner"], given["there"]["inner"]) == ("AdamW", "DeepSpeedCPUAdam")
    assert given["there"]["learning_rate"] == given["here"]["learning_rate"]
    assert given["there"]["loss"] == pytest.approx(given["here"]["loss"], rel=NEAR)


# ---- memory ----

MEMORY = [*(f"memory_{stage}{half}" for stage in range(4) for half in ("", "_bf16"))]


@_of_launch
@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", [*MEMORY, "memory_host", "memory_kept", "memory_adagrad"])
def test_reckoned_memory_is_that_of_the_tensors(name: str, rank: int, offloaded: Path) -> None:
    """To the byte, wherever it lies, before there is an engine and after training."""
    facts = found(offloaded, name, WORK, rank)
    place = "host" if name == "memory_host" else "device"
    for moment in ("before", "after"):
        assert facts[moment]["processes"] == 2
        assert facts[moment][place] == facts["measured"], moment
        others = {"device", "host", "disk"} - {place}
        assert not any(sum(facts[moment][other].values()) for other in others)


@_of_launch
@pytest.mark.parametrize("name", MEMORY)
def test_asking_starts_no_engine(name: str, offloaded: Path) -> None:
    """The model is as it was made."""
    assert found(offloaded, name, WORK)["untouched"]


@_of_launch
def test_deepspeeds_own_estimators_are_asked(offloaded: Path) -> None:
    """For the stage and the offload that are configured; and its tables show the others."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as of_stage_3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as of_stage_2

    host, device = of_stage_2(whole(), 2, 1, cpu_offload=False)
    assert found(offloaded, "memory_2", WORK)["before"]["deepspeed"] == [device, host]
    largest = 33 * 128  # of the layers that the feed-forward networks have
    for name, away in (("memory_3", False), ("memory_host", True)):
        host, device, _ = of_stage_3(whole(), largest, 2, 1, away, away, zero_init=False)
        assert found(offloaded, name, WORK)["before"]["deepspeed"] == [device, host]
    assert found(offloaded, "memory_1", WORK)["before"]["deepspeed"] is None
    text = found(offloaded, "memory_1", WORK)["text"]
    assert text.count("2 GPUs per node") == 2
    assert text.count("offload_optimizer") == 8


@_of_launch
def test_a_plain_module_is_estimated_too(offloaded: Path) -> None:
    """It needs no configuration that says how wide it is."""
    estimate = found(offloaded, "plain_module", WORK)
    assert estimate["device"] == {
        "parameters": 120, "gradients": 60, "weight_copies": 60, "optimizer_states": 120
    }  # fmt: skip


# ---- in one process, without an engine ----


def _parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


AWAY = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def test_an_optimizer_on_the_device_stays_what_it_is() -> None:
    """And one that the configuration lets step on the host."""
    made = torch.optim.SGD(_parameters(), lr=1.0)
    assert for_host(made, {"zero_optimization": {"stage": 2}}) is made
    assert for_host(made, {**AWAY, "zero_force_ds_cpu_optimizer": False}) is made


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.optim.SGD(_parameters(), lr=1.0),
        lambda: torch.optim.AdamW(_parameters(), amsgrad=True),
        lambda: torch.optim.Adam(_parameters(), maximize=True),
        lambda: torch.optim.Adagrad(_parameters(), lr_decay=0.1),
    ],
)
def test_what_deepspeed_has_no_like_of_is_refused(made: Any) -> None:
    """Rather than stepped otherwise."""
    with pytest.raises(OptionError, match="zero_force_ds_cpu_optimizer=false"):
        for_host(made(), AWAY)


def test_all_that_needs_a_gpu_is_told_at_once() -> None:
    """On a GPU nothing is."""
    config = {"zero_optimization": {"zero_quantized_weights": True, "zero_quantized_gradients": True}}
    with pytest.raises(NotAvailableError) as caught:
        check_device(config, torch.device("cpu"))
    assert len(str(caught.value).splitlines()) == 2
    check_device(config, torch.device("cuda"))


def test_the_part_on_the_device_follows_the_schedule() -> None:
    """DeepSpeed's second optimizer would keep the rate that it was made with."""
    first, second = (torch.optim.AdamW(_parameters(), lr=0.0) for _ in range(2))
    follow_rates(SimpleNamespace(optimizer=SimpleNamespace(optimizer=first, backup_optimizer=second)))
    first.param_groups[0]["lr"] = 0.5
    assert second.param_groups[0]["lr"] == 0.5
