"""Compiled models: the numbers and files of uncompiled ones, and few compilations however long the batches are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from mainspring.engines.accelerator import build_accelerator
from mainspring.engines.compilation import VaryingSizes, _recomputes_alike, compilation
from mainspring.errors import OptionError
from tests.helpers import data, runs
from tests.helpers.models import VOCABULARY, tiny_gpt2

EAGER = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.fixture(autouse=True)
def _compiled_by_nobody_else() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- the options ----


def test_unknown_backends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="torch_compile_backend='induktor': torch has no such backend here; did you mean 'inductor'"
    ):
        runs.trainer(tmp_path, torch_compile_backend="induktor")


@pytest.mark.parametrize("backend", ["inductor", "aot_eager", "Eager", "aot_eager_decomp_partition"])
def test_backends_of_torch_are_taken(backend: str) -> None:
    """The last is one that Accelerate does not know."""
    plugin = build_accelerator(cpu=True, mixed_precision="no", compile_backend=backend).state.dynamo_plugin
    assert plugin.to_kwargs()["backend"] == backend.lower()


def test_modes_are_inductors() -> None:
    def keywords(backend: str, mode: str | None) -> Any:
        made = build_accelerator(cpu=True, mixed_precision="no", compile_backend=backend, compile_mode=mode)
        return made.state.dynamo_plugin.to_kwargs()

    assert keywords("inductor", "max-autotune")["mode"] == "max-autotune"
    assert "mode" not in keywords("eager", "default")  # it is torch's own
    with pytest.raises(OptionError, match="torch_compile_mode='max-autotun': .* did you mean 'max-autotune'"):
        keywords("inductor", "max-autotun")
    with pytest.raises(OptionError, match="torch_compile_mode='max-autotune': torch_compile_backend is 'eager'"):
        keywords("eager", "max-autotune")


def test_without_the_option_nothing_is_compiled(tmp_path: Path) -> None:
    made = runs.trainer(tmp_path)
    assert not isinstance(made._engine.place(made.model), torch._dynamo.eval_frame.OptimizedModule)


# ---- the numbers ----


def trained(folder: Path, resume: Path | None = None, **options: Any) -> Trainer:
    made = runs.trainer(folder, max_steps=4, save_steps=2, logging_steps=1, eval_strategy="no", **options)
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    return made


def losses(of: Trainer) -> list[float]:
    return [log["loss"] for log in of.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.slow),
        {"bf16": True},
        {"label_smoothing_factor": 0.1},
        {"compat": "5"},
    ],
    ids=["plain", "recomputed", "bf16", "smoothed", "compat"],
)
def test_losses_metrics_and_predictions_are_those_of_the_uncompiled_model(options: Any, tmp_path: Path) -> None:
    # A backend that runs graphs as they are is refused where activations are recomputed.
    backend = {"torch_compile_backend": "aot_eager"} if options.get("gradient_checkpointing") else EAGER
    found, expected = (trained(tmp_path / str(len(more)), **options, **more) for more in (backend, {}))
    assert isinstance(found.model_wrapped, torch._dynamo.eval_frame.OptimizedModule)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-6)
    texts = found.eval_dataset
    assert found.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=1e-6)
    torch.testing.assert_close(
        torch.as_tensor(found.predict(texts).predictions), torch.as_tensor(expected.predict(texts).predictions)
    )


@pytest.mark.parametrize("by_itself", [False, True], ids=["option", "model"])
def test_backends_that_recompute_with_another_dropout_are_refused(by_itself: bool, tmp_path: Path) -> None:
    made = runs.trainer(tmp_path, **EAGER, gradient_checkpointing=not by_itself)
    if by_itself:
        made.model.gradient_checkpointing_enable()
    before = torch.get_rng_state()
    with pytest.raises(OptionError, match="torch_compile_backend='eager': where activations are recomputed"):
        made.train()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "backend", ["aot_eager", "aot_eager_decomp_partition", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_backends_that_divide_the_graph_recompute_with_the_same_dropout(backend: str) -> None:
    assert _recomputes_alike(compilation(backend, None))


class Mean(nn.Module):
    """Takes a number of items among its keywords, and computes a mean all the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(data.FEATURES, 1)

    def forward(self, x: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"loss": (self.layer(x).squeeze(-1) - labels).square().mean()}


class Normalised(Mean):
    """Divides by it."""

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        loss = (self.layer(x).squeeze(-1) - labels).square()
        return {"loss": loss.mean() if num_items_in_batch is None else loss.sum() / num_items_in_batch}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("model", [Mean, Normalised])
def test_micro_batches_are_weighed_as_without_compiling(
    model: Callable[[], nn.Module], backend: str, tmp_path: Path
) -> None:
    found = {}
    for name in (None, backend):
        options: dict[str, Any] = {} if name is None else {"torch_compile_backend": name}
        args = TrainingArguments(
            str(tmp_path / str(name)),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=3,
            max_steps=4,
            logging_steps=1,
            learning_rate=0.01,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        trainer = Trainer(model(), args, train_dataset=data.Items(data.points(40)))
        trainer.train()
        found[name] = losses(trainer)
    assert found[backend] == pytest.approx(found[None], rel=1e-6)


def test_each_new_model_is_compiled(tmp_path: Path) -> None:
    torch.manual_seed(3)
    args = TrainingArguments(
        str(tmp_path), **EAGER, max_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=0.1
    )
    texts = data.Items(data.ragged_text(8))
    trainer = Trainer(model_init=lambda: tiny_gpt2(), args=args, train_dataset=texts, data_collator=data.collate_text)
    first = trainer.train().training_loss
    before = trainer.model
    assert trainer.train().training_loss == pytest.approx(first, rel=1e-6)
    assert trainer.model is not before
    assert trainer.model_wrapped._orig_mod is trainer.model


# ---- files ----


def test_weights_have_the_models_own_names(tmp_path: Path) -> None:
    trained(tmp_path, **EAGER).save_model(str(tmp_path / "whole"))
    for folder in ("checkpoint-2", "whole"):
        with safe_open(str(tmp_path / folder / "model.safetensors"), "pt") as file:
            assert "transformer.wte.weight" in file.keys()  # noqa: SIM118
            assert not [name for name in file.keys() if "_orig_mod" in name]  # noqa: SIM118


def test_shards_have_the_models_own_names(tmp_path: Path) -> None:
    made = trained(tmp_path, **EAGER)
    made.accelerator.unwrap_model(made.model_wrapped).save_pretrained(str(tmp_path / "shards"), max_shard_size="5KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert not [name for name in index["weight_map"] if "_orig_mod" in name]


def test_adapters_have_their_own_names(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_gpt2(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    args = TrainingArguments(str(tmp_path), **EAGER, max_steps=1, save_steps=1, use_cpu=True, disable_tqdm=True)
    texts = data.Items(data.ragged_text(8))
    Trainer(model, args, train_dataset=texts, data_collator=data.collate_text).train()
    with safe_open(str(tmp_path / "checkpoint-1" / "adapter_model.safetensors"), "pt") as file:
        names = list(file.keys())
    assert names
    assert all(name.startswith("base_model.model.transformer.h.") for name in names)


@pytest.mark.parametrize("writes", [EAGER, {}], ids=["compiled", "uncompiled"])
@pytest.mark.parametrize("reads", [EAGER, {}], ids=["compiled", "uncompiled"])
def test_runs_go_on_from_each_others_checkpoints(writes: Any, reads: Any, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", **writes)
    resumed = trained(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2", **reads)
    assert losses(resumed)[-2:] == pytest.approx(losses(whole)[-2:], rel=1e-6)
    if writes == reads:
        assert runs.same(runs.weights(resumed), runs.weights(whole))


# ---- sizes ----


class Counter:
    """A backend that counts the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counter() -> Iterator[Counter]:
    counter, known = Counter(), torch._dynamo.backends.registry._COMPILER_FNS
    torch._dynamo.register_backend(counter, name="counting")
    yield counter
    del known["counting"]


class Words(nn.Module):
    """A language model that is one graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.tokens(input_ids).cumsum(1))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def graphs_of(folder: Path, counter: Counter, lengths: list[int], rows: int = 4) -> int:
    """How many graphs are compiled to train on batches of these lengths, the last of which is one row short."""
    texts = [
        {"input_ids": torch.arange(n) % VOCABULARY, "labels": torch.arange(n) % VOCABULARY}
        for n in lengths
        for _ in range(rows)
    ]
    args = TrainingArguments(
        str(folder),
        torch_compile_backend="counting",
        train_sampling_strategy="sequential",
        per_device_train_batch_size=rows,
        num_train_epochs=2,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(Words(), args, train_dataset=texts[:-1]).train()
    return counter.graphs


def test_batches_of_twelve_lengths_take_two_compilations(counter: Counter, tmp_path: Path) -> None:
    """One for the first batch, one for any other: also for the last of an epoch, which is short."""
    assert graphs_of(tmp_path, counter, [7 + 2 * n for n in range(12)]) == 2


def test_batches_of_one_length_are_compiled_for_it(counter: Counter, tmp_path: Path) -> None:
    assert graphs_of(tmp_path, counter, [9] * 5) == 2  # the short batch


def test_no_dimension_is_marked_before_it_varies() -> None:
    mark = VaryingSizes()

    def marked(*shape: int) -> set[int]:
        tensor = torch.zeros(shape)
        mark(nn.Identity(), (), {"x": tensor, "n": 3, "scalar": torch.tensor(1)})
        return getattr(tensor, "_dynamo_weak_dynamic_indices", set())

    assert marked(4, 7, 2) == marked(4, 7, 2) == set()
    assert marked(4, 9, 2) == {0, 1}
    assert marked(4, 7, 2) == {0, 1}
    assert marked(4) == {0}


@pytest.mark.slow
def test_inductor(tmp_path: Path) -> None:
    found, expected = (
        trained(tmp_path / str(len(more)), rows=10, **more) for more in ({"torch_compile_backend": "inductor"}, {})
    )
    # Dropout draws its numbers in another way.
    assert losses(found) == pytest.approx(losses(expected), rel=0.05)
    found.model.eval()
    assert found.evaluate()["eval_loss"] < 4
