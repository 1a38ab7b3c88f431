"""Models with statistics, halves or optimizers of their own are trained under FSDP, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.fsdp_read import TOLERANCE, alone, found

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

VERSIONS = ["1", "2"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_model_that_is_evaluated_is_the_one_that_is_saved(version: str, fsdp_results: Path) -> None:
    """Each process has trained on other batches, and has other statistics of them: those of the first one count."""
    for rank in range(2):
        results = found(fsdp_results, "statistics", rank=rank)[version]
        assert results["differed"]
        assert results["here"] == pytest.approx(results["there"], rel=TOLERANCE)


def test_frozen_halves_are_trained_beside_in_either_version(fsdp_results: Path) -> None:
    """Version 1 needs one dtype in each unit; it gathers halves all the same, and so comes to the same numbers."""
    results = found(fsdp_results, "half_frozen")
    assert results["1"] == pytest.approx(results["2"], rel=TOLERANCE)
    assert results["2"] == pytest.approx(alone(bf16=True)["loss"], rel=1e-2)


def test_two_dtypes_need_a_precision_in_version_1(fsdp_results: Path) -> None:
    """The reason comes with the ways out; version 2 shards each parameter by itself."""
    first, second = (found(fsdp_results, "half_frozen_without_bf16")[version] for version in VERSIONS)
    assert first["type"] == "OptionError"
    assert "GPT2Block has bfloat16 and float32" in first["text"]
    assert "one parameter of each unit" not in second["text"]


@pytest.mark.parametrize("version", VERSIONS)
def test_adapters_on_halves_go_on(version: str, fsdp_results: Path) -> None:
    """LoRA in fp32 on a model in bf16: the same numbers in both versions, and after a resume."""
    pytest.importorskip("peft")
    results = found(fsdp_results, "half_adapters")
    losses, again = results[version]
    assert losses == pytest.approx(results["2"][0], rel=TOLERANCE)
    assert again == losses


def test_an_optimizer_of_parameters_that_are_no_more_is_refused(fsdp_results: Path) -> None:
    """It would step what nobody computes with, and the run would end as if it had trained."""
    for rank in range(2):
        results = found(fsdp_results, "early_optimizers", rank=rank)
        assert results["2"]["said"]["type"] == "RuntimeError"
        assert "would step the old ones" in results["2"]["said"]["text"]
        assert results["2"]["early"] == []


def test_an_optimizer_of_the_parameters_in_use_is_taken(fsdp_results: Path) -> None:
    """Version 1 keeps the model's own; version 2 has made its own once the model was evaluated."""
    results = found(fsdp_results, "early_optimizers")
    expected = pytest.approx(alone()["loss"], rel=TOLERANCE)
    assert results["1"]["early"] == expected
    assert results["1"]["late"] == expected
    assert results["2"]["late"] == expected
