"""What is said of the memory is what training then takes, counted storage by storage; and nothing shows of the asking."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mainspring import Trainer, TrainingArguments
from mainspring.measuring.estimate import LiveStorages, MemoryEstimate, SavedTensors, bytes_of_storages
from tests.helpers.runs import history, same, trainer, weights

TOLERANCE = 0.15


class Truth(TorchDispatchMode):
    """The most memory that tensors of the whole training took at once, its data among them: by storages, each once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0
        self.see(*model.parameters(), *model.buffers())

    def see(self, *tensors: Any) -> None:
        for tensor in tensors:
            for part in self.parts(tensor):
                storage = part.untyped_storage()
                if storage.data_ptr() and id(storage) not in self.live:
                    self.live[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, id(storage), None).atexit = False
        self.peak = max(self.peak, sum(self.live.values()))

    def parts(self, thing: Any) -> Iterator[torch.Tensor]:
        if isinstance(thing, torch.Tensor) and hasattr(thing, "__tensor_flatten__"):
            for name in thing.__tensor_flatten__()[0]:
                yield from self.parts(getattr(thing, name))
        elif isinstance(thing, torch.Tensor):
            yield thing

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.see(*(made if isinstance(made, (list, tuple)) else [made]))
        return made


def see_the_states_of_a_compiled_step(run: Trainer, truth: Truth) -> None:
    """Compiled code does not run where somebody looks at every operation."""
    step = run._engine.step

    def unseen(optimizer: Any) -> None:
        with _disable_current_modes():
            step(optimizer)
        truth.see(*(tensor for state in optimizer.state.values() for tensor in state.values()))

    run._engine.step = unseen


# ---- models that are large enough for their tensors to count ----


def texts(rows: int, length: int) -> list[dict[str, list[int]]]:
    return [
        {
            "input_ids": [(row * 7 + place) % 500 for place in range(length)],
            "labels": [place % 500 for place in range(length)],
        }
        for row in range(rows)
    ]


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=500, n_positions=64, n_embd=64, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config), texts(64, 48)


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, num_labels=3
    )
    rows = [{"input_ids": row["input_ids"], "labels": number % 3} for number, row in enumerate(texts(64, 32))]
    return BertForSequenceClassification(config), rows


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 128), nn.ReLU(), nn.Linear(128, 4),
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.layers(pixels), labels)}


def cnn() -> tuple[nn.Module, Any]:
    rows = [{"pixels": [[[float(i % 5)] * 16] * 16] * 3, "labels": i % 4} for i in range(64)]
    return Cnn(), rows


def build(model: Any, folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    module, rows = model()
    defaults = {"per_device_train_batch_size": 8, "max_steps": 3, "save_strategy": "no", "logging_steps": 1}
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**defaults, **options})
    return Trainer(module, args, train_dataset=rows)


CASES = {
    "gpt2": (gpt2, {}),
    "bert": (bert, {}),
    "cnn": (cnn, {}),
    "gpt2-large-batch": (gpt2, {"per_device_train_batch_size": 16}),
    "gpt2-accumulation": (gpt2, {"gradient_accumulation_steps": 4}),
    "gpt2-bf16": (gpt2, {"bf16": True}),
    "gpt2-recomputed": (gpt2, {"gradient_checkpointing": True}),
    "gpt2-sgd": (gpt2, {"optim": "sgd"}),
    "gpt2-in-backward": (gpt2, {"optimizer_in_backward": True, "max_grad_norm": 0.0}),
    "gpt2-averaged": (gpt2, {"ema_decay": 0.9}),
    "bert-adafactor": (bert, {"optim": "adafactor"}),
    "bert-8bit": (bert, {"optim": "adamw_torch_8bit"}),
    "cnn-accumulation": (cnn, {"gradient_accumulation_steps": 2}),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "8bit" in n else ()) for n in CASES])
def test_training_takes_what_was_said(name: str, tmp_path: Path) -> None:
    model, options = CASES[name]
    if "8bit" in name:
        pytest.importorskip("torchao")
    estimate = build(model, tmp_path, **options).estimate_memory()
    run = build(model, tmp_path, **options)
    truth = Truth(run.model)
    if "8bit" in name:
        see_the_states_of_a_compiled_step(run, truth)
    with truth:
        run.train()
    assert estimate.total == pytest.approx(truth.peak, rel=TOLERANCE)


# ---- what it is made of ----


def bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * 4 for parameter in model.parameters())


def test_weights_gradients_and_states_are_what_they_are(tmp_path: Path) -> None:
    run = build(gpt2, tmp_path, ema_decay=0.9)
    estimate, size = run.estimate_memory(), bytes_of(run.model)
    assert estimate.parameters == size + bytes_of_storages(list(run.model.buffers()))
    assert estimate.gradients == estimate.averages == size
    assert estimate.optimizer_states == pytest.approx(2 * size, rel=0.01)


def test_frozen_weights_have_no_gradients_and_no_states(tmp_path: Path) -> None:
    run = build(cnn, tmp_path, optim="adamw_torch")
    for parameter in run.model.layers[:6].parameters():
        parameter.requires_grad_(False)
    trained = sum(p.numel() * 4 for p in run.model.parameters() if p.requires_grad)
    estimate = run.estimate_memory()
    assert estimate.gradients == trained < estimate.parameters
    assert estimate.optimizer_states == pytest.approx(2 * trained, rel=0.01)


@pytest.mark.slow
def test_states_in_8_bits_are_small(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    plain = build(bert, tmp_path).estimate_memory()
    small = build(bert, tmp_path, optim="adamw_torch_8bit").estimate_memory()
    assert small.optimizer_states < 0.5 * plain.optimizer_states


def test_recomputing_leaves_fewer_activations(tmp_path: Path) -> None:
    plain, again = (build(gpt2, tmp_path, gradient_checkpointing=on).estimate_memory() for on in (False, True))
    assert again.activations < 0.6 * plain.activations
    assert again.total < plain.total


def test_in_the_backward_pass_one_gradient_lives_at_a_time(tmp_path: Path) -> None:
    run = build(gpt2, tmp_path, optimizer_in_backward=True, max_grad_norm=0.0)
    assert run.estimate_memory().gradients == max(p.numel() * 4 for p in run.model.parameters())


def test_activations_grow_with_the_batch_and_weights_do_not(tmp_path: Path) -> None:
    small, large = (build(cnn, tmp_path, per_device_train_batch_size=size).estimate_memory() for size in (8, 16))
    assert large.activations == pytest.approx(2 * small.activations, rel=0.05)
    assert (large.parameters, large.gradients) == (small.parameters, small.gradients)


def test_the_report_can_be_read() -> None:
    text = str(MemoryEstimate(2048, 1024, 4096, 10 << 20, 0, 11 << 20))
    assert "activations          10.0 MiB" in text
    assert "total at its peak    11.0 MiB" in text
    assert "averages" not in text


# ---- counting ----


def test_saved_tensors_count_once_and_weights_not_at_all() -> None:
    """`x * w` saves both; `y * y` saves y twice."""
    w, x = torch.ones(100, requires_grad=True), torch.ones(100)
    with SavedTensors([w]) as saved:
        y = x * w
        assert saved.now == 400
        z = (y * y).sum()
        assert saved.now == 800
        z.backward()
        assert (saved.now, saved.peak) == (0, 800)
    assert torch.equal(w.grad, torch.full((100,), 2.0))


def test_live_storages_end_with_their_tensors_and_views_are_no_others() -> None:
    known = torch.ones(100)
    with LiveStorages(torch.device("cpu"), [known]) as live:
        known.add_(1)
        made = known + 1
        part = made[10:]
        assert live.now == 400
        del made
        assert live.now == 400
        del part
        assert (live.now, live.peak) == (0, 400)


# ---- nothing stays ----


def test_training_after_it_is_training_without_it(tmp_path: Path) -> None:
    runs = []
    for asks in (False, True):
        run = trainer(tmp_path, save_strategy="no")
        before, random, attributes = weights(run), torch.get_rng_state(), vars(run).copy()
        if asks:
            run.estimate_memory()
            assert same(before, weights(run))
            assert torch.equal(random, torch.get_rng_state())
            assert vars(run) == attributes
            assert all(parameter.grad is None for parameter in run.model.parameters())
            assert not any(p._post_accumulate_grad_hooks for p in run.model.parameters())
        run.train()
        runs.append((weights(run), history(run)))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_compiled_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torch_compile"):
        build(cnn, tmp_path, torch_compile=True, torch_compile_backend="eager").estimate_memory()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["gpt2", "bert", "cnn"])
def test_a_gpu_takes_what_was_said(name: str, tmp_path: Path) -> None:
    model, options = CASES[name]

    def on_gpu() -> Trainer:
        torch.manual_seed(0)
        module, rows = model()
        args = TrainingArguments(
            str(tmp_path), disable_tqdm=True, per_device_train_batch_size=32, max_steps=3, save_strategy="no", **options
        )
        return Trainer(module, args, train_dataset=rows)

    estimate = on_gpu().estimate_memory()
    before = torch.cuda.memory_allocated()
    run = on_gpu()
    torch.cuda.reset_peak_memory_stats()
    run.train()
    assert estimate.total == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=TOLERANCE)
