"""Training without logits: the same numbers, in every way to train, and never a tensor of their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mainspring import Trainer, TrainingArguments
from mainspring.errors import OptionError
from tests.helpers import data
from tests.helpers.models import VOCABULARY, tiny_gpt2

TOLERANCE = 1e-5
TEXTS = data.Items(data.ragged_text(22))


def trainer(folder: Path, chunked: bool = True, cls: type[Trainer] = Trainer, **options: Any) -> Any:
    given = {
        name: options.pop(name)
        for name in ("model", "model_init", "compute_loss_func", "compute_metrics")
        if name in options
    }
    defaults: dict[str, Any] = {
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    torch.manual_seed(0)
    if "model" not in given and "model_init" not in given:
        given["model"] = tiny_gpt2(dropout=0.1)
    args = TrainingArguments(str(folder), **{**defaults, "chunked_cross_entropy": chunked, **options})
    collator = None if options.get("pack_sequences") else data.collate_text
    return cls(args=args, train_dataset=TEXTS, eval_dataset=TEXTS, data_collator=collator, **given)


def losses(of: Any) -> list[float]:
    return [log["loss"] for log in of.state.log_history if "loss" in log]


def trained(folder: Path, chunked: bool = True, **options: Any) -> Any:
    made = trainer(folder, chunked, **options)
    made.train()
    return made


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "means of micro-batches": {"gradient_accumulation_steps": 3, "compat": "5", "average_tokens_across_devices": False},
    "recomputed activations": {"gradient_checkpointing": True},
    "packed": {"pack_sequences": True, "per_device_train_batch_size": 2},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 3},
    "clipped": {"max_grad_norm": 0.1},
    "in the backward pass": {"optimizer_in_backward": True, "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_losses_are_those_with_logits(way: str, tmp_path: Path) -> None:
    found, expected = (trained(tmp_path / str(chunked), chunked, **WAYS[way]) for chunked in (True, False))
    assert len(losses(found)) >= 3
    assert losses(found) == pytest.approx(losses(expected), rel=TOLERANCE)
    norms = [[log["grad_norm"] for log in of.state.log_history if "loss" in log] for of in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    if way != "packed":  # rows of evaluations would need a collator that pads
        assert found.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=TOLERANCE)


def test_half_precision(tmp_path: Path) -> None:
    found, expected = (trained(tmp_path / str(chunked), chunked, bf16=True) for chunked in (True, False))
    assert losses(found) == pytest.approx(losses(expected), rel=2e-3)


class Sizes(TorchDispatchMode):
    """The most elements that a tensor with one number per class has had."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.dim() > 1 and one.shape[-1] == VOCABULARY:
                self.largest = max(self.largest, one.numel() // VOCABULARY)
        return made


def test_no_tensor_is_of_the_size_of_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the own implementation, whose chunks are made small here: torch's operator does not show what it makes."""
    monkeypatch.setattr("mainspring.chunked_loss.kernels.rows_of_chunk", lambda width: 7)
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    rows = {}
    for chunked in (True, False):
        model = tiny_gpt2(width=20)  # of which no other layer is as wide as there are classes
        made = trainer(tmp_path / str(chunked), chunked, model=model, prediction_loss_only=True)
        with Sizes() as sizes:
            made.train()
            made.evaluate()
        rows[chunked] = sizes.largest
    assert rows[True] == 20  # the weights, transposed; a chunk has 7
    assert rows[False] > 30


def test_predictions_and_metrics_have_logits(tmp_path: Path) -> None:
    seen = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {"zero": 0.0}

    made = trainer(tmp_path, compute_metrics=metrics)
    made.evaluate()
    assert made.predict(TEXTS).predictions.shape == seen[0]
    assert seen[0][-1] == VOCABULARY


def test_a_run_is_resumed_exactly_and_without_the_option(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=2)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed, plain = trainer(tmp_path / "resumed"), trainer(tmp_path / "plain", chunked=False)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert losses(resumed)[-3:] == losses(whole)[-3:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    plain.train(resume_from_checkpoint=checkpoint)
    assert losses(plain)[-3:] == pytest.approx(losses(whole)[-3:], rel=TOLERANCE)


def test_each_new_model_has_its_own_head(tmp_path: Path) -> None:
    made = trainer(tmp_path, model_init=lambda: tiny_gpt2())
    first = made._loss_head
    made.train()
    assert made._loss_head is not first
    assert made._loss_head.layer is made.model.lm_head
    assert made._loss_head.is_used


def test_evaluations_alone_do_without_logits(tmp_path: Path) -> None:
    made, seen = trainer(tmp_path), []
    made.model.register_forward_hook(lambda module, inputs, outputs: seen.append("logits" in outputs))
    assert made.evaluate()["eval_loss"] == pytest.approx(
        trainer(tmp_path, False, model=made.model).evaluate()["eval_loss"]
    )
    half = len(seen) // 2
    assert seen == [False] * half + [True] * half


# ---- what a subclass makes of it ----


def test_an_override_of_compute_loss_finds_no_logits(tmp_path: Path) -> None:
    seen = []

    class Twice(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            seen.append(outputs.logits)
            return 2 * loss

    doubled = trained(tmp_path / "a", cls=Twice)
    assert set(seen) == {None}
    assert losses(doubled)[0] == pytest.approx(2 * losses(trained(tmp_path / "b"))[0], rel=TOLERANCE)


def test_a_body_that_goes_round_it_is_refused(tmp_path: Path) -> None:
    class Copied(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    with pytest.raises(OptionError, match="chunked_cross_entropy=True: .* a training_step that has a body of its own"):
        trained(tmp_path, cls=Copied)


def test_a_loss_of_logits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="chunked_cross_entropy=True: compute_loss_func makes the loss of logits"):
        trainer(tmp_path, compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum())
