"""The report names the one module and the one sample that were broken, and leaves everything as it was."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from mainspring.diagnostics import Divergence, Phase, explain
from mainspring.seeding import capture_rng
from tests.diagnostics.broken import (
    HalfPrecision,
    Model,
    Output,
    Root,
    Times,
    as_mapping,
    as_tuple,
    batches,
    handing_on,
    run,
)
from tests.helpers import data, models

PACKS = {"dataclass": Output, "mapping": as_mapping, "tuple": as_tuple}


def place(found: Divergence) -> tuple[Any, ...]:
    return found.phase, found.module, found.tensor, found.value, found.micro_batch, found.row


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_an_overflow_in_one_layer(pack: Any) -> None:
    model, given = handing_on(Model(HalfPrecision(), nn.GELU(), pack=pack), gain=70.0), batches()
    assert not explain(model, run, given).found
    given[1]["x"][3] = 5.0
    found = explain(model, run, given)
    assert place(found) == (Phase.FORWARD, "stack.1", "output", "inf", 1, 3)
    assert found.module_class == "HalfPrecision"
    with torch.no_grad():
        went_in = model.stack[0](torch.tanh(model.first(given[1]["x"]))).abs().max()
    assert found.abs_max == pytest.approx(float(went_in))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("column", "row"), [("x", 3), ("labels", 4)])
def test_one_sample_of_the_batch(column: str, row: int, value: float) -> None:
    given = batches()
    given[2][column][row] = value
    found = explain(Model(), run, given)
    assert place(found) == (Phase.INPUTS, "", column, str(value), 2, row)


def test_an_infinite_parameter() -> None:
    model = Model()
    model.head.bias.data[0] = float("inf")
    found = explain(model, run, batches())
    assert place(found) == (Phase.PARAMETERS, "head", "bias", "inf", None, None)
    assert found.module_class == "Linear"


def test_a_gradient_alone() -> None:
    """The square root of 0: the loss is finite."""
    model, given = handing_on(Model(Root())), batches()
    assert not explain(model, run, given).found
    given[1]["x"][2, 3] = 0.0
    assert torch.isfinite(run(copy.deepcopy(model), given[1]))
    found = explain(model, run, given)
    assert (found.phase, found.module, found.module_class) == (Phase.BACKWARD, "stack.1", "Root")
    assert (found.tensor, found.micro_batch, found.row) == ("gradient of input[0]", 1, 2)
    assert found.abs_max is not None


class OwnCode(Model):
    """Takes the root itself, between two modules."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        hidden = self.stack(torch.tanh(self.first(x)))
        return {"loss": (self.head(hidden.abs().sqrt()).squeeze(-1) - labels).square().mean()}


def test_a_gradient_in_code_between_modules_is_that_of_the_caller() -> None:
    model, given = handing_on(OwnCode()), batches(1)
    given[0]["x"][4, 3] = 0.0
    found = explain(model, run, given)
    assert (found.phase, found.module, found.module_class, found.row) == (Phase.BACKWARD, "", "OwnCode", 4)
    assert "of stack" in found.tensor


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A loss that is made outside of the model: the logarithm of a negative number for one label."""
    prediction = model(batch["x"]).logits
    loss = (prediction - batch["labels"]).square()
    loss = torch.where(batch["labels"] == 9, (-loss).log(), loss).mean()
    loss.backward()
    return loss.detach()


def test_the_loss_itself_and_the_sample_that_shows_it_alone() -> None:
    given = batches()
    assert not explain(Model(), own_loss, given).found
    given[1]["labels"][3] = 9.0
    found = explain(Model(), own_loss, given)
    assert place(found) == (Phase.LOSS, "", "the loss", "nan", 1, 3)


def test_a_loss_inside_the_model() -> None:
    """Without a label that counts, a mean is 0 / 0."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.head(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(5, 4)
    given = [{"x": x, "labels": torch.arange(5) % 3}, {"x": x, "labels": torch.full((5,), -100)}]
    found = explain(model, run, given)
    assert (found.phase, found.tensor, found.value, found.micro_batch) == (Phase.LOSS, "output[loss]", "nan", 1)
    assert found.abs_max == pytest.approx(model.head(x).abs().max().item())


def test_gradients_that_only_their_sum_makes_infinite() -> None:
    def steep(model: nn.Module, batch: Any) -> Tensor:
        loss = model(batch["x"]).sum() * 2e38
        loss.backward()
        return loss.detach() * 0

    model = nn.Linear(1, 1)
    given = [{"x": torch.ones(1, 1)} for _ in range(3)]
    found = explain(model, steep, given)
    assert found.phase is Phase.BACKWARD
    assert found.tensor == "sum of the gradients of weight over the micro-batches"
    assert found.micro_batch == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_overflow_to_the_negative() -> None:
    model, given = handing_on(Model(HalfPrecision(), nn.GELU()), gain=-70.0), batches()
    given[1]["x"][3] = 5.0
    found = explain(model, run, given)
    assert place(found) == (Phase.FORWARD, "stack.1", "output", "-inf", 1, 3)


def test_an_infinite_input_of_the_negative() -> None:
    given = batches()
    given[1]["x"][3, 0] = float("-inf")
    # The loss is finite, since tanh makes -1 of it; the gradient of the first weight is not.
    assert torch.isfinite(run(Model(), given[1]))
    assert place(explain(Model(), run, given)) == (Phase.INPUTS, "", "x", "-inf", 1, 3)
    model = nn.Linear(4, 1)

    def squares(model: nn.Module, batch: Any) -> Tensor:
        loss = model(batch["x"]).square().mean()
        loss.backward()
        return loss.detach()

    assert place(explain(model, squares, given)) == (Phase.INPUTS, "", "x", "-inf", 1, 3)


class Scores(nn.Module):
    """Scores of which some are masked, as before a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(4) > 2, float("-inf"), x)


def test_masked_scores_are_not_blamed_for_a_loss() -> None:
    model, given = nn.Sequential(nn.Linear(4, 4), Scores(), nn.Softmax(-1)), batches()

    def logarithm(model: nn.Module, batch: Any) -> Tensor:
        loss = (model(batch["x"])[:, 0] - 2 * (batch["labels"] == 9)).log().mean()
        loss.backward()
        return loss.detach()

    assert not explain(model, logarithm, given).found
    given[2]["labels"][1] = 9.0
    assert place(explain(model, logarithm, given)) == (Phase.LOSS, "", "the loss", "nan", 2, 1)


def test_masks_of_minus_infinity_are_not_blamed() -> None:
    class Masking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(torch.arange(4) > 2, float("-inf"), 0.0).expand_as(x)

    class Attending(Model):
        def __init__(self) -> None:
            super().__init__(HalfPrecision())
            self.mask = Masking()

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            weights = torch.softmax(x + self.mask(x), dim=-1)
            return super().forward(weights * x, labels)

    model, given = Attending(), batches()
    assert not explain(model, run, given).found
    model.stack[0].weight.data *= 1e6
    assert explain(model, run, given).module == "stack.1"


def test_a_module_that_is_used_twice() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), Times(1.0))
    model[2] = nn.Sequential(model[0], nn.ReLU(), Times(1e38), model[0])

    def squares(model: nn.Module, batch: Any) -> Tensor:
        loss = model(batch["x"]).square().mean()
        loss.backward()
        return loss.detach()

    torch.manual_seed(0)
    nn.init.constant_(model[0].weight, 2.0)
    found = explain(model, squares, batches(1))
    assert found.phase is Phase.FORWARD
    assert found.module in ("0", "2.2")
    assert found.row is not None


def test_dropout_falls_as_it_fell() -> None:
    """Only with the random numbers of the event does the sample come through that breaks the loss."""
    model = nn.Sequential(nn.Dropout(0.9), Times(3e38), nn.Linear(1, 1))

    def mean(model: nn.Module, batch: Any) -> Tensor:
        loss = model(batch["x"]).mean()
        loss.backward()
        return loss.detach()

    given = [{"x": torch.ones(6, 1)} for _ in range(2)]
    for seed in range(20):
        torch.manual_seed(seed)
        states = capture_rng(distributed=False)
        kept = [nn.functional.dropout(one["x"], 0.9).flatten().nonzero().flatten().tolist() for one in given]
        torch.manual_seed(77)
        before = capture_rng(distributed=False)["cpu"]
        found = explain(model, mean, given, states)
        assert torch.equal(before, torch.get_rng_state())
        rows = [(number, row) for number, one in enumerate(kept) for row in one]
        assert (found.micro_batch, found.row) == (rows[0] if rows else (None, None))


def test_everything_is_as_before() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1  # another tensor in its place
            self.train()
            return x

    model, given = Model(nn.BatchNorm1d(4), nn.Dropout(0.5), Counting(), HalfPrecision()), batches()
    run(model, given[0])
    model.eval()
    model.stack[1].train()
    given[1]["x"][0] = float("nan")
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    buffer, gradients = model.stack[3].calls, [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    drawn = torch.get_rng_state()
    assert explain(model, run, given).found
    assert [module.training for module in model.modules()] == modes
    assert model.stack[3].calls is buffer
    assert all(parameter.grad is one for parameter, one in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(one, value) for one, value in zip(gradients, values, strict=True))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_batch_normalisation_spreads_it_but_the_sample_is_found() -> None:
    model, given = Model(nn.BatchNorm1d(4)), batches()
    given[0]["x"][1] = float("nan")
    assert explain(model, run, given).row == 1


def test_it_says_when_nothing_is_found() -> None:
    found = explain(Model(), run, batches())
    assert not found.found
    assert str(found) == (
        "where it came from could not be found: run again, every loss and gradient of the update is finite"
    )


def test_an_error_in_the_replay_does_not_hide_the_event() -> None:
    def failing(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("labels")

    model = Model()
    assert "running the update again ended with KeyError: 'labels'" in str(explain(model, failing, batches()))
    assert not model._forward_hooks


def test_an_optimizer_inside_the_backward_pass_is_not_run_again() -> None:
    model = Model()
    model.head.weight.register_post_accumulate_grad_hook(lambda parameter: parameter.data.zero_())
    weight = model.head.weight.clone()
    assert "would change the weights" in explain(model, run, batches()).why_not
    assert torch.equal(weight, model.head.weight)


def test_gradient_checkpointing() -> None:
    for reentrant in (True, False):

        class Recomputing(Model):
            def forward(self, x: Tensor, labels: Tensor, reentrant: bool = reentrant) -> Any:
                hidden: Any = torch.utils.checkpoint.checkpoint(
                    self.stack, torch.tanh(self.first(x)), use_reentrant=reentrant
                )
                return {"loss": nn.functional.mse_loss(self.head(hidden).squeeze(-1), labels)}

        model, given = handing_on(Recomputing(Root())), batches()
        given[1]["x"][2, 3] = 0.0
        found = explain(model, run, given)
        assert (found.phase, found.module, found.row) == (Phase.BACKWARD, "stack.1", 2), reentrant


def test_compiled_models_run_as_they_were_written() -> None:
    model, given = Model(HalfPrecision()), batches()
    model.stack[0].weight.data *= 1e6
    compiled: Any = torch.compile(model, backend="eager")
    assert explain(compiled, run, given).module == "stack.1"
    model.compile(backend="eager")
    assert explain(model, run, given).module == "stack.1"


def test_the_report_is_frozen_and_reads_well() -> None:
    model, given = Model(HalfPrecision()), batches()
    handing_on(model, gain=1e6)
    found = explain(model, run, given)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.row = 1  # type: ignore[misc]
    lines = str(found).splitlines()
    assert lines[:3] == [
        "the first value that is not finite appeared in the forward pass: inf in output",
        "  module: stack.1 (HalfPrecision)",
        f"  sample: row {found.row} of micro-batch 0",
    ]
    assert lines[3].startswith("  largest magnitude that went in: ")
    assert len(lines) == 4


def test_positional_batches_and_rows_times_positions() -> None:
    """A layer that sees samples and positions in one dimension still tells the sample."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Times(1e30)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(0, 1)).mean()

    def forward(model: Callable[..., Tensor], batch: Any) -> Tensor:
        return model(*batch)

    x = torch.ones(3, 7, 2)
    x[1, 4, 0] = 1e20
    found = explain(Flat(), forward, [(x,)])
    assert (found.module, found.row) == ("layer", 1)


def test_a_transformer_in_the_trainers_own_step(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", save_strategy="no")
    torch.manual_seed(0)
    model = models.tiny_gpt2(dropout=0.1)
    trainer = Trainer(model, args, data_collator=data.collate_text)
    given = [data.collate_text(data.ragged_text(4, seed=seed)) for seed in range(2)]
    items = torch.tensor(50)

    def step(part: nn.Module, batch: Any) -> Tensor:
        return trainer.training_step(part, batch, items)

    assert not explain(model, step, given).found
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.mul_(1e38).mul_(100).clamp_(-3e38, 3e38)
    found = explain(model, step, given)
    assert (found.phase, found.module, found.module_class) == (Phase.FORWARD, "transformer.h.1.mlp.c_fc", "Conv1D")
    assert found.micro_batch == 0
