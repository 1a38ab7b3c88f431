"""Noise on embeddings: the reference's to the last bit, in training only, and gone afterwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from mainspring import Trainer, TrainingArguments
from mainspring.errors import OptionError
from mainspring.model_features.neftune import Noise
from tests.helpers import data
from tests.helpers.models import Regressor, tiny_bert, tiny_gpt2
from tests.helpers.sides import REFERENCE, SUBJECT, Side

PLAIN = Side(SUBJECT.name, SUBJECT.package, {})
IDS = torch.arange(3, 33).view(3, 10)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def adapted() -> Any:
    return peft.get_peft_model(tiny_gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))


def with_trained_embeddings() -> Any:
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["word_embeddings"])
    return peft.get_peft_model(tiny_bert(), config)


MODELS = {"gpt2": tiny_gpt2, "bert": tiny_bert, "t5": t5, "peft": adapted, "peft, trained": with_trained_embeddings}


def embeddings_of(model: Any) -> Any:
    return (model.get_base_model() if isinstance(model, peft.PeftModel) else model).get_input_embeddings()


def given(model: Any) -> torch.Tensor:
    """What the embeddings give, from the same random numbers on."""
    torch.manual_seed(4)
    return embeddings_of(model)(IDS)


# The noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_noise_is_the_references(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().to(dtype).train()
    clean = given(model)
    theirs = activate_neftune(model, 5.0)
    expected, then = given(model), torch.rand(())
    deactivate_neftune(model, theirs)
    ours = Noise(model, 5.0)
    found, after = given(model), torch.rand(())
    ours.remove()
    assert torch.equal(found, expected)
    assert torch.equal(after, then)
    assert not torch.equal(found, clean)
    assert torch.equal(given(model), clean)


def test_the_noise_has_the_size_of_the_paper() -> None:
    model = tiny_gpt2().train()
    clean = given(model)
    noise = Noise(model, 8.0)
    drawn = (given(model) - clean).flatten() / (8.0 / math.sqrt(10 * 16))
    noise.remove()
    assert 0.98 < drawn.abs().max() <= 1.0 + 1e-4
    assert drawn.mean().abs() < 0.1
    assert (drawn.square().mean() - 1 / 3).abs() < 0.05  # of an even distribution


def test_evaluations_have_none_and_draw_nothing() -> None:
    model = tiny_gpt2().eval()
    clean = given(model)
    Noise(model, 5.0)
    assert torch.equal(given(model), clean)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(()), (given(model), torch.rand(()))[1])


def test_wrappers_are_looked_through() -> None:
    for wrapped in (torch.compile(tiny_gpt2(), backend="eager"), nn.DataParallel(tiny_gpt2())):
        inner = getattr(wrapped, "_orig_mod", None) or wrapped.module
        noise = Noise(wrapped, 5.0)
        assert inner.get_input_embeddings().neftune_noise_alpha == 5.0
        noise.remove()


def test_removing_leaves_nothing_behind() -> None:
    model = tiny_gpt2()
    noise = Noise(model, 5.0)
    embeddings = model.get_input_embeddings()
    assert embeddings.neftune_noise_alpha == 5.0
    noise.remove()
    noise.remove()
    assert not embeddings._forward_hooks
    assert not hasattr(embeddings, "neftune_noise_alpha")


class Refuses(nn.Module):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize("model", [Regressor(), Refuses()], ids=lambda model: type(model).__name__)
def test_a_model_without_input_embeddings_says_so(model: nn.Module) -> None:
    with pytest.raises(
        OptionError, match=f"neftune_noise_alpha=5.0: {type(model).__name__} does not say what its input"
    ):
        Noise(model, 5.0)


def test_noise_of_a_negative_size_is_refused() -> None:
    with pytest.raises(OptionError, match="neftune_noise_alpha=-1"):
        TrainingArguments("out", use_cpu=True, neftune_noise_alpha=-1)


# In training ------------------------------------------------------------------------------------------------------


def build(side: Side, folder: Path, model: Any = None, cls: Any = None, **options: Any) -> Any:
    texts = {"train_dataset": data.Items(data.ragged_text(12, seed=1)), "eval_dataset": data.Items(data.ragged_text(5))}
    torch.manual_seed(0)
    made = tiny_gpt2(0.1) if model is None else model
    args = side.arguments(folder, seed=3, **{"num_train_epochs": 2, "neftune_noise_alpha": 5.0, **options})
    return (cls or side.api.Trainer)(made, args, data_collator=data.collate_text, **texts)


def trained(*args: Any, **options: Any) -> Any:
    trainer = build(*args, **options)
    trainer.train()
    return trainer


def numbers(trainer: Any) -> list[tuple[Any, ...]]:
    return [tuple(log.get(key) for key in ("loss", "grad_norm", "eval_loss")) for log in trainer.state.log_history]


def same_weights(first: Any, second: Any) -> bool:
    states = [trainer.model.state_dict() for trainer in (first, second)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


RUNS: dict[str, dict[str, Any]] = {
    "evaluated": {"eval_strategy": "steps", "eval_steps": 2},
    "accumulated": {"gradient_accumulation_steps": 2},
    "recomputed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "bf16": {"bf16": True},
}


@pytest.mark.parity
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_references(name: str, tmp_path: Path) -> None:
    theirs = trained(REFERENCE, tmp_path / "theirs", **RUNS[name])
    mine = trained(SUBJECT, tmp_path / "mine", **RUNS[name])
    without = trained(SUBJECT, tmp_path / "without", **RUNS[name], neftune_noise_alpha=None)
    assert numbers(mine) == numbers(theirs)
    assert same_weights(mine, theirs)
    assert not same_weights(mine, without)
    assert not hasattr(embeddings_of(mine.model), "neftune_noise_alpha")


def test_by_default_the_same_noise_is_drawn(tmp_path: Path) -> None:
    """Of what the package does otherwise by default, nothing concerns these texts."""
    whole = {"num_train_epochs": 1, "max_grad_norm": 0.0}

    def first_loss(side: Side) -> float:
        return float(trained(side, tmp_path / side.name, **whole, max_steps=1).state.log_history[0]["loss"])

    assert first_loss(PLAIN) == first_loss(REFERENCE)


def test_adapters_are_trained_with_noise_as_the_reference_does(tmp_path: Path) -> None:
    runs = [trained(side, tmp_path / side.name, model=seeded_adapter()) for side in (REFERENCE, SUBJECT)]
    without = trained(SUBJECT, tmp_path / "without", model=seeded_adapter(), neftune_noise_alpha=None)
    assert same_weights(*runs)
    assert not same_weights(runs[1], without)
    assert not hasattr(embeddings_of(runs[1].model), "neftune_noise_alpha")


def seeded_adapter() -> Any:
    torch.manual_seed(0)
    return adapted()


def test_a_resumed_run_draws_on(tmp_path: Path) -> None:
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(PLAIN, tmp_path / "run", **saves)
    resumed = build(PLAIN, tmp_path / "run", **saves)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert same_weights(whole, resumed)


def test_an_exception_takes_the_noise_away(tmp_path: Path) -> None:
    class Failing(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            assert self.model.get_input_embeddings().neftune_noise_alpha == 5.0
            raise ZeroDivisionError("a mistake")

    trainer = build(PLAIN, tmp_path, cls=Failing)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert not trainer.model.get_input_embeddings()._forward_hooks
    assert not hasattr(trainer.model.get_input_embeddings(), "neftune_noise_alpha")


def test_the_trainers_attribute_decides(tmp_path: Path) -> None:
    changed = build(PLAIN, tmp_path / "changed", neftune_noise_alpha=None)
    assert changed.neftune_noise_alpha is None
    changed.neftune_noise_alpha = 5.0
    changed.train()
    assert same_weights(changed, trained(PLAIN, tmp_path / "asked"))


def test_the_older_generations_methods_are_called(tmp_path: Path) -> None:
    calls = []

    class Noting(Trainer):
        def _activate_neftune(self, model: Any) -> Any:
            calls.append("on")
            return super()._activate_neftune(model)

        def _deactivate_neftune(self, model: Any) -> None:
            calls.append("off")
            super()._deactivate_neftune(model)

    noting = trained(PLAIN, tmp_path / "noting", cls=Noting)
    assert calls == ["on", "off"]
    assert same_weights(noting, trained(PLAIN, tmp_path / "plain"))
