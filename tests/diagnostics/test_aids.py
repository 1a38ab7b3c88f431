"""The option `debug` in a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mainspring import Trainer, TrainerCallback, TrainingArguments
from mainspring.diagnostics.aids import DebuggingAids
from mainspring.errors import OptionError
from mainspring.training_args import DebugOption
from tests.diagnostics.broken import HalfPrecision, Model, Root, as_mapping, as_tuple, handing_on

ROWS = 12


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.rand(4, generator=generator) + 0.1, "labels": 0.5} for _ in range(ROWS)]


def trainer(folder: Path, *inside: nn.Module, data: Any = None, callbacks: Any = None, **options: Any) -> Trainer:
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "save_strategy": "no", "debug": "underflow_overflow"}
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **{**settings, **options})
    model = handing_on(Model(*inside, pack=as_mapping), gain=20.0)
    return Trainer(model, args, train_dataset=rows() if data is None else data, callbacks=callbacks)


def is_hooked(model: nn.Module) -> bool:
    modules = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return modules or any(parameter._backward_hooks for parameter in model.parameters())


class Looks(TrainerCallback):
    """Notes in every update whether the model has hooks."""

    def __init__(self) -> None:
        self.hooked: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hooked.append(is_hooked(kwargs["model"]))


@pytest.mark.parametrize(
    "debug",
    ["underflow_overflow", ["underflow_overflow"], [DebugOption.UNDERFLOW_OVERFLOW]],
    ids=["text", "list", "enumeration"],
)
def test_every_spelling_watches_the_run_and_changes_no_number(debug: Any, tmp_path: Path) -> None:
    looks = Looks()
    watched, plain = trainer(tmp_path, debug=debug, callbacks=[looks]), trainer(tmp_path, debug="")
    assert watched.args.debug == [DebugOption.UNDERFLOW_OVERFLOW]
    assert watched.train().training_loss == plain.train().training_loss
    assert looks.hooked == [True] * 3
    assert not is_hooked(watched.model)
    for one, other in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parity
@pytest.mark.parametrize("debug", ["underflow_overflow", ["underflow_overflow"]], ids=["text", "list"])
def test_a_broken_run_reports_as_under_the_reference(
    debug: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line by line, but for the keyword arguments, which the reference leaves out."""
    import transformers

    import mainspring

    reports = []
    for api in (transformers, mainspring):
        data = rows()
        for row in data[4:6]:
            row["x"] = row["x"] * 1e5
        model = handing_on(Model(HalfPrecision(), pack=as_tuple), gain=70.0)
        options = {"per_device_train_batch_size": 2, "max_steps": 6, "save_strategy": "no", "logging_steps": 100}
        args = api.TrainingArguments(
            str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none", debug=debug, **options
        )
        run = api.Trainer(model, args, train_dataset=data)
        with pytest.raises(ValueError, match="DebugUnderflowOverflow"):
            run.train()
        lines = capsys.readouterr().out.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("output has"))
        shown = [line for line in lines[start:] if not line.endswith(("input[x]", "input[labels]"))]
        reports.append((run.state.global_step, shown))
    assert reports[0] == reports[1]
    assert len(reports[0][1]) > 20


def test_arguments_of_the_reference_switch_it_on(tmp_path: Path) -> None:
    import transformers

    args = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", max_steps=1, debug="underflow_overflow"
    )
    looks = Looks()
    Trainer(handing_on(Model(pack=as_mapping)), args, train_dataset=rows(), callbacks=[looks]).train()
    assert looks.hooked == [True]


def test_the_run_ends_at_the_module_and_leaves_no_hook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows()
    for row in data:
        row["x"] = row["x"] * 100
    run = trainer(tmp_path, HalfPrecision(), data=data)
    run.model.stack[0].weight.data *= 10
    with pytest.raises(ValueError, match=r"in the forward pass of stack\.1 \(HalfPrecision\): output"):
        run.train()
    assert not is_hooked(run.model)
    assert "Last 3 forward frames:" in capsys.readouterr().out


def test_a_gradient_ends_the_run_too(tmp_path: Path) -> None:
    data = rows()
    for row in data:
        row["x"][3] = 0.0
    run = trainer(tmp_path, Root(), data=data)
    with pytest.raises(ValueError, match=r"in the backward pass of stack\.1 \(Root\)"):
        run.train()
    assert not is_hooked(run.model)


def test_under_a_loss_scale_gradients_may_overflow(tmp_path: Path) -> None:
    """The first scales are too large: this is how the right one is found."""
    run = trainer(tmp_path, fp16=True)
    run.model.head.weight.data.fill_(3.0)
    run.train()
    assert run._engine.scaler is not None
    assert run._engine.scaler.get_scale() < 65536.0
    assert run.state.global_step == 3


def test_unknown_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'underflow' is not one of underflow_overflow, .*did you mean"):
        TrainingArguments(str(tmp_path), debug="underflow")


def test_a_compiled_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^debug='underflow_overflow': a compiled model"):
        trainer(tmp_path, torch_compile=True)


def test_pieces_and_copies_are_refused(tmp_path: Path) -> None:
    from mainspring.engines.base import EngineOptions
    from mainspring.engines.data_parallel import DataParallel
    from mainspring.engines.fsdp.second import FSDP2

    for engine, why in ((DataParallel, "2 GPUs with copies"), (FSDP2, "only pieces")):
        made = engine.__new__(engine)  # neither can be built without devices or processes
        made.options = EngineOptions(devices=2)
        with pytest.raises(OptionError, match=why):
            DebuggingAids(["underflow_overflow"], made)


def test_xlas_counters_are_refused_where_there_is_no_xla(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^debug='tpu_metrics_debug': the engine 'single'"):
        trainer(tmp_path, debug="tpu_metrics_debug")


def test_xlas_counters_are_printed_after_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mainspring.engines.base import SingleProcess

    monkeypatch.setattr(SingleProcess, "compiler_metrics", lambda self: "Counter: CreateXlaTensor")
    looks = Looks()
    run = trainer(tmp_path, debug="tpu_metrics_debug", max_steps=-1, num_train_epochs=2, callbacks=[looks])
    run.train()
    assert capsys.readouterr().out.count("Counter: CreateXlaTensor") == 2
    assert not any(looks.hooked)


def test_nothing_of_it_is_imported_when_it_is_off(tmp_path: Path) -> None:
    code = f"""
import sys
import torch
from mainspring import Trainer, TrainingArguments

model = torch.nn.Linear(2, 1)
args = TrainingArguments({str(tmp_path)!r}, use_cpu=True, max_steps=1, report_to="none", save_strategy="no")
class Own(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(inputs["input"]).mean()
Own(model, args, train_dataset=[{{"input": torch.ones(2)}}] * 8).train()
print([name for name in sys.modules if name.startswith("mainspring.diagnostics")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
