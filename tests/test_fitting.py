"""Memory that runs out in training: the update is made of the same samples in smaller pieces, and nothing else changes."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mainspring import Trainer, TrainerCallback
from mainspring.errors import OptionError
from mainspring.fitting import FittingUpdates
from tests.helpers import data, models
from tests.helpers.scarce import (
    Kwargs,
    Normalised,
    OfRouter,
    Router,
    Tokens,
    assert_same,
    build,
    items_of_mean,
    logged,
    more_than,
    never,
    of_one_length,
    points,
    texts,
)


def bert() -> nn.Module:
    """Takes keywords, and does not use the number of items that is handed to it."""
    config = transformers.BertConfig(
        vocab_size=models.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return transformers.BertForMaskedLM(config)


class MeanLoss(Trainer):
    """Its loss is a mean over the labels of what it is given."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        kept = inputs["labels"] != data.IGNORED
        picked = outputs["logits"].log_softmax(-1).gather(-1, inputs["labels"].clamp(min=0)[..., None])[..., 0]
        loss = -(picked * kept).sum() / kept.sum()
        return (loss, outputs) if return_outputs else loss


class OlderLoss(MeanLoss):
    """The same, of the older generation."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        return super().compute_loss(model, inputs, return_outputs)


class Declared(MeanLoss):
    loss_is_scaled_for_ga = False


class OwnStep(Trainer):
    """Calls what it overrides, and counts."""

    steps = 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.steps += 1
        return super().training_step(*args, **kwargs)


class WholeStep(Trainer):
    """Replaces the step, as scripts do; exact where all pieces are of one size."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


def gpt2() -> nn.Module:
    return models.tiny_gpt2()


CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean, compat 5": {"compat": "5"},
    "mean, compat 4.37": {"compat": "4.37", "gradient_accumulation_steps": 2},
    "items": {"make": gpt2, "memory": Kwargs},
    "items, compat 5": {"make": gpt2, "memory": Kwargs, "compat": "5"},
    "items handed over in vain": {"make": bert, "memory": Kwargs},
    "items handed over in vain, compat 5": {"make": bert, "memory": Kwargs, "compat": "5"},
    "smoothed": {"label_smoothing_factor": 0.1},
    "compute_loss_func": {"more": {"compute_loss_func": items_of_mean}},
    "compute_loss": {"kind": MeanLoss},
    "compute_loss of the older generation": {"kind": OlderLoss},
    "compute_loss that says what it is": {"kind": Declared},
    "training_step": {"kind": OwnStep},
    "in the backward pass": {"backward": True},
    "clipped": {"max_grad_norm": 0.01},
    "tokens": {"include_num_input_tokens_seen": "non_padding"},
}


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_an_update_in_pieces_is_the_update(case: str, accumulation: int, tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": accumulation, **CASES[case]}
    whole = build(tmp_path / "whole", **{**options, "backward": False})
    cut = build(tmp_path / "cut", fails=more_than(3), **options)
    whole.train()
    cut.train()
    assert max(whole.model.passes) == 8
    assert cut._progress.pieces == 4
    assert_same(cut, whole)


def mean_of_their_own(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """Not a number, and nor is its gradient, where nothing is labelled."""
    kept = labels != data.IGNORED
    picked = outputs["logits"].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(picked * kept).sum() / kept.sum()


@pytest.mark.parametrize("compat", ["none", "5"])
def test_a_mean_that_is_handed_items_in_vain_has_no_piece_without_labels(compat: str, tmp_path: Path) -> None:
    rows = data.ragged_text(24, seed=3)
    for row in rows[:2]:
        row["labels"] = torch.full_like(row["labels"], data.IGNORED)
    more = {"compute_loss_func": mean_of_their_own, "train_dataset": rows}
    options = {"train_sampling_strategy": "sequential", "compat": compat, "more": more}
    whole = build(tmp_path / "whole", **options)
    cut = build(tmp_path / "cut", fails=more_than(3), **options)
    whole.train()
    cut.train()
    assert_same(cut, whole)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("compat", ["none", "5"])
def test_a_loss_of_routers_is_not_added_once_for_each_piece(compat: str, accumulation: int, tmp_path: Path) -> None:
    more = {"train_dataset": data.ragged_text(23, seed=3)}
    options = {"gradient_accumulation_steps": accumulation, "compat": compat, "more": more}
    whole = build(tmp_path / "whole", Router, memory=OfRouter, **options)
    cut = build(tmp_path / "cut", Router, more_than(3), memory=OfRouter, **options)
    whole.train()
    cut.train()
    assert cut._progress.pieces == 4
    assert_same(cut, whole)


@pytest.mark.parametrize(("compat", "equal"), [("none", True), ("5", False)])
def test_a_loss_of_routers_counts_once_in_an_update(compat: str, equal: bool, tmp_path: Path) -> None:
    """Rows of one length: their mean is the mean of the means over four micro-batches."""
    rows = of_one_length(32)
    sizes = {"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    runs = []
    for number, size in enumerate(sizes):
        more = {"train_dataset": rows}
        options = {**size, "auto_find_batch_size": False, "compat": compat, "more": more}
        runs.append(build(tmp_path / str(number), Router, memory=OfRouter, **options))
        runs[-1].train()
    with contextlib.nullcontext() if equal else pytest.raises(AssertionError):
        assert_same(*runs)


def test_means_over_rows_of_unequal_pieces(tmp_path: Path) -> None:
    """Seven rows in four pieces: without labels by name, rows count."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: Any, y: Any) -> dict[str, Any]:
            return {"loss": (self.layer(x)[:, 0] - y).square().mean()}

    rows = [{"x": item["x"], "y": item["labels"]} for item in points()]
    options = {"more": {"train_dataset": rows, "data_collator": None}, "per_device_train_batch_size": 7}
    runs = [build(tmp_path / str(limit), Rows, more_than(limit), **options) for limit in (9, 2)]
    for run in runs:
        run.train()
    assert {1, 2} <= set(runs[1].model.passes)
    assert_same(*runs)


def test_a_step_of_ones_own_divides_by_what_it_is_told(tmp_path: Path) -> None:
    more = {"train_dataset": data.points(16), "data_collator": None}
    runs = [
        build(
            tmp_path / str(limit),
            models.Regressor,
            more_than(limit),
            kind=WholeStep,
            more=more,
            gradient_accumulation_steps=2,
        )
        for limit in (9, 2)
    ]
    for run in runs:
        run.train()
    assert runs[1].current_gradient_accumulation_steps == 8
    assert_same(*runs)


@pytest.mark.parametrize("seed", range(3))
def test_memory_that_runs_out_at_random(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    whole = build(tmp_path / "whole", gradient_accumulation_steps=2)
    cut = build(
        tmp_path / "cut",
        fails=lambda rows, _: rows > 1 and generator.random() < 0.3,
        backward=bool(seed % 2),
        gradient_accumulation_steps=2,
    )
    whole.train()
    cut.train()
    assert cut._progress.pieces > 1
    assert_same(cut, whole)


def test_nothing_differs_where_memory_suffices(tmp_path: Path) -> None:
    """To the last bit, dropout included."""

    def make() -> nn.Module:
        return Tokens(dropout=0.5)

    with_option = build(tmp_path / "a", make)
    with_option.train()
    without = build(tmp_path / "b", make, auto_find_batch_size=False)
    without.train()
    assert logged(with_option, "loss", "grad_norm") == logged(without, "loss", "grad_norm")
    for found, expected in zip(with_option.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(found, expected)


class Events(TrainerCallback):
    """Notes what it is told, and in how many parts updates are made."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def _note(self, name: str, step: int) -> None:
        self.told.append(f"{name} {step}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("begin", state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("substep", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("end", state.global_step)


def test_callbacks_hear_of_every_micro_batch_once(tmp_path: Path) -> None:
    """Whichever of the micro-batches of an update it is that does not fit."""
    heard = []
    for number, fails in enumerate((never, lambda rows, number: number in (3, 5, 9))):
        events = Events()
        run = build(tmp_path / str(number), fails=fails, more={"callbacks": [events]}, gradient_accumulation_steps=3)
        run.train()
        heard.append(events.told)
    assert heard[0] == heard[1]
    assert heard[0][:4] == ["begin 0", "substep 0", "substep 0", "end 1"]


@pytest.mark.parametrize("backward", [False, True])
def test_a_try_leaves_no_trace(backward: bool, tmp_path: Path) -> None:
    """A run that begins with small pieces, and one that finds them, end alike to the last bit."""
    more = {"train_dataset": points(), "data_collator": None}

    def run(name: str, limit: int, pieces: int) -> Any:
        made = build(
            tmp_path / name, Normalised, more_than(limit), backward=backward, more=more, gradient_accumulation_steps=2
        )
        begin = made._begin_counting

        def begin_in_pieces(checkpoint: Any) -> None:
            made._progress.pieces = pieces
            begin(checkpoint)

        made._begin_counting = begin_in_pieces
        made.train()
        return made

    found, known = run("found", 4, 1), run("known", 8, 2)
    assert len(found.model.passes) > len(known.model.passes)
    assert logged(found, "loss", "grad_norm") == logged(known, "loss", "grad_norm")
    for (name, one), other in zip(found.model.state_dict().items(), known.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_killed_run_goes_on_in_the_pieces_that_it_had_found(killed_at: int, tmp_path: Path) -> None:
    """Memory runs out in the third update; the checkpoint is written before it, and after it."""

    def make() -> nn.Module:
        return Tokens(dropout=0.5)

    def shrinks() -> Callable[[int, int], bool]:
        """Memory that is taken away in the third update."""
        return lambda rows, _: rows > 8 - 5 * (run.state.global_step >= 2)

    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
    run = build(tmp_path / "whole", make, lambda rows, _: shrinks()(rows, 0), **options)
    run.train()
    whole = run
    checkpoint = tmp_path / "resumed" / f"checkpoint-{killed_at}"
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{killed_at}", checkpoint)
    run = build(tmp_path / "resumed", make, lambda rows, _: shrinks()(rows, 0), **options)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert json.loads((checkpoint / "progress.json").read_text())["pieces"] == (4 if killed_at == 3 else 1)
    assert run.model.passes[0] == (2 if killed_at == 3 else 8)
    assert logged(run, "loss", "grad_norm") == logged(whole, "loss", "grad_norm")
    for one, other in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_size_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build(tmp_path, fails=more_than(2), gradient_accumulation_steps=2)
    with caplog.at_level(logging.WARNING, logger="mainspring"):
        trainer.train()
    told = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert len(told) == 1
    assert "8 rows: they are learned from 2 rows at a time from update 1 on" in told[0]
    assert "8 backward passes instead of 2" in told[0]
    assert trainer._train_batch_size == trainer.state.train_batch_size == 8  # what the loader gives


def test_one_row_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    trainer = build(tmp_path, fails=more_than(0))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(
        torch.OutOfMemoryError, match=r"(?s)one row at a time fits \(tried: 8, 4, 2, 1\).*checkpointing"
    ):
        trainer.train()
    assert trainer.model.passes == [8, 4, 2, 1]
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    def fails(rows: int, number: int) -> bool:
        raise RuntimeError("shapes cannot be multiplied")

    trainer = build(tmp_path, fails=fails)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        trainer.train()
    assert trainer.model.passes == [8]


def test_a_batch_that_cannot_be_cut_is_an_error(tmp_path: Path) -> None:
    def collate(items: Any) -> dict[str, Any]:
        return {**data.collate_text(items), "attention_mask": torch.zeros(3, 4)}

    trainer = build(tmp_path, fails=more_than(3), more={"data_collator": collate})
    with pytest.raises(ValueError, match="cannot be cut along its 8 rows, for 'attention_mask' has 3 in its first"):
        trainer.train()


def test_without_the_option_memory_runs_out(tmp_path: Path) -> None:
    trainer = build(tmp_path, fails=more_than(3), auto_find_batch_size=False)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        trainer.train()
    assert trainer.model.passes == [8]


def test_an_evaluation_that_does_not_fit_names_its_option(tmp_path: Path) -> None:
    trainer = build(tmp_path, eval_strategy="steps", eval_steps=1, more={"eval_dataset": texts()})
    trainer.model.inner.register_forward_pre_hook(
        lambda *_: None if trainer.model.training else _out_of_memory(), with_kwargs=False
    )
    with pytest.raises(torch.OutOfMemoryError, match="per_device_eval_batch_size, which is 8, lower"):
        trainer.train()
    assert trainer.state.global_step == 1


def _out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


REFUSED = {
    "the optimizer acts inside the backward pass": {"optimizer_in_backward": True, "max_grad_norm": 0.0},
    "past_index=1": {"past_index": 1},
}


@pytest.mark.parametrize("why", REFUSED)
def test_runs_whose_updates_cannot_be_begun_anew_are_refused(why: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"auto_find_batch_size=True.*{why}"):
        build(tmp_path, **REFUSED[why])


def test_a_stream_that_ends_inside_an_update(tmp_path: Path) -> None:
    """In the generation that leaves its gradients to the next update, they are not lost in a try."""
    ended = []
    for limit in (9, 3):
        run = build(
            tmp_path / str(limit),
            # Memory runs out in the second pass over the data alone, whose first update has gradients to begin with.
            fails=lambda rows, number, limit=limit: rows > limit and number > 6,
            more={"train_dataset": data.Stream(texts())},
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            compat="5",
            max_steps=3,
        )
        run.train()
        ended.append(run)
    assert_same(*ended)


def test_an_update_that_others_wait_for_ends_with_advice(tmp_path: Path) -> None:
    """Although its tries had fit."""
    trainer = build(tmp_path)
    trainer.train()

    def attempt() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError, match="other processes wait.*With 1 pieces"):
        FittingUpdates(trainer, trainer._run, 0, 0)._make_together(attempt)
