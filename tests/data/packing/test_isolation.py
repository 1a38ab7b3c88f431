"""Samples of a row know nothing of each other, and models that cannot keep them apart are refused."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring.data.packing import PackingCollator, check_isolation, layout_for
from mainspring.data.packing.columns import concatenated
from mainspring.errors import OptionError
from tests.data.packing.models import FORWARD_ALONE, KEEPING_APART, SHAPE, Plain, gpt2
from tests.helpers.models import VOCABULARY, tiny_bert

KINDS = {**KEEPING_APART, **FORWARD_ALONE}
FEW = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17]]


def texts(*lengths: int, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, VOCABULARY, (length,), generator=generator)} for length in lengths]


def logits(model: nn.Module, rows: list[list[Any]]) -> Tensor:
    batch = PackingCollator(concatenated, layout_for(model))(rows)
    del batch["labels"]
    with torch.no_grad():
        return model(**batch)["logits"]


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """Flex attention is compiled otherwise, for many seconds and by a compiler that a machine may not have."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_altering_one_sample_leaves_every_other_ones_logits_bit_identical(kind: str) -> None:
    model = KINDS[kind]().eval()
    row, other_row = texts(9, 7, 11), texts(5, 13, seed=1)
    before = logits(model, [row, other_row])
    altered = [row[0], texts(7, seed=2)[0], row[2]]
    after = logits(model, [altered, other_row])
    assert not torch.equal(before[0, 9:16], after[0, 9:16])
    assert torch.equal(before[0, :9], after[0, :9])
    assert torch.equal(before[0, 16:], after[0, 16:])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_samples_logits_are_those_of_the_sample_alone(kind: str) -> None:
    """Also behind samples that are longer than a window, and further along than the model has positions."""
    model = KINDS[kind]().eval()
    samples = texts(15, 9, 1, 14)
    packed = PackingCollator(concatenated, layout_for(model))([samples])
    del packed["labels"]
    with torch.no_grad():
        found = model(**packed)["logits"][0]
        alone = [model(input_ids=sample["input_ids"][None])["logits"][0] for sample in samples]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KEEPING_APART)
def test_models_that_keep_samples_apart_pass_and_stay_as_they_were(kind: str) -> None:
    model = KEEPING_APART[kind]().train()
    next(iter(model.children())).eval()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    check_isolation(model, layout_for(model), FEW, contextlib.nullcontext())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def refusal(model: nn.Module) -> str:
    with pytest.raises(OptionError) as refused:
        check_isolation(model, layout_for(model), FEW, contextlib.nullcontext())
    (problem,) = refused.value.problems
    assert (problem.option, problem.value) == ("pack_sequences", True)
    assert "train without it" in problem.fix
    return problem.why


class Bare(nn.Module):
    """A model without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        raise AssertionError("not called")


class OnlyLoss(Plain):
    """A model that keeps its logits to itself."""

    def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, labels: Any = None) -> Any:
        return {"loss": super().forward(input_ids, attention_mask, position_ids, labels)["logits"].sum()}


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))


def jamba() -> Any:
    """Attention and recurrence in turns; its forward takes positions."""
    from transformers import JambaConfig, JambaForCausalLM

    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1}
    state = {"use_mamba_kernels": False, "mamba_dt_rank": 4, "mamba_d_state": 4, "use_cache": False}
    return JambaForCausalLM(JambaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **SHAPE, **layers, **state))


def bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, d_model=16, max_position_embeddings=32, **sizes)
    )


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (bart, "BartForConditionalGeneration is an encoder-decoder"),
        (bloom, "BloomForCausalLM.forward takes no 'position_ids'"),
        (Bare, "Bare.forward takes no 'position_ids'"),
        (mamba, "MambaForCausalLM"),
        (jamba, "JambaForCausalLM carries a state from token to token"),
        (tiny_bert, "BertForSequenceClassification"),
        (OnlyLoss, "OnlyLoss does not take packed rows .*it returns no 'logits' for each token"),
    ],
)
def test_models_that_cannot_be_packed_are_refused_by_name(build: Any, why: str) -> None:
    assert re.match(why, refusal(build()))


def test_a_recurrence_that_does_not_say_so_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = jamba()
    monkeypatch.setattr(type(model), "_is_stateful", False)
    assert "lets the samples of a row see each other" in refusal(model)


def test_a_mask_that_is_not_heeded_is_noticed() -> None:
    assert refusal(Plain(leaks=True)).startswith("Plain lets the samples of a row see each other")


def test_positions_that_do_not_begin_anew_are_noticed() -> None:
    assert refusal(Plain(restarts=False)) == "Plain gives a sample behind another one other logits than alone"


@pytest.mark.parametrize("kind", FORWARD_ALONE)
def test_an_attention_without_a_gradient_on_this_device_is_refused_before_the_first_backward(kind: str) -> None:
    model = FORWARD_ALONE[kind]()
    why = refusal(model)
    assert "does not take packed rows (NotImplementedError: FlexAttention does not support backward on CPU" in why
    model.requires_grad_(False)  # nothing to train: its forward alone would do
    check_isolation(model, layout_for(model), FEW, contextlib.nullcontext())


def test_a_model_without_weights_cannot_be_tried() -> None:
    model = Plain(leaks=True).to("meta")
    check_isolation(model, layout_for(model), FEW, contextlib.nullcontext())


def test_a_masked_language_model_would_become_a_causal_one() -> None:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **SHAPE))
    nn.init.normal_(model.bert.embeddings.word_embeddings.weight)  # what it begins with hardly tells tokens apart
    assert "other logits than alone" in refusal(model)


def test_windows_with_a_cache_are_noticed() -> None:
    """With a cache their masks do not follow the positions."""
    from tests.data.packing.models import mistral

    model = mistral()
    model.config.use_cache = True
    assert "see each other" in refusal(model)


def test_a_data_set_of_one_word_can_be_tried() -> None:
    check_isolation(gpt2(), layout_for(gpt2()), [[5, 5, 5]], contextlib.nullcontext())
