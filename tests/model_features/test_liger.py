"""Liger kernels: what is patched, what runs in Triton's interpreter, and what is refused, named and explained."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainingArguments
from mainspring.errors import NotAvailableError, OptionError
from mainspring.model_features import liger
from tests.helpers.models import Regressor, tiny_gpt2
from tests.model_features.worker_liger import FAMILIES, STEPS, model_of

CPU = torch.device("cpu")

with_package = pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel: pip install liger-kernel"
)
launched = pytest.mark.slow  # one process for all of them, which interprets


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process has seen, in which Triton interprets."""
    folder = tmp_path_factory.mktemp("liger")
    run = [sys.executable, "-m", "tests.model_features.worker_liger", str(folder)]
    ended = subprocess.run(
        run, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    seen: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return seen


# What is patched --------------------------------------------------------------------------------------------------


@with_package
@launched
@pytest.mark.parametrize("family", FAMILIES)
def test_all_usual_kernels_are_put_into_a_model(family: str, found: dict[str, Any]) -> None:
    seen = found["patched"][family]["plain"]
    experts = "MixtralExperts" if family == "Mixtral" else f"{family}MLP"
    assert seen["module"] == sorted([f"{family}RMSNorm", experts, "apply_rotary_pos_emb"])
    assert seen["norm"] == "LigerRMSNorm.forward"
    assert seen["instance"] == (["input_layernorm"] if family == "Mixtral" else ["input_layernorm", "mlp"])
    assert seen["forward"] == f"liger_kernel.transformers.model.{family.lower()}"
    assert not seen["loss"]


@with_package
@launched
@pytest.mark.parametrize("family", ["Llama", "Gemma", "Mixtral"])  # in Mistral's, the package replaces a name unread
def test_the_kernels_are_those_that_are_chosen(family: str, found: dict[str, Any]) -> None:
    seen = found["patched"][family]["loss"]
    assert seen["loss"]
    assert seen["forward"] != f"liger_kernel.transformers.model.{family.lower()}"


@with_package
@launched
def test_kernels_that_the_interpreter_may_not_run_are_told_of(found: dict[str, Any]) -> None:
    (message,) = found["patched"]["Llama"]["plain"]["warnings"]
    assert message.endswith("set liger_kernel_config={'rms_norm': False, 'swiglu': False}")


# What runs --------------------------------------------------------------------------------------------------------


@with_package
@launched
@pytest.mark.parametrize("name", [*FAMILIES, "adapters"])
def test_training_goes_as_without_kernels(name: str, found: dict[str, Any]) -> None:
    without, with_kernels = (found["runs"][name][which] for which in ("without", "with"))
    assert len(with_kernels["losses"]) == STEPS
    assert with_kernels["losses"] == pytest.approx(without["losses"], rel=1e-5)
    assert with_kernels["eval_loss"] == pytest.approx(without["eval_loss"], rel=1e-5)
    assert with_kernels["losses"][-1] < with_kernels["losses"][0]


@with_package
@launched
@pytest.mark.parametrize("name", [*FAMILIES, "adapters"])
def test_evaluations_of_the_loss_make_no_logits(name: str, found: dict[str, Any]) -> None:
    """One evaluation of one batch, and one prediction, which needs them."""
    assert found["runs"][name]["without"]["logits"] == [True, True]
    assert found["runs"][name]["with"]["logits"] == [False, True]


@with_package
@launched
@pytest.mark.parity
def test_a_run_is_the_references(found: dict[str, Any]) -> None:
    assert found["runs"]["mainspring"] == found["runs"]["reference"]


@with_package
@launched
def test_a_model_without_a_vocabulary_keeps_its_forward_pass(found: dict[str, Any]) -> None:
    """The reference lets the package bind a language model's forward pass to it, which fails."""
    assert found["classifier"] == [True, True]


# What is refused --------------------------------------------------------------------------------------------------


def test_without_the_package_the_command_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    args = TrainingArguments(str(tmp_path), use_cpu=True, use_liger_kernel=True)
    with pytest.raises(
        NotAvailableError, match="^use_liger_kernel=True: needs liger-kernel.*; pip install liger-kernel$"
    ):
        Trainer(tiny_gpt2(), args, train_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}]).train()


@with_package
def test_the_cpu_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(OptionError, match="run on a GPU.*TRITON_INTERPRET=1.*chunked_cross_entropy"):
        liger.patch(model_of("Llama"), None, CPU)


WRONG = {
    "unknown": ({"rmsnorm": True}, "'rmsnorm' is no kernel for LlamaForCausalLM .*; did you mean 'rms_norm'"),
    "no kernel": ({"model": True}, "'model' is no kernel"),
    "of another model": ({"geglu": True}, "'geglu' is no kernel for LlamaForCausalLM"),
    "two losses": ({"cross_entropy": True}, "exclude each other, .*; set fused_linear_cross_entropy to False"),
}


@with_package
@pytest.mark.parametrize("name", WRONG)
def test_choices_that_cannot_be_are_refused_by_name(name: str) -> None:
    config, message = WRONG[name]
    with pytest.raises(OptionError, match=f"^liger_kernel_config=.*{message}"):
        liger.patch(model_of("Llama"), config, CPU)


@with_package
def test_a_fused_loss_asked_of_a_classifier_is_refused() -> None:
    model = model_of("Llama", "ForSequenceClassification")
    with pytest.raises(OptionError, match="LlamaForSequenceClassification has no layer that gives logits"):
        liger.patch(model, {"fused_linear_cross_entropy": True}, CPU)


@with_package
@pytest.mark.parametrize("make", [tiny_gpt2, Regressor], ids=["gpt2", "plain"])
def test_models_without_kernels_are_told_of_and_left_alone(make: Any) -> None:
    model = make()
    with pytest.warns(
        UserWarning, match=f"use_liger_kernel=True: has no effect, .* no kernels for {type(model).__name__}"
    ):
        liger.patch(model, None, CPU)
    assert "forward" not in vars(model)


def test_a_choice_without_kernels_is_told_of() -> None:
    with pytest.warns(UserWarning, match="liger_kernel_config=.*has no effect, because use_liger_kernel is off"):
        _ = TrainingArguments("out", use_cpu=True, liger_kernel_config={"rope": True}).device


@pytest.mark.gpu
@with_package
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_all_kernels_give_the_loss_of_the_model(family: str) -> None:
    device = torch.device("cuda")
    ids = torch.arange(3, 43, device=device).view(4, 10)
    expected = model_of(family).to(device)(input_ids=ids, labels=ids).loss
    model = model_of(family).to(device)
    liger.patch(model, None, device)
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(expected.item(), rel=1e-3)
