"""What is put around modules before they are sharded, and what of it needs no other process."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mainspring.arguments.fsdp_config import FSDPConfig
from mainspring.engines.fsdp import features
from mainspring.engines.fsdp.norms import norm_of_sharded, scale_sharded
from mainspring.engines.fsdp.plugin import plugin_of
from mainspring.engines.fsdp.weights import to_memory
from tests.helpers.models import tiny_gpt2

CPU = torch.device("cpu")


class Counting(nn.Module):
    """Counts how often it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.times = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.times += 1
        return torch.tanh(self.layer(x))


def test_recomputed_modules_compute_again_in_the_backward_pass_of_training_only() -> None:
    module = Counting()
    names = list(module.state_dict())
    features.recompute([module])
    module(torch.ones(2, 3)).sum().backward()
    assert module.times == 2
    with torch.no_grad():
        module(torch.ones(2, 3))
    module.eval()
    module(torch.ones(2, 3)).sum().backward()
    assert module.times == 4
    assert list(module.state_dict()) == names


def test_a_cast_forward_computes_in_half_precision_and_returns_fp32() -> None:
    seen: list[torch.dtype] = []
    model = nn.Linear(3, 3)
    inner = model.forward
    model.forward = lambda x: seen.append((out := inner(x)).dtype) or out  # type: ignore[func-returns-value,method-assign]
    accelerator: Any = SimpleNamespace(autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    features.cast_forward(model, accelerator)
    assert model(torch.ones(2, 3)).dtype == torch.float32
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_whole_gradients_have_torchs_norm(norm_type: float) -> None:
    parameters = list(tiny_gpt2().parameters())
    for place, parameter in enumerate(parameters[1:]):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
    expected = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)
    assert norm_of_sharded(parameters, norm_type, CPU).item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradients_are_scaled_down_and_never_up() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    norm = norm_of_sharded([parameter], 2.0, CPU)
    scale_sharded([parameter], norm, 10.0)
    assert parameter.grad.tolist() == [3.0, 4.0]
    scale_sharded([parameter], norm, 1.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_models_without_weights_get_memory_and_stay_tied() -> None:
    with torch.device("meta"):
        model = tiny_gpt2()
    model.tie_weights()
    model.transformer.wte.weight.requires_grad_(False)
    to_memory(model)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not model.lm_head.weight.requires_grad


@pytest.mark.parametrize("before", [None, "true"])
def test_accelerates_plugin_says_the_same_and_leaves_the_environment(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    second = plugin_of(FSDPConfig(state_dict_type="SHARDED_STATE_DICT", cpu_ram_efficient_loading=True))
    first = plugin_of(FSDPConfig(version=1, reshard_after_forward="shard_grad_op", limit_all_gathers=True))
    assert (second.fsdp_version, second.reshard_after_forward, second.cpu_ram_efficient_loading) == (2, True, True)
    assert "SHARDED_STATE_DICT" in str(second.state_dict_type)
    assert (first.fsdp_version, first.reshard_after_forward.name, first.sync_module_states) == (
        1,
        "SHARD_GRAD_OP",
        True,
    )
    assert first.limit_all_gathers
    assert os.environ.get(name) == before
