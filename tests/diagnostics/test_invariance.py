"""Right losses give a batch one gradient however it is split; wrong ones are found, and nothing is left behind."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from mainspring.diagnostics import Invariance, grad_invariance
from tests.helpers import data, models


def trainer(folder: Path, model: Any, items: Any, cls: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    own = {key: changes.pop(key) for key in ("data_collator", "compute_loss_func") if key in changes}
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **changes}
    args = TrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", max_steps=2, **options
    )
    return cls(model, args, train_dataset=items, **own)


def language_model(folder: Path, cls: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    changes = {"data_collator": data.collate_to_full_length, **changes}
    return trainer(folder, models.tiny_gpt2(dropout=0.3), data.Items(data.ragged_text(32)), cls, **changes)


def regressor(folder: Path, cls: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    return trainer(folder, models.Regressor(dropout=0.3), data.Items(data.points(32)), cls, **changes)


def measured(of: Trainer, **options: Any) -> Invariance:
    out = io.StringIO()
    found = grad_invariance(of, file=out, **options)
    assert out.getvalue() == f"{found}\n"
    return found


def cross_entropy(outputs: Any, labels: Tensor, reduction: str) -> Tensor:
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction=reduction)


def normalised(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return cross_entropy(outputs, labels, "sum") / num_items_in_batch


def ignoring_the_number(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return cross_entropy(outputs, labels, "mean")


class PlainSum(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return cross_entropy(model(input_ids=inputs["input_ids"]), inputs["labels"], "sum")


class OlderMean(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        return cross_entropy(model(input_ids=inputs["input_ids"]), inputs["labels"], "mean")


RIGHT = {
    "a language model": (language_model, {}),
    "padded apart": (language_model, {"data_collator": data.collate_text}),
    "without accumulation": (language_model, {"gradient_accumulation_steps": 1}),
    "means of a regression": (regressor, {}),
    "smoothed labels": (language_model, {"label_smoothing_factor": 0.1}),
    "a loss of one's own": (language_model, {"compute_loss_func": normalised}),
    "an override of the older generation": (language_model, {"cls": OlderMean}),
    "loss scaling": (language_model, {"fp16": True}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_pass(name: str, tmp_path: Path) -> None:
    build, changes = RIGHT[name]
    found = measured(build(tmp_path, **changes))
    assert found.ok, str(found)
    assert [split.name for split in found.splits] == ["halves", "singles", "uneven"]
    assert found.tolerance == (0.05 if "fp16" in changes else 1e-4)
    assert all(split.scale == pytest.approx(1, abs=found.tolerance) for split in found.splits)
    assert "fit together" in str(found) if name == "padded apart" else not found.notes


WRONG = {
    "ignores the number of items": {"compute_loss_func": ignoring_the_number},
    "a plain sum": {"cls": PlainSum},
    "the reference's numbers": {"cls": OlderMean, "compat": "5"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_losses_are_found(name: str, tmp_path: Path) -> None:
    found = measured(language_model(tmp_path, **WRONG[name]))
    assert not found.ok
    assert max(split.deviation for split in found.splits) > 0.1
    assert "<- differs" in str(found)
    assert all(split.parameter in dict(language_model(tmp_path).model.named_parameters()) for split in found.splits)


def test_a_gradient_that_is_too_long_says_by_how_much(tmp_path: Path) -> None:
    """A mean that claims to be normalised by itself counts once for every micro-batch."""

    class Claims(OlderMean):
        loss_is_scaled_for_ga = True

    found = measured(language_model(tmp_path, Claims))
    halves, singles, _ = found.splits
    assert halves.sizes == (4, 4)
    assert singles.sizes == (1,) * 8
    assert halves.scale == pytest.approx(2, rel=0.2)
    assert singles.scale == pytest.approx(8, rel=0.2)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    run = language_model(tmp_path)
    run.train()
    run.model.transformer.h[0].eval()
    own, weights = dict(vars(run)), copy.deepcopy(run.model.state_dict())
    drawn, modes = torch.get_rng_state(), [module.training for module in run.model.modules()]
    dropouts = [module.p for module in run.model.modules() if isinstance(module, nn.Dropout)]
    state, logged = copy.copy(run.state), list(run.state.log_history)
    assert measured(run).ok
    assert vars(run) == own
    assert run.state == state
    assert run.state.log_history == logged
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert [module.training for module in run.model.modules()] == modes
    assert [module.p for module in run.model.modules() if isinstance(module, nn.Dropout)] == dropouts
    assert not run.model._forward_pre_hooks


def test_a_run_goes_as_if_it_had_not_been_measured(tmp_path: Path) -> None:
    measured_run, plain = language_model(tmp_path), language_model(tmp_path)
    torch.manual_seed(5)
    measured(measured_run)
    measured_run.train()
    torch.manual_seed(5)
    plain.train()
    for one, other in zip(measured_run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_optimizer_inside_the_backward_pass_does_not_act(tmp_path: Path) -> None:
    run = regressor(tmp_path, optimizer_in_backward=True, gradient_accumulation_steps=1)
    run.train()
    weights = copy.deepcopy(run.model.state_dict())
    assert measured(run).ok
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())


def test_batch_normalisation_is_left_out_and_said(tmp_path: Path) -> None:
    class Normalised(models.Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

    torch.manual_seed(0)
    found = measured(trainer(tmp_path, Normalised(), data.Items(data.points(32))))
    assert found.ok
    assert "batch normalisation" in str(found)


def test_recurrent_layers_lose_their_dropout(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.LSTM(1, 4, num_layers=2, dropout=0.5, batch_first=True)
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            prediction = self.head(self.layers(x[..., None])[0][:, -1]).squeeze(-1)
            return {"loss": nn.functional.mse_loss(prediction, labels)}

    torch.manual_seed(0)
    model = Recurrent()
    assert measured(trainer(tmp_path, model, data.Items(data.points(32)))).ok
    assert model.layers.dropout == 0.5


def test_a_batch_of_ones_own_and_a_tolerance(tmp_path: Path) -> None:
    run = regressor(tmp_path)
    batch = {"x": torch.randn(3, 4), "labels": torch.randn(3)}
    found = measured(run, batch=batch, tolerance=0.0)
    assert [split.sizes for split in found.splits] == [(2, 1), (1, 1, 1)]  # 2 + 1 is uneven already
    assert found.tolerance == 0.0
    assert not found.ok


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one sample cannot be split"):
        measured(regressor(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1))
    run = regressor(tmp_path)
    with pytest.raises(ValueError, match="what of it belongs to which sample"):
        measured(run, batch={"x": torch.randn(3, 4), "labels": torch.randn(3), "offsets": torch.arange(4)})
    for parameter in run.model.parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match="nothing to compare"):
        measured(run, batch={"x": torch.zeros(3, 4), "labels": torch.zeros(3)})
    run._engine.world_size = 2
    with pytest.raises(RuntimeError, match="started as one process"):
        measured(run)
