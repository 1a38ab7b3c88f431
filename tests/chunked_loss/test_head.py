"""Models that give a loss and no logits: that of their own forward pass, whatever they do to logits, or a refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from mainspring.chunked_loss import LossHead, loss_head
from mainspring.errors import OptionError
from mainspring.loss import WatchedCount
from tests.helpers.models import VOCABULARY, tiny_bert, tiny_gpt2

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen": ("Qwen3", {}),
    "a bias": ("Phi", {"num_key_value_heads": 2}),
    "a tanh": ("Gemma2", {"final_logit_softcapping": 2.0}),
    "divided": ("Granite", {"logits_scaling": 8.0}),
    "multiplied": ("Cohere", {}),
    "experts": ("Mixtral", {"num_local_experts": 4, "output_router_logits": True}),
}


def built(kind: str) -> Any:
    name, options = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **options})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():  # beyond what a tanh leaves as it is
            parameter.mul_(4)
    return model


def batch(**more: Any) -> dict[str, Any]:
    tokens = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[0, :5] = labels[2, 7:] = -100
    return {"input_ids": tokens, "labels": labels, **more}


def learned(model: Any, inputs: dict[str, Any], head: LossHead | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients, with logits or by a head."""
    model.zero_grad()
    if head is None:
        loss = model(**inputs).loss
    else:
        with head.instead_of_logits():
            outputs = model(**inputs)
        assert outputs.logits is None
        assert "logits" not in outputs
        loss = outputs.loss
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert float((found[1][name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-8, name


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_model(kind: str) -> None:
    model = built(kind).eval()
    head = loss_head(model, None)
    for inputs in (batch(), batch(num_items_in_batch=torch.tensor(40))):
        assert_same(learned(model, inputs, head), learned(model, inputs))


def test_targets_that_are_given_are_not_shifted() -> None:
    model = built("llama")
    inputs = batch()
    inputs["shift_labels"] = inputs["labels"].roll(-1, 1)
    given = learned(model, inputs, loss_head(model, None))
    assert_same(given, learned(model, inputs))
    del inputs["shift_labels"]
    assert given[0] != learned(model, inputs)[0]


def test_the_number_of_items_is_seen_to_be_used() -> None:
    model, items = tiny_gpt2(), WatchedCount.of(torch.tensor(9))
    with loss_head(model, None).instead_of_logits():
        model(**batch(num_items_in_batch=items))
    assert items.was_used


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counted", [{}, {"num_items_in_batch": torch.tensor(0)}], ids=["mean", "items"])
def test_a_batch_without_any_label_is_no_number_and_moves_nothing(counted: Any, precision: torch.dtype) -> None:
    """As with logits: an update of such batches leaves the weights what they are."""
    model, inputs = tiny_gpt2().to(precision), batch(**counted)
    inputs["labels"].fill_(-100)
    for head in (None, loss_head(model, None)):
        loss, gradients = learned(model, inputs, head)
        assert torch.isnan(loss)
        assert gradients
        assert not any(gradient.any() for gradient in gradients.values())  # which a NaN would count as


@pytest.mark.parametrize("kind", ["lora", "lora and prompts"])
def test_models_with_adapters(kind: str) -> None:
    peft = pytest.importorskip("peft")
    if kind == "lora":
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    else:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(built("llama"), config).eval()
    found = learned(model, batch(), loss_head(model, None))
    assert_same(found, learned(model, batch()))
    assert found[1], "only adapters are trained"


def test_the_model_is_left_as_it_was() -> None:
    model = built("a tanh").train()
    before = (
        [set(vars(module)) for module in model.modules()],
        model.config.to_dict(),
        copy.deepcopy(model.state_dict()),
    )
    random = torch.get_rng_state()
    head = loss_head(model, None)
    with head.instead_of_logits():
        model(**batch())
    assert before[:2] == ([set(vars(module)) for module in model.modules()], model.config.to_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[2][name])
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert model(**batch()).logits is not None


# ---- refusals ----


class Language(nn.Module):
    """A language model of one layer, with a loss of its own making."""

    def __init__(self, process: Callable[[Tensor], Tensor] = lambda logits: logits, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.head = nn.Linear(16, VOCABULARY, bias=bias)
        self.process = process

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def loss_function(self, logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None) -> Tensor:
        reduction = "mean" if num_items_in_batch is None else "sum"
        targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        loss = nn.functional.cross_entropy(logits.view(-1, vocab_size), targets.reshape(-1), reduction=reduction)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        logits = self.process(self.head(self.tokens(input_ids)))
        return {"loss": self.loss_function(logits, labels, VOCABULARY, **kwargs), "logits": logits}


class NoGetter(Language):
    get_output_embeddings = None  # type: ignore[assignment]


class Deep(Language):
    def get_output_embeddings(self) -> nn.Module:
        return nn.Sequential(self.head)


class Inline(Language):
    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        logits = self.head(self.tokens(input_ids))
        targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        return {"loss": nn.functional.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))}


class Mean(Language):
    """Takes a number of items, and does not divide by it."""

    def loss_function(self, logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None) -> Tensor:
        return super().loss_function(logits, labels, vocab_size)


class Unshifted(Language):
    def loss_function(self, logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(logits.view(-1, vocab_size), labels.reshape(-1))


def test_a_model_of_ones_own_works_by_its_loss_function() -> None:
    model = Language(lambda logits: logits * 0.5)
    head = loss_head(model, None)
    expected = model(**batch())["loss"]
    with head.instead_of_logits():
        found = model(**batch())
    assert list(found) == ["loss"]
    torch.testing.assert_close(found["loss"], expected)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no output layer": (tiny_bert, "BertForSequenceClassification has no get_output_embeddings"),
    "no getter": (NoGetter, "NoGetter has no get_output_embeddings"),
    "more than a layer": (Deep, "the output layer of Deep is a Sequential, not a plain linear layer"),
    "a loss within forward": (Inline, "Inline does not take its loss from a loss_function of its logits"),
    "a mean": (Mean, "Mean makes more of its logits than a scaled product"),
    "another shift": (Unshifted, "Unshifted makes more of its logits than a scaled product"),
    "a tanh": (lambda: Language(lambda logits: 30 * torch.tanh(logits / 30)), "Language makes more of its logits"),
    "a shift": (lambda: Language(lambda logits: logits + torch.arange(logits.shape[-1])), "Language"),
    "a scaled bias": (lambda: Language(lambda logits: logits * 0.5, bias=True), "Language makes more of its logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_without_logits_is_refused(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(OptionError, match=f"chunked_cross_entropy=True: {message}"):
        loss_head(build(), None)


def test_an_offloaded_layer_is_refused() -> None:
    model = tiny_gpt2()
    model.lm_head.forward = model.lm_head.forward  # as hooks of Accelerate do
    with pytest.raises(OptionError, match="has a forward pass of its own"):
        loss_head(model, None)


def test_an_obstacle_of_the_run_is_told() -> None:
    with pytest.raises(OptionError, match="chunked_cross_entropy=True: two GPUs"):
        loss_head(tiny_gpt2(), "two GPUs")
