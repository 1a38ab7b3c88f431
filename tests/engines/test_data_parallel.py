"""Several GPUs in one process, on a stand-in: replicas are one module on the CPU that is run part by part.

What is real: how a batch is divided, what each part's loss counts for, and what comes back. What is not: copies of the
model on other devices, and their threads. That needs GPUs; the test at the end is for a machine that has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from mainspring.engines.accelerator import build_accelerator
from mainspring.engines.base import EngineOptions
from mainspring.engines.data_parallel import DataParallel, Replicas
from mainspring.loss import WatchedCount
from tests.helpers import data, models
from tests.helpers.sides import forget_process_state

DEVICES = 2


def _divided(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return list(value.chunk(DEVICES))
    parts = [_divided(one) for one in (value.values() if isinstance(value, dict) else value)]
    if isinstance(value, dict):
        return [dict(zip(value, part, strict=True)) for part in zip(*parts, strict=True)]
    return [tuple(part) for part in zip(*parts, strict=True)]


def _joined(outputs: Any) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        assert first.dim() > 0, "torch would join numbers with a warning"
        return torch.cat(list(outputs))
    if isinstance(first, dict):
        return type(first)((name, _joined([one[name] for one in outputs])) for name in first)
    return type(first)(_joined(parts) for parts in zip(*outputs, strict=True))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """torch's four steps on the CPU; returns the numbers of parts that were run."""
    ran: list[int] = []

    def made(self: Any, module: nn.Module, device_ids: list[int], *_: Any) -> None:
        nn.Module.__init__(self)
        self.module, self.device_ids = module, device_ids
        self.dim, self.output_device, self.src_device_obj = 0, torch.device("cpu"), torch.device("cpu")

    def forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        parts, keywords = self.scatter(inputs, kwargs, [torch.device("cpu")] * len(self.device_ids))
        outputs = self.parallel_apply([self.module] * len(parts), parts, keywords)
        ran.append(len(outputs))
        return self.gather(outputs, self.output_device)

    def scatter(self: Any, inputs: Any, kwargs: Any, device_ids: Any) -> Any:
        keywords = _divided(kwargs) if kwargs else []
        parts = _divided(inputs) if inputs else [()] * len(keywords)
        return tuple(parts), tuple(keywords or [{}] * len(parts))

    def apply(self: Any, replicas: Any, inputs: Any, kwargs: Any) -> list[Any]:
        return [run(*given, **named) for run, given, named in zip(replicas, inputs, kwargs, strict=True)]

    monkeypatch.setattr(nn.DataParallel, "__init__", made)
    monkeypatch.setattr(nn.DataParallel, "forward", forward)
    monkeypatch.setattr(nn.DataParallel, "scatter", scatter)
    monkeypatch.setattr(nn.DataParallel, "parallel_apply", apply)
    monkeypatch.setattr(nn.DataParallel, "gather", lambda self, outputs, device: _joined(outputs))
    forget_process_state()
    yield ran
    forget_process_state()


class Tagger(nn.Module):
    """Scores of tokens; its loss is a mean over its own labels, or their sum over the items of the update."""

    def __init__(self, form: str = "mapping") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.form = nn.Linear(3, 4), form

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Any:
        logits = self.scores(x)
        kind = "mean" if num_items_in_batch is None else "sum"
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction=kind)
        loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return {"mapping": {"loss": loss, "logits": logits}, "tuple": (loss, logits), "number": loss}[self.form]


def batch() -> dict[str, Tensor]:
    """Four rows, of which the first two have one label each, and the others five."""
    torch.manual_seed(1)
    labels = torch.randint(0, 4, (4, 5))
    labels[:2, 1:] = -100
    return {"x": torch.randn(4, 5, 3), "labels": labels}


def replicas(model: nn.Module, **options: Any) -> Replicas:
    return Replicas(model, list(range(DEVICES)), **{"precision": None, "weighs_parts": True, **options})


def loss_and_gradients(model: nn.Module, run: nn.Module, **extra: Any) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    outputs = run(**batch(), **extra)
    loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0] if isinstance(outputs, tuple) else outputs
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("form", ["mapping", "tuple", "number"])
@pytest.mark.parametrize("items", [None, torch.tensor(12)], ids=["mean", "sum"])
def test_the_loss_does_not_depend_on_the_division(stand_in: list[int], form: str, items: Tensor | None) -> None:
    model = Tagger(form)
    extra = {} if items is None else {"num_items_in_batch": items}
    expected, gradients = loss_and_gradients(model, model, **extra)
    actual, divided = loss_and_gradients(model, replicas(model), **extra)
    assert stand_in == [DEVICES]
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(divided, gradients)


def test_a_watched_count_that_no_replica_used_leaves_means(stand_in: list[int]) -> None:
    class Deaf(Tagger):
        def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Any:
            return super().forward(x, labels)

    model, count = Deaf(), WatchedCount.of(torch.tensor(12))
    expected, _ = loss_and_gradients(model, model)
    actual, _ = loss_and_gradients(model, replicas(model), num_items_in_batch=count)
    assert not count.was_used
    torch.testing.assert_close(actual, expected)


def test_a_watched_count_tells_of_its_use_in_a_replica(stand_in: list[int]) -> None:
    model, count = Tagger(), WatchedCount.of(torch.tensor(12))
    expected, _ = loss_and_gradients(model, model, num_items_in_batch=torch.tensor(12))
    actual, _ = loss_and_gradients(model, replicas(model), num_items_in_batch=count)
    assert count.was_used
    torch.testing.assert_close(actual, expected)


def test_replicas_may_count_alike_as_in_the_reference(stand_in: list[int]) -> None:
    model = Tagger()
    halves = [model(**{name: value[part] for name, value in batch().items()}) for part in (slice(2), slice(2, 4))]
    actual, _ = loss_and_gradients(model, replicas(model, weighs_parts=False))
    torch.testing.assert_close(actual, torch.stack([half["loss"] for half in halves]).mean().detach())


def test_other_outputs_come_back_in_order(stand_in: list[int]) -> None:
    model = Tagger("tuple")
    torch.testing.assert_close(replicas(model)(**batch())[1], model(**batch())[1])


def test_replicas_compute_in_the_precision_of_the_run(stand_in: list[int]) -> None:
    model, seen = Tagger(), []
    model.scores.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    outputs = replicas(model, precision=torch.bfloat16)(**batch())
    assert seen == [torch.bfloat16] * DEVICES
    assert outputs["logits"].dtype == torch.float32


def test_the_engine_places_a_model_once_for_training_and_evaluation(stand_in: list[int]) -> None:
    engine = DataParallel(build_accelerator(cpu=True, mixed_precision="bf16"), EngineOptions(devices=DEVICES))
    model = Tagger()
    placed = engine.place(model)
    assert isinstance(placed, Replicas)
    assert placed.precision == torch.bfloat16
    assert engine.prepare(model) is placed
    assert placed.module is model


@pytest.fixture
def two_gpus(stand_in: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs on the CPU that believe to drive two GPUs."""
    monkeypatch.setattr("mainspring.arguments.runtime._driven", lambda kind: DEVICES)
    return stand_in


def _trained(folder: Path, **options: Any) -> Trainer:
    given = {"max_steps": 3, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args = TrainingArguments(str(folder), logging_steps=1, optim="sgd", learning_rate=0.1, **{**given, **options})
    torch.manual_seed(0)
    texts = data.Items(data.ragged_text(24))
    trainer = Trainer(
        models.tiny_gpt2(), args, data_collator=data.collate_text, train_dataset=texts, eval_dataset=texts
    )
    trainer.train()
    return trainer


def _losses(trainer: Trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_a_run_on_two_gpus_is_one_with_the_doubled_batch(
    tmp_path: Path, two_gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    divided = _trained(tmp_path, per_device_train_batch_size=2, per_device_eval_batch_size=4)
    assert (divided.args.n_gpu, divided.args.train_batch_size) == (2, 4)
    assert str(divided.args.parallel_mode.value) == "not_distributed"
    assert divided._engine.kind == "data_parallel"
    assert type(divided.model_wrapped) is Replicas
    assert set(two_gpus) == {DEVICES}
    evaluated = divided.evaluate()["eval_loss"]
    monkeypatch.undo()
    forget_process_state()
    whole = _trained(tmp_path, per_device_train_batch_size=4, per_device_eval_batch_size=8)
    assert whole._engine.kind == "single"
    assert _losses(divided) == pytest.approx(_losses(whole), abs=1e-5)
    assert evaluated == pytest.approx(whole.evaluate()["eval_loss"], abs=1e-5)


def test_a_model_with_a_device_map_is_not_copied(tmp_path: Path, two_gpus: list[int]) -> None:
    model = models.tiny_gpt2()
    model.hf_device_map = {"transformer": 0, "lm_head": 1}
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", per_device_train_batch_size=2)
    trainer = Trainer(model, args)
    assert trainer._engine.kind == "single"
    assert (args.n_gpu, args.train_batch_size) == (1, 2)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("items", [None, torch.tensor(12)], ids=["mean", "sum"])
def test_real_gpus_give_the_loss_of_one_device(items: Tensor | None) -> None:
    model = Tagger().cuda()
    extra = {} if items is None else {"num_items_in_batch": items.cuda()}
    inputs = {name: value.cuda() for name, value in batch().items()}
    expected = model(**inputs, **extra)["loss"]
    torch.testing.assert_close(replicas(model)(**inputs, **extra)["loss"], expected)
