"""Class and keywords of every optimizer equal the reference's, but for the differences that stand here with their reason."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from torch import nn

from mainspring import TrainingArguments
from mainspring.optimizers import optimizer_class_and_kwargs
from tests.helpers.sides import REFERENCE
from tests.optimizers import rows

pytestmark = pytest.mark.parity

GALORE = "rank=4, update_proj_gap=2, scale=2, proj_type=left"
APOLLO = "rank=4,proj=svd,scale_type=tensor,update_proj_gap=3,scale=2,proj_type=left"
ADEMAMIX = "beta1=.8,beta2=.9,beta3=.99,alpha=2,eps=1e-4,t_alpha=5,t_beta3=6"
LOW_BIT = "block_size=128,bf16_stochastic_round=True"
RMSPROP = "alpha=.5,eps=1e-3,momentum=.9"
GIVEN = {
    "sgd": "momentum=.9,nesterov=True",
    "adagrad": "lr_decay=.1,eps=1e-3",
    "rmsprop": f"{RMSPROP},centered=True",
    "rmsprop_bnb": RMSPROP,
    "rmsprop_bnb_8bit": RMSPROP,
    "rmsprop_bnb_32bit": RMSPROP,
    "ademamix": ADEMAMIX,
    "ademamix_8bit": ADEMAMIX,
    "paged_ademamix_32bit": ADEMAMIX,
    "paged_ademamix_8bit": ADEMAMIX,
    "adamw_torch_4bit": LOW_BIT,
    "adamw_torch_8bit": LOW_BIT,
    "galore_adamw": GALORE,
    "galore_adafactor": GALORE,
    "galore_adamw_layerwise": GALORE,
    "apollo_adamw": APOLLO,
    "apollo_adamw_layerwise": APOLLO,
    "grokadamw": "alpha_init=0.5,lamb=1,gamma=.2,grokking_signal_decay_rate=.3,gradient_clipping=2",
    "schedule_free_radam": "weight_lr_power=1,r=.1",
    "schedule_free_adamw": "weight_lr_power=1,r=.1",
    "schedule_free_sgd": "weight_lr_power=1,r=.1",
    "stable_adamw": "decouple_lr=True,max_lr=1e-2,kahan_sum=True",
}
"""An `optim_args` of every option that the reference reads too."""

OWN = {
    "adamw_anyprecision": "the reference's is in a package that cannot be had",
    "adamw_hf": "the newest reference does not have it",
    "galore_adafactor_layerwise": "the reference's fails",
}
CASES = [
    pytest.param(name, text, id=f"{name}-{'options' if text else 'plain'}")
    for name in rows.HERE
    if name not in OWN and rows.is_installed(name)
    for text in dict.fromkeys((None, GIVEN.get(name)))
]
OF_OURS = {
    "adafactor": "mainspring.adafactor.Adafactor",
    "lomo": "mainspring.optimizers.lomo.Lomo",
    "stable_adamw": "mainspring.optimizers.stable.StableAdamW",
    "galore_adamw_layerwise": "mainspring.optimizers.in_backward.OptimizerInBackward",
    "apollo_adamw_layerwise": "mainspring.optimizers.in_backward.OptimizerInBackward",
}
"""Classes of our own in the place of the reference's."""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    built: nn.Module = rows.tiny_llama()
    return built


def arguments(name: str, text: str | None) -> dict[str, Any]:
    return {
        "optim": name,
        "optim_args": text,
        "optim_target_modules": ["attn", "mlp"] if "galore" in name or "apollo" in name else None,
        "learning_rate": 3e-4,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-7,
        "weight_decay": 0.0,
        "warmup_steps": 7,
    }


def chosen(choose: Callable[[], tuple[type, dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    logging.disable(logging.WARNING)
    try:
        cls, kwargs = choose()
    finally:
        logging.disable(logging.NOTSET)
    return f"{cls.__module__}.{cls.__qualname__}", {key: comparable(key, value) for key, value in kwargs.items()}


def comparable(key: str, value: Any) -> Any:
    if key == "params":
        return [{name: len(v) if name == "params" else v for name, v in group.items()} for group in value]
    return type(value) if isinstance(value, nn.Module) else value


def numbers(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same, with what the reference leaves as text read."""
    return {key: float(value) if isinstance(value, str) else value for key, value in kwargs.items()}


@pytest.mark.parametrize(("name", "text"), CASES)
def test_class_and_keywords_equal_the_reference_with_its_numbers(
    tmp_path: Path, model: nn.Module, name: str, text: str | None
) -> None:
    given = arguments(name, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = TrainingArguments(str(tmp_path), use_cpu=True, compat="5", **given)
        theirs = REFERENCE.arguments(tmp_path, **given)
        cls, kwargs = chosen(lambda: optimizer_class_and_kwargs(ours, model))
        their_cls, their_kwargs = chosen(lambda: transformers.Trainer.get_optimizer_cls_and_kwargs(theirs, model))
    inner = kwargs.pop("optimizer", None)
    if inner is not None:
        assert {
            f"{type(one).__module__}.{type(one).__qualname__}" for one in their_kwargs.pop("optimizer_dict").values()
        } == {f"{inner.__module__}.{inner.__qualname__}"}
    assert kwargs == numbers(their_kwargs)
    assert cls == OF_OURS.get(name, their_cls)


def test_every_name_that_runs_here_is_compared() -> None:
    assert {case.values[0] for case in CASES} | set(OWN) == set(rows.HERE)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("galore_adamw", {"betas": (0.8, 0.95), "eps": 1e-7}),
        ("apollo_adamw", {"betas": (0.8, 0.95), "eps": 1e-7}),
        ("grokadamw", {"betas": (0.8, 0.95), "eps": 1e-7}),
        ("lomo", {"weight_decay": 0.1, "clip_grad_norm": 1.0}),
    ],
)
def test_by_default_they_get_all_that_the_options_say(
    tmp_path: Path, model: nn.Module, name: str, more: dict[str, Any]
) -> None:
    given = {**arguments(name, None), "weight_decay": 0.1, "use_cpu": True}
    found = {}
    for compat in ("none", "5"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args = TrainingArguments(str(tmp_path), compat=compat, **given)
        found[compat] = optimizer_class_and_kwargs(args, model)[1]
    assert {key: found["none"][key] for key in more} == more
    assert not set(more) & set(found["5"])


@pytest.mark.parametrize("name", ["galore_adamw", "galore_adafactor", "apollo_adamw"])
def test_low_rank_optimizers_decay_what_others_decay(model: nn.Module, name: str) -> None:
    args = SimpleNamespace(**{**arguments(name, None), "weight_decay": 0.1})
    groups = optimizer_class_and_kwargs(args, model)[1]["params"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1]
    assert [len(group["params"]) for group in groups] == [2, 3, 7]  # embeddings and head; normalisations; projected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("galore_adamw", "ranks=4", "'ranks' is no option of 'galore_adamw', which has rank, .*did you mean 'rank'"),
        ("galore_adamw", "rank=four", "rank='four' is not a whole number"),
        ("apollo_adamw", "scale=big", "scale='big' is not a number"),
        ("adamw_anyprecision", "momentum_dtype=int8", "momentum_dtype='int8' is not a number format"),
        ("adamw_torch_4bit", "blocksize=128", "'blocksize' is no option of 'adamw_torch_4bit'"),
        ("lion_8bit", "alpha=2", "'alpha' is no option of 'lion_8bit', which has min_8bit_size"),
        ("ademamix", "beta4=2", "'beta4' is no option of 'ademamix'"),
        ("lomo", "clip=1", "'clip' is no option of 'lomo', which has clip_grad_value"),
        ("schedule_free_sgd", "rr=1", "'rr' is no option of 'schedule_free_sgd', which has weight_lr_power, r"),
        ("stable_adamw", "kahan_sum=perhaps", "kahan_sum='perhaps' is not a boolean"),
        ("grokadamw", "lambda=1", "'lambda' is no option of 'grokadamw'.*did you mean 'lamb'"),
        ("adamw_hf", "eps=1", "'eps' is no option of 'adamw_hf', which has no options"),
    ],
)
def test_an_option_that_cannot_be_is_named(model: nn.Module, name: str, text: str, message: str) -> None:
    if not rows.is_installed(name):
        pytest.skip(f"{name}: package not here")
    with pytest.raises(ValueError, match=message):
        optimizer_class_and_kwargs(SimpleNamespace(**arguments(name, text)), model)
