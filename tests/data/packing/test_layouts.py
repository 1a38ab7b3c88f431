"""How packed rows look: positions that begin anew, a mask for each sample, or one long row without padding."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from mainspring.data.packing import PackingCollator, layout_for
from mainspring.data.packing.columns import concatenated
from mainspring.data.packing.layouts import Flattened, Masked, Positions
from tests.helpers.models import tiny_gpt2

ROWS = [[{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}], [{"input_ids": [3, 4]}]]


def packed(layout: Any, rows: Any = ROWS) -> Any:
    return PackingCollator(concatenated, layout)(rows)


def test_rows_are_padded_at_their_ends_and_positions_begin_anew() -> None:
    batch = packed(Positions())
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]],
        "labels": [[-100, 6, 7, -100, 9], [-100, 4, -100, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]],
    }
    assert batch.tokens == 7


def test_positions_of_padding_stay_below_those_of_the_longest_sample() -> None:
    """A row may be many times as long as the model has positions."""
    rows = [[{"input_ids": [1, 2, 3]}] * 4, [{"input_ids": [4]}]]
    for layout in (Positions(), Masked()):
        assert packed(layout, rows)["position_ids"][1].tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]


def test_a_token_sees_those_before_it_in_its_sample() -> None:
    mask = packed(Masked())["attention_mask"]
    assert mask.dtype == torch.bool
    assert mask.shape == (2, 1, 5, 5)
    seen = [["".join("x" if one else "." for one in line) for line in row[0].tolist()] for row in mask]
    assert seen == [["x....", "xx...", "xxx..", "...x.", "...xx"], ["x....", "xx...", "..x..", "..xx.", "..xxx"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_additive_mask_hides_what_the_other_one_hides(dtype: torch.dtype) -> None:
    added, seen = packed(Masked(additive=dtype))["attention_mask"], packed(Masked())["attention_mask"]
    assert added.dtype == dtype
    assert torch.equal(added == 0, seen)
    assert (added[~seen] == torch.finfo(dtype).min).all()


@pytest.mark.parity
def test_one_long_row_is_that_of_the_references_collator() -> None:
    flat = [sample for row in ROWS for sample in row]
    expected = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(flat)
    batch = packed(Flattened())
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert batch[name].dtype == value.dtype
            assert torch.equal(batch[name], value)
        else:
            assert batch[name] == value
    assert packed(Flattened(keywords=False)).keys() == {"input_ids", "labels", "position_ids"}


TEXTS = st.lists(st.lists(st.integers(1, 40), min_size=0, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(TEXTS, min_size=1, max_size=4).filter(lambda rows: any(any(row) for row in rows)))
def test_every_layout_holds_each_token_once_at_its_place_in_its_sample(rows: list[list[list[int]]]) -> None:
    samples = [[{"input_ids": text} for text in row] for row in rows]
    expected = sorted((token, place) for row in rows for text in row for place, token in enumerate(text))
    for layout in (Flattened(), Masked(), Positions()):
        batch = packed(layout, samples)
        found = zip(batch["input_ids"].flatten().tolist(), batch["position_ids"].flatten().tolist(), strict=True)
        assert sorted((token, place) for token, place in found if token) == expected
        assert batch.tokens == len(expected)
        counted = int((batch["labels"] != -100).sum())
        assert counted == sum(max(len(text) - 1, 0) for row in rows for text in row)


def test_a_batch_keeps_its_count_on_the_way_from_a_worker() -> None:
    batch = pickle.loads(pickle.dumps(packed(Masked())))
    assert batch.tokens == 7


def small(config: type[Any], model: type[Any], **options: Any) -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    attention = options.pop("attention", "sdpa")
    made = config(vocab_size=48, num_key_value_heads=2, **shape, **options)
    made._attn_implementation = attention
    return model(made)


def test_the_layout_follows_the_models_attention() -> None:
    llama = lambda attention: small(LlamaConfig, LlamaForCausalLM, attention=attention)  # noqa: E731
    assert layout_for(llama("sdpa")) == Masked()
    assert layout_for(llama("eager")) == Masked(additive=torch.float32)
    assert layout_for(llama("eager").bfloat16()) == Masked(additive=torch.bfloat16)
    assert layout_for(tiny_gpt2()) == Masked()
    assert layout_for(nn.Linear(2, 2)) == Masked()
    for named in ("flash_attention_2", "flex_attention"):
        model = llama("sdpa")
        model.config._attn_implementation = named
        assert layout_for(model) == (Positions() if named == "flex_attention" else Flattened())


def test_layers_with_windows_make_their_own_masks() -> None:
    """One mask for all layers would undo the window."""
    assert layout_for(small(MistralConfig, MistralForCausalLM, sliding_window=4)) == Positions()
    assert layout_for(small(MistralConfig, MistralForCausalLM, sliding_window=None)) == Masked()
    mixed = small(LlamaConfig, LlamaForCausalLM)
    for kinds, layout in ((["full_attention"], Masked()), (["full_attention", "sliding_attention"], Positions())):
        mixed.config.layer_types = kinds
        assert layout_for(mixed) == layout
