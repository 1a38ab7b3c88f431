"""Plans of tensor parallelism, and batches for sequences in pieces: what needs no second process."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from mainspring.arguments.parallel_sizes import ParallelSizes
from mainspring.engines.loaded import agreed_sizes, sizes_of_model
from mainspring.engines.mesh import check_world
from mainspring.engines.parallel import context
from mainspring.engines.parallel.checks import check_adapters, check_divisible, check_sizes, shared_weights
from mainspring.engines.parallel.plan import expand, plan_of
from mainspring.engines.parallel.styles import Whole
from mainspring.errors import NotAvailableError, OptionError
from tests.distributed.divided_models import Own, llama, neox


class Around(nn.Module):
    """Two modules with plans of their own, one of them below a module without."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Own()
        self.more = nn.ModuleList([Own()])


# ---- plans ----


def test_a_plan_is_the_models_own() -> None:
    """transformers' models have one; of other modules it is an attribute."""
    assert plan_of(llama(), 2)["model.layers.*.self_attn.q_proj"] == "colwise"
    assert plan_of(Own(), 2) == {"up": "colwise", "down": "rowwise"}


def test_a_plan_is_put_together_from_those_inside() -> None:
    """Under the names that the modules have in the whole."""
    assert plan_of(Around(), 2) == {
        "one.up": "colwise",
        "one.down": "rowwise",
        "more.0.up": "colwise",
        "more.0.down": "rowwise",
    }


def test_the_plan_of_the_whole_goes_before_those_inside() -> None:
    """Nothing is added to it."""
    model: Any = Around()
    model._tp_plan = {"one.up": "colwise"}
    assert plan_of(model, 2) == {"one.up": "colwise"}


def test_stars_stand_for_one_part_of_a_name() -> None:
    """Not for two, nor for none."""
    found = expand({"gpt_neox.layers.*.mlp.dense_h_to_4h": "colwise", "*.layers": "colwise"}, neox())
    assert list(found) == [*(f"gpt_neox.layers.{i}.mlp.dense_h_to_4h" for i in range(2)), "gpt_neox.layers"]


def test_names_stand_for_torchs_styles_and_styles_for_themselves() -> None:
    """Each module gets one."""
    own = RowwiseParallel()
    found = expand({"up": "colwise", "down": own, "dropout": "replicate"}, Own())
    styles = {name: style for name, (_, style) in found.items()}
    assert isinstance(styles["up"], ColwiseParallel)
    assert styles["down"] is own
    assert isinstance(styles["dropout"], Whole)


def test_what_a_model_lacks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A plan may be one for several models; but a misspelt name would leave a layer whole."""
    with caplog.at_level(logging.WARNING):
        expand({"up": "colwise", "dwon": "rowwise"}, Own())
    assert "names what Own does not have: dwon" in caplog.text


def test_experts_are_refused_by_name() -> None:
    """Their styles divide parameters rather than modules."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_experts": 2}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, num_key_value_heads=2, moe_intermediate_size=8, head_dim=8))
    with pytest.raises(NotAvailableError, match="'moe_tp_experts'.*there is no such style"):
        expand(plan_of(model, 2), model)


# ---- what leaves a remainder ----


@pytest.mark.parametrize(("size", "fits"), [(2, True), (4, False)])
def test_every_kind_of_heads_is_divided(size: int, fits: bool) -> None:
    """Four heads of queries, two of keys and values."""
    model = llama()
    plan = {name: words for name, (words, _) in expand(plan_of(model, size), model).items()}
    if fits:
        check_divisible(model, plan, size)
    else:
        with pytest.raises(OptionError, match="num_key_value_heads=2, which do not fall into 4 equal parts"):
            check_divisible(model, plan, size)


def test_all_that_leaves_a_remainder_is_said_at_once() -> None:
    """Each width once, however many layers have it."""
    with pytest.raises(OptionError) as caught:
        check_divisible(Own(width=9), {"up": "colwise", "down": "rowwise"}, 2)
    assert len(caught.value.problems) == 2


def test_adapters_are_refused() -> None:
    """No plan names them: they would be whole in the midst of pieces."""
    model: Any = llama()
    check_adapters(model, 2)
    model._hf_peft_config_loaded = True
    with pytest.raises(OptionError, match="not the adapters in them"):
        check_adapters(model, 2)


def test_shared_weights_are_found() -> None:
    """An embedding and a head, and nothing else."""
    assert shared_weights(llama()) == []
    assert shared_weights(llama(tie_word_embeddings=True)) == [
        [("model.embed_tokens", "weight"), ("lm_head", "weight")]
    ]


# ---- sizes ----


def test_the_world_has_a_place_for_every_process() -> None:
    """Neither more nor fewer."""
    sizes = ParallelSizes(tp_size=2, dp_shard_size=2)
    check_world(sizes, 4)
    with pytest.raises(
        OptionError, match=r"'dp_shard_size': 2, 'tp_size': 2.*product of the sizes is 4, but 2 process"
    ):
        check_world(sizes, 2)


def test_a_model_says_how_it_was_loaded() -> None:
    """transformers notes it on the model."""
    model: Any = llama()
    assert sizes_of_model(model) is None
    assert agreed_sizes(None, model) is None
    model._tp_size = 2
    assert agreed_sizes(None, model) == ParallelSizes(tp_size=2)
    assert agreed_sizes(ParallelSizes(tp_size=2), model) == ParallelSizes(tp_size=2)
    with pytest.raises(OptionError, match="the model was loaded with tp_size=2"):
        agreed_sizes(ParallelSizes(tp_size=4), model)


@pytest.mark.parametrize(
    ("sizes", "device", "scaled", "words"),
    [
        ({"cp_size": 2}, "cpu", False, "no kernel for the CPU"),
        ({"tp_size": 2}, "cuda", True, "fp16=True: losses are not scaled with divided layers"),
        ({"sp_size": 2}, "cuda", False, "division of sequences"),
        ({"tp_size": 2, "tp_handler": {"enable_async_tp": True}}, "cuda", False, "asynchronous tensor parallelism"),
    ],
)
def test_what_is_not_here_is_refused(sizes: dict[str, Any], device: str, scaled: bool, words: str) -> None:
    """With the reason."""
    with pytest.raises(OptionError, match=words):
        check_sizes(ParallelSizes(**sizes), device, scaled=scaled)


def test_what_is_here_is_not() -> None:
    """Sequences in pieces on GPUs, layers in pieces everywhere."""
    check_sizes(ParallelSizes(cp_size=2), "cuda", scaled=True)
    check_sizes(ParallelSizes(tp_size=2), "cpu", scaled=False)


# ---- sequences in pieces ----


def _batch(length: int = 5) -> dict[str, Any]:
    ids = torch.arange(2 * length).view(2, length)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}


def test_labels_are_shifted_while_sequences_are_whole() -> None:
    """The last place of each has nothing to foretell; the mask of what stands behind is not needed."""
    batch = context._with_places(_batch())
    assert batch["shift_labels"].tolist() == [[1, 2, 3, 4, -100], [6, 7, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert "attention_mask" not in batch


def test_sequences_are_filled_up_behind() -> None:
    """With what counts for nothing, in copies: the batch stays as it was."""
    given = _batch()
    filled = context._filled_up(context._with_places(dict(given)), 4)
    assert {name: tensor.shape[1] for name, tensor in filled.items()} == dict.fromkeys(filled, 8)
    assert filled["labels"][:, 5:].eq(-100).all()
    assert filled["shift_labels"][:, 5:].eq(-100).all()
    assert given["input_ids"].shape[1] == 5
    assert filled["input_ids"].data_ptr() != given["input_ids"].data_ptr()


def test_padding_in_front_is_refused() -> None:
    """Those places would be attended to."""
    batch = _batch()
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    with pytest.raises(RuntimeError, match="context parallelism needs padding on the right"):
        context._with_places(batch)


def test_what_cannot_be_divided_is_refused() -> None:
    """Another mask, other columns, other attention."""
    with pytest.raises(OptionError, match="only causal attention"):
        context._with_places({**_batch(), "attention_mask": torch.ones(2, 1, 5, 5)})
    with pytest.raises(OptionError, match="weights cannot be divided along the sequence"):
        context._with_places({**_batch(), "weights": torch.ones(2)})
    with pytest.raises(OptionError, match="attn_implementation='eager'"):
        context._check_attention(llama(attn_implementation="eager"))
