"""The range test finds what it is given, and training after it is training without it, to the bit."""

from __future__ import annotations

import builtins
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from mainspring import Trainer, TrainerCallback, TrainingArguments
from mainspring.errors import MissingPackageError, OptionError
from mainspring.measuring.lr_finder import COMPLETE, DIVERGED, NOT_FINITE, LearningRates, RangeTest, Rates, Record
from tests.helpers import data, models
from tests.helpers.runs import history, same, trainer, weights

# ---- the test alone ----


def run(test: RangeTest, loss_at: Any) -> LearningRates:
    record = Record(test)
    for update in range(test.num_updates):
        rate = test.rate(update)
        if not record.add(rate, loss_at(rate)):
            break
    return record.result()


def a_fall_at(center: float) -> Any:
    """A loss that falls from 2 to 1 around a rate, most steeply there, over the logarithm of the rate."""
    return lambda rate: 1.5 - math.tanh(math.log10(rate / center)) / 2


def test_rates_grow_geometrically_from_the_first_to_the_last() -> None:
    test = RangeTest(1e-6, 1e-2, 5)
    assert [test.rate(update) for update in range(5)] == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])


@pytest.mark.parametrize("center", [1e-4, 1e-2])
def test_the_steepest_descent_is_found(center: float) -> None:
    found = run(RangeTest(1e-7, 1.0, 141, smoothing=0.0), a_fall_at(center))
    assert found.suggestion == pytest.approx(center, rel=0.15)
    assert found.ended == COMPLETE
    assert found.minimum_over_ten == pytest.approx(0.1)


def test_smoothing_is_the_bias_corrected_running_mean() -> None:
    losses = [3.0, 1.0, 4.0]
    record = Record(RangeTest(num_updates=3, smoothing=0.5))
    for loss in losses:
        record.add(1e-3, loss)
    assert record.result().raw_losses == tuple(losses)
    assert record.result().losses == pytest.approx((3.0, (0.5 * 3 + 1) / 1.5, (0.25 * 3 + 0.5 * 1 + 4) / 1.75))


def test_it_stops_where_the_loss_diverges_also_below_zero() -> None:
    test = RangeTest(1e-3, 1.0, 10, smoothing=0.0, stop_factor=3.0)
    assert len(run(test, lambda rate: 1.0 if rate < 0.1 else 3.1).rates) == 8
    assert run(test, lambda rate: 1.0 if rate < 0.1 else 2.9).ended == COMPLETE
    negative = run(test, lambda rate: -1.0 if rate < 0.1 else 1.1)
    assert (len(negative.rates), negative.ended) == (8, DIVERGED)


def test_it_does_not_stop_for_a_first_loss_that_happens_to_be_small() -> None:
    losses = iter([0.2, *[2.0] * 39])
    assert run(RangeTest(num_updates=40), lambda rate: next(losses)).ended == COMPLETE


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_and_does_not_count(loss: float) -> None:
    found = run(RangeTest(1e-3, 1.0, 10), lambda rate: 1.0 if rate < 0.1 else loss)
    assert found.ended == NOT_FINITE
    assert len(found.rates) == len(found.losses) == len(found.raw_losses) == 7
    assert all(map(math.isfinite, found.losses))


def test_where_nothing_falls_nothing_is_suggested() -> None:
    rising = run(RangeTest(smoothing=0.0), lambda rate: 1 + rate)
    assert rising.suggestion is None
    assert "no rate" in str(rising)
    nothing = run(RangeTest(), lambda rate: math.nan)
    assert nothing.suggestion is nothing.minimum_over_ten is None
    assert "0 of 100 updates" in str(nothing)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_lr": 0.0},
        {"max_lr": 1e-8},
        {"max_lr": math.inf},
        {"num_updates": 1},
        {"smoothing": 1.0},
        {"stop_factor": 1.0},
    ],
    ids=lambda wrong: "-".join(f"{key}={value}" for key, value in wrong.items()),
)
def test_arguments_out_of_range_are_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        trainer(tmp_path).lr_find(**wrong)


def test_groups_keep_their_ratios() -> None:
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(
        [{"params": [first], "lr": 0.1}, {"params": [second], "lr": torch.tensor(0.02)}], lr=1.0
    )
    Rates(optimizer, 0.1).set(0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.5, 0.1])
    assert isinstance(optimizer.param_groups[1]["lr"], torch.Tensor)


def test_the_picture_needs_matplotlib_and_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(RangeTest(), a_fall_at(1e-3))
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", without)
        with pytest.raises(MissingPackageError, match="pip install matplotlib"):
            found.plot()
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


# ---- on a trainer ----


def trained(folder: Path, before: Any = None, make: Any = trainer, **options: Any) -> Trainer:
    run = make(folder, save_strategy="no", **options)
    if before is not None:
        before(run)
    run.train()
    return run


def look(run: Trainer) -> LearningRates:
    return run.lr_find(min_lr=1e-5, max_lr=100.0, num_updates=40)


def with_batch_norm(folder: Path, **options: Any) -> Trainer:
    """Buffers that a forward pass changes, a counter, dropout, and a loader of the script's own with a generator."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
            )

        def forward(self, x: Any, labels: Any) -> Any:
            self.calls += 1
            return {"loss": (self.layers(x).squeeze(-1) - labels).square().mean() + 1e-3 * self.calls}

    rows = [
        {"x": torch.randn(4, generator=torch.Generator().manual_seed(i)), "labels": float(i % 3)} for i in range(24)
    ]
    loader = DataLoader(rows, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(7))

    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            torch.rand(1)  # a script may shuffle by hand
            return loader

    torch.manual_seed(3)
    args = TrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, num_train_epochs=2, logging_steps=1, learning_rate=0.01, **options
    )
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return Own(net, args, train_dataset=rows, optimizers=(optimizer, schedule))


CASES = {
    "plain": (trainer, {}),
    "workers": (trainer, {"dataloader_num_workers": 1}),
    "bf16": (trainer, {"bf16": True}),
    "recomputed": (trainer, {"gradient_checkpointing": True}),
    "in-backward": (trainer, {"optimizer_in_backward": True, "gradient_accumulation_steps": 1, "max_grad_norm": 0.0}),
    "averaged": (trainer, {"ema_decay": 0.9}),
    "guarded": (trainer, {"on_nonfinite": "raise", "on_loss_spike": "rollback"}),
    "neftune": (trainer, {"neftune_noise_alpha": 5.0}),
    "budget": (trainer, {"train_sampling_strategy": "token_budget", "max_tokens_per_batch": 64}),
    "given": (with_batch_norm, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_training_after_it_is_training_without_it(name: str, tmp_path: Path) -> None:
    make, options = CASES[name]
    found: list[LearningRates] = []
    without = trained(tmp_path / "without", make=make, **options)
    after = trained(tmp_path / "after", lambda run: found.append(look(run)), make, **options)
    assert found[0].ended != NOT_FINITE
    assert len(found[0].rates) > 10
    assert same(weights(without), weights(after))
    assert history(without) == history(after)


def test_nothing_shows_that_it_was_there(tmp_path: Path) -> None:
    class Hears(TrainerCallback):
        events = 0

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            Hears.events += 1

    run = with_batch_norm(tmp_path, save_strategy="no")
    run.add_callback(Hears())
    before, random, state = weights(run), torch.get_rng_state(), vars(run).copy()
    grads = {p: p.grad for p in run.model.parameters()}
    modes = [module.training for module in run.model.modules()]
    run.model.layers[2].eval()
    modes = [module.training for module in run.model.modules()]
    look(run)
    assert same(before, weights(run))
    assert torch.equal(random, torch.get_rng_state())
    assert vars(run) == state
    assert Hears.events == 0
    assert not run.optimizer.state
    assert run.optimizer.param_groups[0]["lr"] == 0.01
    assert run.lr_scheduler.last_epoch == 0
    assert run.model.calls == 0
    assert modes == [module.training for module in run.model.modules()]
    assert grads == {p: p.grad for p in run.model.parameters()}
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in run.model.parameters())


def test_the_optimizer_that_was_tried_is_let_go_of(tmp_path: Path) -> None:
    """One that acts in the backward pass hangs on the parameters, and its states with it."""
    run = trainer(tmp_path, optimizer_in_backward=True, gradient_accumulation_steps=1, max_grad_norm=0.0)
    tried: list[Any] = []
    create = run.create_optimizer
    run.create_optimizer = lambda *args: tried.append(weakref.ref(create(*args))) or tried[-1]()
    look(run)
    assert [optimizer() for optimizer in tried] == [None]
    assert not any(parameter._post_accumulate_grad_hooks for parameter in run.model.parameters())


def test_an_error_inside_leaves_nothing_either(tmp_path: Path) -> None:
    class Breaks(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if self.state.global_step == 2:
                raise OSError("no more")
            return loss

    run = trainer(tmp_path)
    run.__class__ = Breaks
    before, random = weights(run), torch.get_rng_state()
    with pytest.raises(OSError, match="no more"):
        look(run)
    assert same(before, weights(run))
    assert torch.equal(random, torch.get_rng_state())
    assert run.optimizer is None
    assert not run.is_in_train


def test_the_updates_are_those_of_training(tmp_path: Path) -> None:
    """With one rate throughout, the losses are those that training logs."""
    found = trainer(tmp_path / "found").lr_find(min_lr=1e-2, max_lr=1.0001e-2, num_updates=9)
    run = trained(tmp_path / "run", lr_scheduler_type="constant", warmup_steps=0, logging_steps=1, eval_strategy="no")
    logged = [log["loss"] for log in history(run) if "loss" in log]
    assert found.raw_losses == pytest.approx(logged, rel=1e-5)


def test_rates_that_are_too_large_are_found(tmp_path: Path) -> None:
    found = trainer(tmp_path).lr_find(min_lr=1e-5, max_lr=1e3, num_updates=60)
    assert found.ended == DIVERGED
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 1.0
    assert "(suggestion)" in str(found)


def test_a_loss_that_is_not_finite_ends_it_also_where_it_would_end_training(tmp_path: Path) -> None:
    class Overflows(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            return loss * math.nan if self.state.global_step == 5 else loss

    run = trainer(tmp_path, on_nonfinite="raise")
    run.__class__ = Overflows
    found = look(run)
    assert (found.ended, len(found.rates)) == (NOT_FINITE, 5)


# ---- what cannot be ----


def test_data_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    class Once(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return data.ragged_text(1)[0]

    run = trainer(tmp_path, max_steps=2)
    run.train_dataset = Once()
    with pytest.raises(ValueError, match="only once"):
        look(run)


def test_data_that_gives_nothing_is_refused(tmp_path: Path) -> None:
    class Nothing(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    run = trainer(tmp_path, max_steps=2)
    run.train_dataset = Nothing()
    with pytest.raises(ValueError, match="gave no batch"):
        look(run)


def test_while_training_it_is_refused(tmp_path: Path) -> None:
    class Asks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            run.lr_find()

    run = trainer(tmp_path, callbacks=[Asks()], save_strategy="no")
    with pytest.raises(RuntimeError, match="training"):
        run.train()


def test_an_optimizer_that_chooses_its_rates_is_refused(tmp_path: Path) -> None:
    from mainspring import Adafactor

    model = models.tiny_gpt2()
    args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True)
    items = data.Items(data.ragged_text(8))
    run = Trainer(model, args, data.collate_text, items, optimizers=(Adafactor(model.parameters(), lr=None), None))
    with pytest.raises(ValueError, match="Adafactor chooses"):
        look(run)


def test_a_short_data_set_is_begun_again(tmp_path: Path) -> None:
    """Nine updates a run, three an epoch: forty go through more than thirteen."""
    found = trainer(tmp_path).lr_find(min_lr=1e-6, max_lr=1e-5, num_updates=40)
    assert len(found.rates) == 40
