"""Which modules are gathered by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mainspring.arguments.fsdp_config import FSDPConfig
from mainspring.engines.fsdp.units import check_layer_names, units_of
from mainspring.errors import OptionError
from tests.helpers.models import tiny_gpt2


class Layer(nn.Module):
    """Two projections."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)


class Model(nn.Module):
    """Embeddings that the head shares, two layers, and attention of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 4)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.attention = nn.MultiheadAttention(4, 1)
        self.head = nn.Linear(4, 50, bias=False)
        self.head.weight = self.embed.weight


def _names(model: nn.Module, config: FSDPConfig) -> list[str]:
    chosen = {id(unit) for unit in units_of(model, config)}
    return [name for name, module in model.named_modules() if id(module) in chosen]


def test_layers_are_those_that_the_model_names() -> None:
    assert _names(tiny_gpt2(), FSDPConfig()) == ["transformer.h.0", "transformer.h.1"]


def test_named_layers_come_inner_first() -> None:
    model = Model()
    chosen = units_of(model, FSDPConfig(transformer_layer_cls_to_wrap=("Layer", "Linear")))
    place = {id(module): number for number, module in enumerate(chosen)}
    for layer in model.layers:
        assert place[id(layer.up)] < place[id(layer)]


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    config = FSDPConfig(transformer_layer_cls_to_wrap=("Layers",))
    with pytest.raises(OptionError, match=r"no Layers in Model.*Embedding, Layer, .*did you mean 'Layer'"):
        check_layer_names(Model(), config)


def test_a_model_that_names_no_layers_is_one_unit_and_told_so() -> None:
    with pytest.warns(UserWarning, match="Model does not say what its layers are"):
        assert _names(Model(), FSDPConfig()) == []


def test_no_wrap_is_one_unit() -> None:
    assert _names(tiny_gpt2(), FSDPConfig(auto_wrap_policy="NO_WRAP")) == []


def test_tied_modules_stay_with_the_model() -> None:
    """In units of their own the parameter would be two."""
    config = FSDPConfig(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=50)
    assert _names(Model(), config) == ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down", "attention"]
    untied = Model()
    untied.head.weight = nn.Parameter(torch.zeros(50, 4))
    assert {"embed", "head"} <= set(_names(untied, config))


def test_size_counts_what_no_inner_unit_has() -> None:
    """A layer has 148 parameters: it is a unit where neither of its halves is, and not again where both are."""
    config = FSDPConfig(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=100)
    assert _names(Model(), config) == ["layers.0", "layers.1"]


def test_containers_are_never_called_and_so_no_units() -> None:
    config = FSDPConfig(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=200)
    assert _names(Model(), config) == []


def test_what_attention_hands_to_a_function_is_no_unit() -> None:
    """Torch's attention never calls its output projection: nothing would gather it."""
    config = FSDPConfig(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=1)
    assert "attention.out_proj" not in _names(Model(), config)
