"""Optimizers as the reference builds them, options read strictly, and weight-decay groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names as reference_names

from mainspring.adafactor import Adafactor
from mainspring.optimizers import (
    OptimizerRequest,
    build_optimizer,
    decay_parameter_names,
    decay_parameter_names_of_4_37,
    get_parameter_names,
    is_optimizer_factory,
    optimizer_class_and_kwargs,
    parameter_groups,
    parse_optim_args,
)
from mainspring.registry import Registry
from tests.helpers.models import tiny_bert, tiny_gpt2


def arguments(optim: str, optim_args: str | None = None, **changes: Any) -> SimpleNamespace:
    values = {
        "optim": optim,
        "optim_args": optim_args,
        "learning_rate": 3e-4,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-7,
        "weight_decay": 0.0,
    }
    return SimpleNamespace(**{**values, **changes})


def reference_choice(tmp_path: Path, optim: str, optim_args: str | None) -> tuple[type, dict[str, Any]]:
    given = vars(arguments(optim, optim_args))
    theirs = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **given)
    chosen: tuple[type, dict[str, Any]] = transformers.Trainer.get_optimizer_cls_and_kwargs(theirs)
    return chosen


@pytest.mark.parametrize(
    ("optim", "optim_args"),
    [
        ("adamw_torch", None),
        ("adamw_torch_fused", None),
        ("adafactor", None),
        ("sgd", None),
        ("sgd", "momentum=0.9, nesterov=True,dampening=0"),
        ("sgd", "nesterov=off,momentum=.1"),
        ("adagrad", None),
        ("adagrad", "lr_decay=0.9,eps=1e-3"),
        ("rmsprop", None),
        ("rmsprop", "momentum=0.9,alpha=.5,eps=1e-3,centered=1"),
    ],
)
def test_classes_and_arguments_equal_the_reference(tmp_path: Path, optim: str, optim_args: str | None) -> None:
    cls, kwargs = optimizer_class_and_kwargs(arguments(optim, optim_args))
    their_cls, their_kwargs = reference_choice(tmp_path, optim, optim_args)
    assert kwargs == their_kwargs
    assert {key: type(value) for key, value in kwargs.items()} == {k: type(v) for k, v in their_kwargs.items()}
    assert cls is (Adafactor if optim == "adafactor" else their_cls)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_every_optimizer_lowers_a_loss(optim: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    inputs = torch.randn(16, 3)
    groups = parameter_groups(model, decay_parameter_names(model), 0.01)
    optimizer = build_optimizer(*optimizer_class_and_kwargs(arguments(optim, learning_rate=0.02)), model, groups)
    losses = []
    for _ in range(20):
        loss = (model(inputs) - inputs.sum(-1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_members_of_an_enumeration_are_names() -> None:
    member = transformers.training_args.OptimizerNames.SGD
    assert optimizer_class_and_kwargs(arguments(member))[0] is torch.optim.SGD


def test_an_unknown_name_suggests_one() -> None:
    with pytest.raises(ValueError, match=r"'adamw_troch'; did you mean 'adamw_torch'\?"):
        optimizer_class_and_kwargs(arguments("adamw_troch"))


@pytest.mark.parametrize(
    ("optim", "optim_args", "message"),
    [
        ("sgd", "momentun=0.9", r"'momentun' is no option of 'sgd'.*momentum, dampening.*did you mean 'momentum'\?"),
        ("adagrad", "momentum=0.9", "'momentum' is no option of 'adagrad', which has lr_decay, weight_decay, eps"),
        ("rmsprop", "nesterov=1", "'nesterov' is no option of 'rmsprop'"),
        ("adamw_torch", "foreach=1", "'foreach' is no option of 'adamw_torch', which has no options"),
        ("adamw_torch_fused", "foreach=1", "'foreach' is no option of 'adamw_torch_fused'"),
        ("adafactor", "beta1=1", "'beta1' is no option of 'adafactor'"),
        ("sgd", "momentum", "'momentum' is not of the form key=value"),
        ("sgd", "momentum=high", "momentum='high' is not a number"),
        ("sgd", "nesterov=perhaps", "nesterov='perhaps' is not a boolean"),
    ],
)
def test_options_that_cannot_be_are_explained(optim: str, optim_args: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer_class_and_kwargs(arguments(optim, optim_args))


def test_weight_decay_among_the_options_is_told_to_have_no_effect() -> None:
    with pytest.warns(UserWarning, match=r"weight_decay=0.1 has no effect.*weight_decay=0.01"):
        optimizer_class_and_kwargs(arguments("sgd", "weight_decay=0.1", weight_decay=0.01))


@pytest.mark.parametrize("text", [None, "", " ", ","])
def test_empty_options_are_none(text: str | None) -> None:
    assert parse_optim_args(text) == {}


def test_option_values_may_hold_equals_signs() -> None:
    assert parse_optim_args("a = 1, b=x=y") == {"a": "1", "b": "x=y"}


# Names and groups -------------------------------------------------------------------------------------------------


class OwnNorm(nn.LayerNorm):
    pass


class Odd(nn.Module):
    """Names at the edges of the patterns, shared modules, tied and frozen parameters, parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(1))
        self.Bias_x = nn.Parameter(torch.ones(1))
        self.my_norm = nn.Parameter(torch.ones(1))
        self.norm = nn.Parameter(torch.ones(1))
        self.debiaser = nn.Linear(2, 2)
        names = ("norm", "post_norm", "normal", "xnorm", "input_layernorm", "RMSNorm", "norm_x", "x_norm_y")
        self.blocks = nn.Sequential(
            nn.Linear(2, 2), nn.LayerNorm(2), nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
        )
        self.shared = self.blocks[0]
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.debiaser.weight
        self.batch = nn.BatchNorm1d(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.listed = nn.ParameterList([nn.Parameter(torch.ones(1))])
        self.sub = OwnNorm(2)
        self.deep = nn.ModuleDict({"norm": nn.Sequential(nn.Linear(2, 2))})


def tiny_llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": tiny_gpt2,
    "bert": tiny_bert,
    "llama": tiny_llama,
    "odd": Odd,
    "linear": lambda: nn.Linear(2, 2),
    "norm": lambda: nn.LayerNorm(2),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_decayed_names_equal_the_reference_in_order(name: str) -> None:
    model = MODELS[name]()
    trainer = transformers.Trainer.__new__(transformers.Trainer)
    assert decay_parameter_names(model) == trainer.get_decay_parameter_names(model)


def test_the_older_generation_knew_normalisations_by_their_classes() -> None:
    class T5LayerNorm(nn.Linear):
        """Not the one of transformers."""

    model = nn.ModuleDict(
        {
            "dense": nn.Linear(2, 2),
            "unbiased": nn.Linear(2, 2, bias=False),
            "real": nn.LayerNorm(2),
            "rms_norm": nn.RMSNorm(2),
            "own": T5LayerNorm(2, 2, bias=False),
            "theirs": transformers.models.t5.modeling_t5.T5LayerNorm(2),
        }
    )
    assert decay_parameter_names_of_4_37(model) == ["dense.weight", "rms_norm.weight", "own.weight"]
    assert decay_parameter_names(model) == ["dense.weight", "own.weight", "theirs.weight"]


@pytest.mark.parametrize("types", [[], [nn.LayerNorm], [nn.Linear, nn.Embedding]], ids=["all", "norm", "linear"])
@pytest.mark.parametrize(
    "patterns",
    [None, [], ["^w"], ["^0$"], [r"blocks\.0"], [r"2\.norm"], [r"norm\.weight"], ["Bias"], ["bias", "^own$"]],
    ids=str,
)
def test_parameter_names_equal_the_reference_in_order(types: list[type[nn.Module]], patterns: list[str] | None) -> None:
    for make in MODELS.values():
        model = make()
        assert get_parameter_names(model, types, patterns) == reference_names(model, types, patterns)


@pytest.mark.parametrize("name", MODELS)
def test_groups_equal_the_reference(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True, report_to="none", optim="sgd"
    )
    theirs = transformers.Trainer(model, args).create_optimizer().param_groups
    ours = parameter_groups(model, decay_parameter_names(model), 0.1)
    assert [group["weight_decay"] for group in ours] == [group["weight_decay"] for group in theirs] == [0.1, 0.0]
    for mine, other in zip(ours, theirs, strict=True):
        assert [id(p) for p in mine["params"]] == [id(p) for p in other["params"]]


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = Odd()
    groups = parameter_groups(model, decay_parameter_names(model), 0.1)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}
    assert id(model.frozen.weight) not in held


def test_nothing_trainable_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="none of the 2 parameters of Linear is trainable; set requires_grad_"):
        parameter_groups(model, ["weight"], 0.1)
    with pytest.raises(ValueError, match="none of the 0 parameters of Identity"):
        parameter_groups(nn.Identity(), [], 0.1)


# Building ---------------------------------------------------------------------------------------------------------


class Half:
    """A factory: made without arguments, then given the model."""

    def __call__(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(model.parameters())[:1], lr=lr)


class Wrong:
    def __call__(self, model: nn.Module) -> nn.Module:
        return model


def test_classes_of_optimizers_are_no_factories_and_all_else_is() -> None:
    assert not is_optimizer_factory(torch.optim.AdamW)
    assert not is_optimizer_factory(Adafactor)
    assert is_optimizer_factory(Half)
    assert is_optimizer_factory(lambda: Half())


@pytest.mark.parametrize("factory", [Half, lambda: Half()], ids=["class", "function"])
def test_a_factory_is_given_the_model(factory: Any) -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(factory, {"lr": 0.5}, model, [])
    assert [p is model.weight for p in optimizer.param_groups[0]["params"]] == [True]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_what_is_no_factory_is_refused() -> None:
    with pytest.raises(TypeError, match="3 is neither an optimizer class nor a factory"):
        build_optimizer(3, {}, nn.Linear(1, 1), [])
    with pytest.raises(TypeError, match="returned a Linear; return a torch.optim.Optimizer"):
        build_optimizer(Wrong, {}, nn.Linear(1, 1), [])


@pytest.mark.parametrize("name", ["params", "model", "optimizer_dict"])
def test_parameters_among_the_arguments_replace_the_groups(name: str) -> None:
    model = nn.Linear(2, 2)
    kwargs = {"lr": 0.1, name: [model.bias]}
    groups = parameter_groups(model, [], 0.1)
    optimizer = build_optimizer(torch.optim.SGD, kwargs, model, groups)
    assert [p is model.bias for group in optimizer.param_groups for p in group["params"]] == [True]
    assert name in kwargs


def test_a_builder_of_ones_own_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry("optimizer", {})
    monkeypatch.setattr("mainspring.optimizers.building.OPTIMIZERS", registry)
    model = nn.Linear(2, 2)
    seen = []

    def build(request: OptimizerRequest) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        seen.append(request)
        return torch.optim.SGD, {"lr": 1.0}

    registry.add("mine", build)
    assert optimizer_class_and_kwargs(arguments("mine", "a=1"), model) == (torch.optim.SGD, {"lr": 1.0})
    assert (seen[0].options, seen[0].model, seen[0].betas) == ({"a": "1"}, model, (0.8, 0.95))
