"""`optim_target_modules`: the layers that are meant are those that the reference takes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

from mainspring import TrainingArguments
from mainspring.errors import OptionError
from mainspring.optimizers import optimizer_class_and_kwargs
from mainspring.optimizers.targets import target_layers
from tests.helpers.sides import REFERENCE
from tests.optimizers import rows

TABLE: list[Any] = [
    "all-linear",
    "all_linear",
    ["attn", "mlp"],
    ["self_attn"],
    ["mlp.up_proj", "q_proj"],
    ["q"],
    r".*\.(q|v)_proj",
    r".*attn.*",
    r"model\.layers\.0\.mlp\.down_proj",
    [r".*\.q_proj", "lm_head"],
    [r"model\.layers\.\d\.mlp\.gate_proj"],
    [r".*.attn.*", r".*.mlp.*"],
    ["model.layers.0.self_attn.o_proj"],
    ["lm_head", "embed_tokens"],
]
NOTHING: list[Any] = ["q_proj", "attn", ["nothing"], r"layers\.0.*", ["embed_tokens"]]
"""A text has to match a whole name."""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    built: nn.Module = rows.tiny_llama()
    return built


def of_reference(model: nn.Module, targets: Any, folder: Path) -> set[str]:
    args = REFERENCE.arguments(folder, optim="galore_adamw", optim_target_modules=targets)
    logging.disable(logging.WARNING)
    try:
        kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)[1]
    finally:
        logging.disable(logging.NOTSET)
    projected = {id(parameter) for parameter in kwargs["params"][1]["params"]}
    return {name.removesuffix(".weight") for name, p in model.named_parameters() if id(p) in projected}


@pytest.mark.parity
@pytest.mark.skipif(not rows.is_installed("galore_adamw"), reason="galore-torch is not here")
@pytest.mark.parametrize("targets", TABLE, ids=str)
def test_they_are_those_of_the_reference(tmp_path: Path, model: nn.Module, targets: Any) -> None:
    assert set(target_layers(model, targets, "galore_adamw")) == of_reference(model, targets, tmp_path)


@pytest.mark.parity
@pytest.mark.skipif(not rows.is_installed("galore_adamw"), reason="galore-torch is not here")
@pytest.mark.parametrize("targets", NOTHING, ids=str)
def test_where_the_reference_finds_none_there_is_none(tmp_path: Path, model: nn.Module, targets: Any) -> None:
    with pytest.raises(ValueError, match="No target modules found"):
        of_reference(model, targets, tmp_path)
    with pytest.raises(
        OptionError, match=r"no linear layer of LlamaForCausalLM matches; name some of: model\.layers\.0"
    ):
        target_layers(model, targets, "galore_adamw")


def test_a_layer_that_is_misspelt_is_suggested(model: nn.Module) -> None:
    with pytest.raises(OptionError, match="did you mean 'q_proj'"):
        target_layers(model, ["q_porj"], "galore_adamw")


def test_what_is_no_expression_is_refused(model: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"'\(' is no regular expression"):
        target_layers(model, ["("], "galore_adamw")


@pytest.mark.parametrize("targets", [None, "", []])
def test_none_is_refused_with_the_options(targets: Any) -> None:
    with pytest.raises(OptionError, match="optim_target_modules=.* has to be told which linear layers"):
        TrainingArguments("out", optim="galore_adamw", optim_target_modules=targets)


@pytest.mark.skipif(not rows.is_installed("galore_adamw"), reason="galore-torch is not here")
def test_matching_nothing_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no linear layer"):
        rows.trainer(tmp_path, "galore_adamw", optim_target_modules=["nothing"])


@pytest.mark.skipif(not rows.is_installed("galore_adamw"), reason="galore-torch is not here")
def test_frozen_layers_are_refused(tmp_path: Path) -> None:
    model: Any = rows.tiny_llama()
    model.model.layers.requires_grad_(False)
    with pytest.raises(OptionError, match="the layers that match are frozen"):
        rows.trainer(tmp_path, "galore_adamw", model=model)


@pytest.mark.skipif(not rows.is_installed("galore_adamw"), reason="galore-torch is not here")
def test_a_head_that_is_tied_to_the_embeddings_is_not_projected(tmp_path: Path) -> None:
    model: Any = rows.tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    args = TrainingArguments(str(tmp_path), optim="galore_adamw", optim_target_modules="all-linear")
    plain, projected = optimizer_class_and_kwargs(args, model)[1]["params"]
    assert [parameter is model.lm_head.weight for parameter in plain["params"]].count(True) == 1
    assert len(projected["params"]) == 7
    assert not any(parameter is model.lm_head.weight for parameter in projected["params"])
    with pytest.raises(OptionError, match="the layers that match share their weights with embeddings: lm_head"):
        optimizer_class_and_kwargs(
            TrainingArguments("out", optim="galore_adamw", optim_target_modules="lm_head"), model
        )


def test_layers_that_are_not_linear_are_told(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "mainspring"):
        found = target_layers(model, ["embed_tokens", "lm_head"], "galore_adamw")
    assert list(found) == ["lm_head"]
    assert "only linear layers are projected, not model.embed_tokens" in caplog.text
