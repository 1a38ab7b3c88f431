"""Optimizers inside the backward pass: the same numbers as outside of it, and clear about what cannot be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mainspring import TrainingArguments
from mainspring.engines.data_parallel import DataParallel
from mainspring.errors import OptionError
from mainspring.optimizers import OptimizerInBackward, UpdatesInBackward
from mainspring.optimizers.limits import RunOfOptimizer, check_run
from tests.helpers.runs import same, weights
from tests.optimizers import rows

ONE_BY_ONE = [
    name
    for name in rows.HERE
    if not name.endswith("_layerwise") and name not in ("lomo", "grokadamw") and not name.startswith("schedule_free")
]
"""Optimizers that look at one parameter at a time."""

OWN_SEEDS = ("apollo_adamw",)
"""Draws numbers that depend on how many parameters its optimizer has."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def skip_unless_here(name: str) -> None:
    if not rows.is_installed(name):
        pytest.skip(f"{name}: package not here")


def trained(folder: Path, name: str, resume: Path | None = None, **options: Any) -> Any:
    trainer = rows.trainer(folder, name, max_grad_norm=0.0, max_steps=5, save_steps=3, **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_it_gives_the_same_weights_and_norms_and_either_goes_on_from_the_other(tmp_path: Path, name: str) -> None:
    skip_unless_here(name)
    plain = trained(tmp_path / "plain", name)
    inside = trained(tmp_path / "inside", name, optimizer_in_backward=True)
    assert isinstance(inside.optimizer, OptimizerInBackward)
    if name not in OWN_SEEDS:
        assert same(weights(plain), weights(inside))
        for one, other in zip(plain.state.log_history[:-1], inside.state.log_history[:-1], strict=True):
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
            assert one["learning_rate"] == other["learning_rate"]
    into = trained(tmp_path / "a", name, tmp_path / "plain" / "checkpoint-3", optimizer_in_backward=True)
    assert same(weights(plain), weights(into))
    back = trained(tmp_path / "b", name, tmp_path / "inside" / "checkpoint-3")
    assert same(weights(inside), weights(back))


def test_a_layerwise_one_goes_on_from_the_plain_one_and_back(tmp_path: Path) -> None:
    skip_unless_here("galore_adamw")
    plain = trained(tmp_path / "plain", "galore_adamw")
    inside = trained(tmp_path / "inside", "galore_adamw_layerwise")
    assert same(weights(plain), weights(inside))
    into = trained(tmp_path / "a", "galore_adamw_layerwise", tmp_path / "plain" / "checkpoint-3")
    back = trained(tmp_path / "b", "galore_adamw", tmp_path / "inside" / "checkpoint-3")
    assert same(weights(plain), weights(into))
    assert same(weights(plain), weights(back))


def test_every_optimizer_of_one_parameter_is_tried() -> None:
    assert len(ONE_BY_ONE) == 29


def test_no_gradient_is_left_and_none_lives_beside_another(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "adamw_torch", optimizer_in_backward=True, save_strategy="no")
    alive = []

    def count(_: nn.Parameter) -> None:
        alive.append(sum(parameter.grad is not None for parameter in trainer.model.parameters()))

    for parameter in trainer.model.parameters():  # before the optimizer's own hook
        parameter.register_post_accumulate_grad_hook(count)
    trainer.train()
    assert max(alive) == 1
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_schedule_reaches_every_parameter(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "sgd", optimizer_in_backward=True, save_strategy="no", optim_args="momentum=0.5")
    trainer.train()
    rates = {group["lr"] for one in trainer.optimizer.optimizers() for group in one.param_groups}
    assert len(rates) == 1
    assert rates.pop() == pytest.approx(0.5 / 12)  # that of the last of twelve updates


def test_another_backward_pass_of_the_user_s_own_updates_nothing(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "adamw_torch", optimizer_in_backward=True, save_strategy="no")
    trainer.train()
    before = weights(trainer)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    trainer.model(**batch).loss.backward()
    assert same(before, weights(trainer))
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("name", ["adamw_torch", "lomo"])
def test_a_training_step_that_goes_round_the_accelerator_is_an_error(tmp_path: Path, name: str) -> None:
    skip_unless_here(name)
    trainer = rows.trainer(tmp_path, name, optimizer_in_backward=True, save_strategy="no")

    def step(model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach()  # type: ignore[no-any-return]

    trainer.training_step = step  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="call accelerator.backward"):
        trainer.train()


class Shared(nn.Module):
    """One layer that is gone through twice, each time with activations that are recomputed."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=self.reentrant)
        return x.square().mean()


def acting_inside(model: nn.Module, kind: str) -> UpdatesInBackward:
    if kind == "option":
        return OptimizerInBackward(model.parameters(), torch.optim.SGD, lr=0.1)
    skip_unless_here("lomo")
    from mainspring.optimizers.lomo import Lomo

    made: UpdatesInBackward = Lomo(model, lr=0.1)
    return made


@pytest.mark.parametrize("kind", ["option", "lomo"])
def test_a_gradient_that_comes_in_parts_is_an_error(kind: str) -> None:
    """Blocks that share a layer and recompute by themselves bring a part of its gradient each."""
    found = []
    for inside in (False, True):
        torch.manual_seed(0)
        model = Shared(reentrant=False)
        optimizer: Any = acting_inside(model, kind) if inside else torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(torch.ones(2, 3, requires_grad=True))
        optimizer.backward(loss) if inside else loss.backward()
        optimizer.step()
        found.append(model.layer.weight.detach().clone())
    torch.testing.assert_close(*found)
    model = Shared(reentrant=True)
    with pytest.raises(RuntimeError, match=r"of shape \(3,.*comes in parts.*use_reentrant.: False"):
        acting_inside(model, kind).backward(model(torch.ones(2, 3, requires_grad=True)))


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    model: Any = rows.tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    kept = model.model.embed_tokens.weight.clone()
    trained(tmp_path, "adamw_torch", model=model, optimizer_in_backward=True)
    assert torch.equal(kept, model.model.embed_tokens.weight)


def test_a_class_of_the_user_s_own_acts_inside_it_too(tmp_path: Path) -> None:
    chosen = (torch.optim.NAdam, {"lr": 0.02})
    plain = trained(tmp_path / "plain", "adamw_torch", optimizer_cls_and_kwargs=chosen)
    inside = trained(tmp_path / "inside", "adamw_torch", optimizer_cls_and_kwargs=chosen, optimizer_in_backward=True)
    assert {type(one) for one in inside.optimizer.optimizers()} == {torch.optim.NAdam}
    assert same(weights(plain), weights(inside))


def test_embeddings_keep_32_bits_whichever_way_8_bit_optimizers_act(tmp_path: Path) -> None:
    skip_unless_here("adamw_8bit")
    for inside in (False, True):
        model: Any = rows.tiny_llama()
        model.resize_token_embeddings(128)  # large enough to be quantised
        trainer = trained(tmp_path / str(inside), "adamw_8bit", model=model, optimizer_in_backward=inside)
        stepped = trainer.optimizer if not inside else trainer.optimizer._of[model.model.embed_tokens.weight]
        assert stepped.state[model.model.embed_tokens.weight]["state1"].dtype == torch.float32
        projection = model.model.layers[0].mlp.up_proj.weight
        stepped = trainer.optimizer if not inside else trainer.optimizer._of[projection]
        assert stepped.state[projection]["state1"].dtype == torch.uint8


def test_what_was_said_for_the_embeddings_of_one_model_is_not_said_for_the_next() -> None:
    skip_unless_here("adamw_8bit")
    from mainspring.optimizers import build_optimizer, optimizer_class_and_kwargs

    args = TrainingArguments("out", optim="adamw_8bit")
    formats = []
    for layer in (nn.Embedding(64, 128), nn.Linear(128, 64, bias=False)):
        weight: Any = layer.weight
        optimizer = build_optimizer(
            *optimizer_class_and_kwargs(args, layer), nn.Sequential(layer), [{"params": [weight]}]
        )
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        formats.append(optimizer.state[weight]["state1"].dtype)
    assert formats == [torch.float32, torch.uint8]
    from bitsandbytes.optim import GlobalOptimManager

    known: Any = GlobalOptimManager.get_instance()  # a later parameter may have the identity of one that is gone
    assert not [config for config in known.pid2config.values() if config.get("optim_bits") == 32]


def test_it_refuses_a_state_of_other_groups() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    saved = OptimizerInBackward(first.parameters(), torch.optim.SGD, lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, and this one of \[1\]"):
        OptimizerInBackward(second.parameters(), torch.optim.SGD, lr=0.1).load_state_dict(saved)


# What cannot be -----------------------------------------------------------------------------------------------------

WAYS = {
    "option": {"optim": "adamw_torch", "optimizer_in_backward": True},
    "layerwise": {"optim": "galore_adamw_layerwise"},
    "lomo": {"optim": "lomo"},
}


@pytest.mark.parametrize("way", WAYS)
def test_accumulation_is_refused_at_construction(tmp_path: Path, way: str) -> None:
    options = dict(WAYS[way])
    name = options.pop("optim")
    skip_unless_here(str(name))
    with pytest.raises(OptionError, match=r"gradient_accumulation_steps=4 needs 4 for one update"):
        rows.trainer(tmp_path, str(name), gradient_accumulation_steps=4, **options)


@pytest.mark.parametrize("way", WAYS)
def test_several_processes_or_devices_and_fp16_are_refused(tmp_path: Path, way: str) -> None:
    options = dict(WAYS[way])
    name = options.pop("optim")
    skip_unless_here(str(name))
    args = rows.trainer(tmp_path, str(name), **options).args
    why = DataParallel.why_not_in_backward(DataParallel.__new__(DataParallel))
    with pytest.raises(OptionError) as error:
        check_run(RunOfOptimizer(args, why, scales_loss=True, given=False, chosen=False, factory=False))
    text = str(error.value)
    assert "gradients are complete only when they have been summed over processes or devices" in text
    assert "fp16 scales the loss" in text
    assert len(error.value.problems) == 2


def test_an_optimizer_of_the_user_s_own_is_refused(tmp_path: Path) -> None:
    model = rows.tiny_llama()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match="optimizers brings one of its own"):
        rows.trainer(tmp_path, "sgd", model=model, optimizers=(own, None), optimizer_in_backward=True)


def test_a_factory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the factory of optimizer_cls_and_kwargs"):
        rows.trainer(tmp_path, "sgd", optimizer_cls_and_kwargs=(lambda: None, {}), optimizer_in_backward=True)


@pytest.mark.parametrize("name", ["grokadamw", "schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
def test_what_looks_at_parameters_together_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=f"optim='{name}' cannot be divided"):
        rows.trainer(tmp_path, name, optimizer_in_backward=True)


def test_an_override_that_makes_another_optimizer_is_refused(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "sgd", optimizer_in_backward=True)

    def create(model: Any = None) -> torch.optim.Optimizer:
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        return trainer.optimizer

    trainer.create_optimizer = create  # type: ignore[method-assign]
    with pytest.raises(OptionError, match="an override made a SGD, which steps after the backward pass"):
        trainer.train()


@pytest.mark.parametrize(("limit", "count"), [(1.0, 1), (0.0, 0)])
def test_clipping_that_cannot_act_is_told_once(tmp_path: Path, limit: float, count: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = rows.trainer(tmp_path, "sgd", optimizer_in_backward=True, max_grad_norm=limit, save_strategy="no")
        trainer.train()
    told = [str(warning.message) for warning in caught if "max_grad_norm" in str(warning.message)]
    assert len(told) == count
    assert all("does not clip" in text for text in told)


# LOMO ---------------------------------------------------------------------------------------------------------------


def lomo(folder: Path, limit: float, **options: Any) -> Any:
    skip_unless_here("lomo")
    trainer = rows.trainer(folder, "lomo", max_grad_norm=limit, weight_decay=0.0, save_strategy="no", **options)
    trainer.train()
    return trainer


def sgd(folder: Path, limit: float) -> Any:
    trainer = rows.trainer(
        folder, "sgd", max_grad_norm=limit, weight_decay=0.0, save_strategy="no", optim_args=None, learning_rate=0.5
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("limit", [0.0, 0.4])
def test_lomo_is_gradient_descent_with_its_schedule_clipping_and_norms(tmp_path: Path, limit: float) -> None:
    ours, plain = lomo(tmp_path / "a", limit), sgd(tmp_path / "b", limit)
    assert isinstance(ours.optimizer, UpdatesInBackward)
    other = weights(plain)
    for name, tensor in weights(ours).items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)
    for one, two in zip(ours.state.log_history[:-1], plain.state.log_history[:-1], strict=True):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
        assert one["learning_rate"] == two["learning_rate"]


def test_lomo_leaves_no_gradients_and_acts_in_training_alone(tmp_path: Path) -> None:
    trainer = lomo(tmp_path, 0.0)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    before = weights(trainer)
    trainer.model(**trainer.data_collator([trainer.train_dataset[0]])).loss.backward()
    assert same(before, weights(trainer))
