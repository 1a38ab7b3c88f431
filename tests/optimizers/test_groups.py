"""`lr_groups`: learning rates and weight decay by parameter, and optimizers that a user builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mainspring import TrainingArguments
from mainspring.errors import OptionError
from tests.helpers.runs import same, weights
from tests.optimizers import rows

GROUPS: dict[str, dict[str, float]] = {
    r"layers\.0\.self_attn": {"lr": 0.002},
    "norm": {"lr": 0.05, "weight_decay": 0.5},
    "lm_head": {"weight_decay": 0.0},
}


def names_of(trainer: Any, group: dict[str, Any]) -> set[str]:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_each_group_has_its_parameters_rate_and_decay(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "adamw_torch", lr_groups=GROUPS, weight_decay=0.01)
    groups = trainer.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.02, 0.01),  # all others: decayed
        (0.02, 0.0),  # and not
        (0.002, 0.01),  # attention
        (0.05, 0.0),  # normalisations are decayed nowhere
        (0.02, 0.0),  # the head, which is not to be
    ]
    held = [names_of(trainer, group) for group in groups]
    assert held[1] == set()
    assert held[2] == {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert len(held[3]) == 3
    assert held[4] == {"lm_head.weight"}
    assert sum(map(len, held)) == len(list(trainer.model.parameters()))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_the_schedule_scales_all_of_them_alike_and_logs_the_first(tmp_path: Path, schedule: str) -> None:
    options = {"lr_groups": GROUPS, "lr_scheduler_type": schedule, "save_strategy": "no", "max_steps": 5}
    trainer = rows.trainer(tmp_path, "adamw_torch", **options)
    seen: list[list[float]] = []
    step = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: (seen.append(trainer.get_learning_rates()), step(*args, **kwargs))[
        1
    ]  # type: ignore[method-assign, func-returns-value]
    trainer.train()
    for rates in seen:
        factor = rates[0] / 0.02
        assert rates == pytest.approx([0.02 * factor, 0.02 * factor, 0.002 * factor, 0.05 * factor, 0.02 * factor])
    logged = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert logged == [rates[0] for rates in seen]


def test_it_trains_otherwise_and_goes_on_exactly(tmp_path: Path) -> None:
    plain = rows.trainer(tmp_path / "plain", "adamw_torch", save_strategy="no")
    plain.train()
    first = rows.trainer(tmp_path, "adamw_torch", lr_groups=GROUPS)
    first.train()
    again = rows.trainer(tmp_path, "adamw_torch", lr_groups=GROUPS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(weights(first), weights(again))
    assert not same(weights(plain), weights(first))


def test_it_goes_together_with_an_optimizer_in_the_backward_pass(tmp_path: Path) -> None:
    found = []
    for inside in (False, True):
        options = {"lr_groups": GROUPS, "optimizer_in_backward": inside, "max_grad_norm": 0.0, "save_strategy": "no"}
        trainer = rows.trainer(tmp_path, "adamw_torch", **options)
        trainer.train()
        found.append(weights(trainer))
    assert same(*found)


def test_a_rate_of_0_keeps_parameters_as_they_are(tmp_path: Path) -> None:
    trainer = rows.trainer(tmp_path, "sgd", lr_groups={"embed_tokens": {"lr": 0}}, save_strategy="no")
    before = trainer.model.model.embed_tokens.weight.clone()
    trainer.train()
    assert torch.equal(before, trainer.model.model.embed_tokens.weight)


def test_a_file_or_a_line_of_json_gives_them_too(tmp_path: Path) -> None:
    file = tmp_path / "groups.json"
    file.write_text('{"^head": {"lr": 0.1}}')
    for given in (str(file), '{"^head": {"lr": 0.1}}'):
        assert TrainingArguments("out", lr_groups=given).lr_groups == {"^head": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"attentive": {"lr": 0.1}}, "lr_groups='attentive': it is found in no name of a trainable parameter"),
        ({"norm": {"lr": 0.1}, "model.norm": {"lr": 0.2}}, "went to an expression before it; put the narrower"),
    ],
)
def test_an_expression_without_parameters_is_refused(
    tmp_path: Path, groups: dict[str, dict[str, float]], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        rows.trainer(tmp_path, "sgd", lr_groups=groups).create_optimizer()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"(": {"lr": 0.1}}, "which is no regular expression"),
        ({"a": 0.1}, "write a mapping such as"),
        ({"a": {}}, "write a mapping such as"),
        ({"a": {"learning_rate": 0.1}}, "unknown key 'learning_rate': use lr and weight_decay"),
        ({"a": {"lr": -1}}, "must be a number, and not negative"),
        ({"a": {"lr": "high"}}, "must be a number, and not negative"),
        ({"a": {"weight_decay": float("nan")}}, "holds a number that is not a number"),
    ],
)
def test_what_no_group_can_be_is_refused_with_the_options(groups: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainingArguments("out", lr_groups=groups)


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw", "lomo"])
def test_optimizers_that_make_their_groups_refuse_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=f"lr_groups=.*optim='{name}' makes the groups of parameters itself"):
        rows.trainer(tmp_path, name, lr_groups=GROUPS)


def test_optimizers_that_are_given_refuse_it(tmp_path: Path) -> None:
    model = rows.tiny_llama()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match="lr_groups=.*optimizers brings groups of its own"):
        rows.trainer(tmp_path, "sgd", model=model, optimizers=(own, None), lr_groups=GROUPS)
    with pytest.raises(OptionError, match="the factory of optimizer_cls_and_kwargs brings groups of its own"):
        rows.trainer(tmp_path, "sgd", optimizer_cls_and_kwargs=(MuonAndAdamW, {}), lr_groups=GROUPS)


# Optimizers that a user builds --------------------------------------------------------------------------------------


class Together(torch.optim.Optimizer):
    """Several optimizers as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in parts for group in part.param_groups]  # the very same ones

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class MuonAndAdamW:
    """A factory: Muon for the matrices inside the model, AdamW for all else."""

    def __call__(self, model: nn.Module, lr: float = 0.02) -> torch.optim.Optimizer:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "head" not in name]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        return Together(torch.optim.Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=lr))


@pytest.mark.parametrize("factory", [MuonAndAdamW, lambda: MuonAndAdamW()], ids=["class", "function"])
def test_muon_for_matrices_and_adamw_for_the_rest_trains_and_goes_on_exactly(tmp_path: Path, factory: Any) -> None:
    options: dict[str, Any] = {"optimizer_cls_and_kwargs": (factory, {"lr": 0.02})}
    first = rows.trainer(tmp_path, "adamw_torch", **options)
    before = first.evaluate()["eval_loss"]
    first.train()
    assert first.evaluate()["eval_loss"] < 0.7 * before
    again = rows.trainer(tmp_path, "adamw_torch", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(weights(first), weights(again))


def test_a_class_with_its_keywords_takes_the_groups(tmp_path: Path) -> None:
    chosen = (torch.optim.NAdam, {"lr": 0.02})
    trainer = rows.trainer(tmp_path, "sgd", optimizer_cls_and_kwargs=chosen, save_strategy="no", lr_groups=GROUPS)
    trainer.train()
    assert type(trainer.optimizer) is torch.optim.NAdam
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.01, 0.0, 0.01, 0.0, 0.0]


def test_an_optimizer_and_a_schedule_that_are_given_are_used(tmp_path: Path) -> None:
    model = rows.tiny_llama()
    own = torch.optim.SGD(model.parameters(), lr=0.25)
    schedule = torch.optim.lr_scheduler.StepLR(own, step_size=2, gamma=0.5)
    options = {"weight_decay": 0.0, "save_strategy": "no", "max_steps": 5}
    trainer = rows.trainer(tmp_path, "adamw_torch", model=model, optimizers=(own, schedule), **options)
    trainer.train()
    assert trainer.optimizer is own
    assert trainer.lr_scheduler is schedule
    logged = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert logged == [0.25, 0.25, 0.125, 0.125, 0.0625]
