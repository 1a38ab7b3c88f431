"""Sharded models over gloo: trained as whole ones are, in pieces of the size promised, with every setting in effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.fsdp_cases import CASES, FOUR
from tests.distributed.fsdp_read import TOLERANCE, alone, found, furthest, weights_alone, weights_of
from tests.distributed.fsdp_runs import STEPS, model

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WHOLE = {"first_no_shard", "only_copies", "first_copies_unsharded", "first_only_copies"}
"""Cases in which every process holds all of the model, as asked."""


def _is_first(name: str) -> bool:
    return CASES[name].fsdp.get("version") == 1


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_trained_as_one(name: str, fsdp_results: Path) -> None:
    """The losses and gradient norms of one process that has the whole model, on both."""
    case = CASES[name]
    expected = alone(**(case.alone or {}))
    for rank in range(2):
        facts = found(fsdp_results, name, rank=rank)
        assert facts["losses"] == pytest.approx(expected["loss"], rel=case.tolerance)
        assert facts["norms"] == pytest.approx(expected["grad_norm"], rel=5 * case.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_the_model_is_sharded(name: str, fsdp_results: Path) -> None:
    """Two processes behind the wrapper that was asked for, each with half of the bytes: no silent fall-back."""
    for rank in range(2):
        facts = found(fsdp_results, name, rank=rank)
        assert facts["world_size"] == 2
        assert facts["is_fsdp_enabled"]
        assert facts["wrapper"] == ("FullyShardedDataParallel" if _is_first(name) else "FSDPGPT2LMHeadModel")
        assert facts["dtensors"] is not _is_first(name)
        assert facts["share"] <= (1.0 if name in WHOLE else 0.6)


@pytest.mark.parametrize("name", [name for name in CASES if name != "first_flat"])
def test_parameters_are_counted_whole(name: str, fsdp_results: Path) -> None:
    """However many of them lie on each process; flat ones cannot tell."""
    assert found(fsdp_results, name)["trainable"] == sum(parameter.numel() for parameter in model().parameters())


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_are_trained_as_one(name: str, fsdp_results: Path) -> None:
    """Sharded over four, or over two with a copy on the others: the same numbers, a quarter or half of the bytes."""
    expected = alone()
    share = 0.3 if name == "four" else 1.0 if name in WHOLE else 0.6
    for rank in range(4):
        facts = found(fsdp_results, name, "four", rank)
        assert facts["world_size"] == 4
        assert facts["losses"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert facts["norms"] == pytest.approx(expected["grad_norm"], rel=5 * TOLERANCE)
        assert facts["share"] <= share


@pytest.mark.parametrize("name", ["four", "copies", "first_copies", "first_only_copies"])
def test_four_processes_end_with_the_weights_of_one(name: str, fsdp_results: Path) -> None:
    """To the rounding of Adam's first steps, of 0.01 each, which are as long for a small gradient as for a large one."""
    assert furthest(weights_of(fsdp_results, name), weights_alone()) < 5e-5


def test_one_process_that_was_launched_is_sharded_over_itself(fsdp_results: Path) -> None:
    """A launcher makes a world, even of one: FSDP is what was asked for."""
    facts = found(fsdp_results, "lonely", "one")
    assert (facts["world_size"], facts["wrapper"], facts["dtensors"]) == (1, "FSDPGPT2LMHeadModel", True)
    assert facts["losses"] == pytest.approx(alone()["loss"], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("plain", ["GPT2LMHeadModel", "GPT2Block", "GPT2Block"]),
        ("one_unit", ["GPT2LMHeadModel"]),
        ("by_name", ["GPT2LMHeadModel", "GPT2MLP", "GPT2MLP"]),
        ("first", ["GPT2LMHeadModel", "GPT2Block", "GPT2Block"]),
    ],
)
def test_units_are_those_of_the_policy(name: str, units: list[str], fsdp_results: Path) -> None:
    """By what the model says of itself, by name, or none."""
    assert found(fsdp_results, name)["units"] == units


@pytest.mark.parametrize("name", ["by_size", "first_by_size"])
def test_units_by_size_are_the_large_ones(name: str, fsdp_results: Path) -> None:
    """Three of a block's four projections have 3,000 parameters; the tied embeddings stay with the model."""
    assert found(fsdp_results, name)["units"] == ["GPT2LMHeadModel", *["Conv1D"] * 6]


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("plain", 1),
        ("recomputes", 2),
        ("model_recomputes", 2),
        ("first", 1),
        ("first_recomputes", 2),
        ("first_model_recomputes", 2),
        ("offloads", 1),
    ],
)
def test_activations_are_computed_once_more_where_asked(name: str, times: int, fsdp_results: Path) -> None:
    """Once forward; once more in the backward pass, by the units of FSDP or by the model itself."""
    assert found(fsdp_results, name)["forwards"] == times * STEPS


def test_settings_reach_torch(fsdp_results: Path) -> None:
    """What shows in no number: where pieces lie, when they are freed, what is gathered ahead."""
    found_ = found(fsdp_results, "policies")
    assert (found_["offloads"], found_["pins"]) == (True, False)
    assert (found_["freed"], found_["kept"]) == (False, True)
    assert found_["first"] == ["FULL_SHARD", True, "BACKWARD_POST", True, True]


@pytest.mark.parametrize("version", ["1", "2"])
def test_half_precision_gathers_halves_and_keeps_the_rest(version: str, fsdp_results: Path) -> None:
    """bf16 in the forward pass; fp32 in what is stepped and saved, also of a model that was loaded in bf16."""
    assert found(fsdp_results, "precisions")[version] == {
        "gathered": "torch.bfloat16",
        "kept": ["torch.float32"],
        "saved": ["torch.float32"],
    }


def test_what_cannot_be_is_refused(fsdp_results: Path) -> None:
    """With the reason, at construction; and no run goes on with a model that is not sharded."""
    said = found(fsdp_results, "refusals")
    assert said["optimizer"]["type"] == "RuntimeError"
    assert "did you mean 'GPT2Block'" in said["unknown_layer"]["text"]
    assert "on the CPU" in said["offload_of_first"]["text"]
    assert said["not_sharded"] == {
        "type": "RuntimeError",
        "text": "fsdp=True: the model became GPT2LMHeadModel, which is not sharded",
    }
