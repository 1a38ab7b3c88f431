"""Accelerate under our accelerator: which settings reach it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from mainspring import TrainingArguments
from mainspring.arguments.accelerator_config import AcceleratorConfig
from mainspring.engines.accelerator import build_accelerator
from mainspring.errors import OptionError
from tests.helpers import loaders

CONFIGURED = {"use_configured_state": True}


@pytest.fixture(autouse=True)
def _no_state() -> Iterator[None]:
    def forget() -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    forget()
    yield
    forget()


def test_settings_reach_what_a_script_prepares() -> None:
    settings = AcceleratorConfig(
        split_batches=True, dispatch_batches=True, even_batches=False, use_seedable_sampler=False, non_blocking=True
    )
    accelerator = build_accelerator(cpu=True, mixed_precision="no", data_seed=5, settings=settings)
    assert accelerator.split_batches is accelerator.dispatch_batches is accelerator.non_blocking is True
    assert accelerator.even_batches is accelerator.use_seedable_sampler is False
    assert accelerator.dataloader_config.data_seed == 5
    assert build_accelerator(cpu=True, mixed_precision="no").use_seedable_sampler is True


def test_keywords_of_accumulation_reach_what_a_script_accumulates() -> None:
    given = {"num_steps": 4, "sync_with_dataloader": False, "adjust_scheduler": False}
    settings = AcceleratorConfig(gradient_accumulation_kwargs=given)
    state = build_accelerator(cpu=True, mixed_precision="no", settings=settings).gradient_state
    assert (state.num_steps, state.sync_with_dataloader, state.adjust_scheduler) == (1, False, False)


def test_a_state_that_is_to_be_kept_must_be_there(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, accelerator_config=CONFIGURED)
    with pytest.raises(OptionError, match="use_configured_state.*no state of Accelerate was made before"):
        _ = args.device
    PartialState(cpu=True)
    assert args.device == torch.device("cpu")


def test_a_configured_state_is_kept(tmp_path: Path) -> None:
    script = Accelerator(cpu=True, mixed_precision="bf16")
    script.state.noted = "by the script"
    run = loaders.trainer(tmp_path, bf16=True, accelerator_config=CONFIGURED, save_strategy="no", save_steps=500)
    assert run.accelerator.state.noted == "by the script"
    run.train()
    again = loaders.trainer(tmp_path, bf16=True, save_strategy="no", save_steps=500)
    assert not hasattr(again.accelerator.state, "noted")


def test_a_configured_state_of_another_precision_is_refused(tmp_path: Path) -> None:
    Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(OptionError, match="has mixed_precision='bf16', and the options ask for 'no'"):
        loaders.trainer(tmp_path, accelerator_config=CONFIGURED)
