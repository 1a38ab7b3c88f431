"""Sharded models in use: evaluated, generated with, loaded on one process only, stopped in the middle, read by others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.fsdp_read import TOLERANCE, alone, found

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

VERSIONS = ["1", "2"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("probe", ["evaluations", "frozen", "half_updates", "generations", "later_trainers"])
def test_as_with_ddp(probe: str, version: str, fsdp_results: Path) -> None:
    """Evaluations, generation of texts of different lengths, frozen layers, half an update, a model that goes on."""
    for rank in range(2):
        results = found(fsdp_results, probe, rank=rank)
        assert results[version] == pytest.approx(results["ddp"], rel=5 * TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_evaluations_in_half_precision(version: str, fsdp_results: Path) -> None:
    """The model is cast for them, and trained in fp32 between."""
    results = found(fsdp_results, "half_evaluations")
    assert results[version] == pytest.approx(results["ddp"], rel=1e-4)


def test_flat_parameters_forget_half_an_update(fsdp_results: Path) -> None:
    """Their gradients are not those of the model's own parameters."""
    results = found(fsdp_results, "half_updates")
    assert results["flat"] == pytest.approx(results["ddp"], rel=5 * TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_first_process_has_the_weights(version: str, fsdp_results: Path) -> None:
    """What the others were built with, or that they were not, does not matter; tied weights stay tied."""
    expected = pytest.approx(alone()["loss"], rel=TOLERANCE)
    assert found(fsdp_results, "unlike_models")[version] == expected
    for rank in range(2):
        empty = found(fsdp_results, "empty_models", rank=rank)[version]
        assert empty["losses"] == expected
        assert empty["tied"]


def test_the_first_version_may_be_told_not_to_synchronise(fsdp_results: Path) -> None:
    """`sync_module_states=False` then trains a model that is put together from several."""
    assert found(fsdp_results, "unsynchronised")["losses"] != pytest.approx(alone()["loss"], rel=1e-2)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_first_process_has_the_buffers(version: str, fsdp_results: Path) -> None:
    """Those too that no state dict has, as the frequencies of rotary embeddings."""
    plain, own = found(fsdp_results, "unlike_buffers")[version]
    assert own == pytest.approx(plain, rel=TOLERANCE)


def test_from_pretrained_may_load_on_the_first_process_only(fsdp_results: Path) -> None:
    """With cpu_ram_efficient_loading, of which transformers is told by its variable."""
    for rank in range(2):
        results = found(fsdp_results, "pretrained", rank=rank)
        assert results["variable"] == "true"
        assert results["losses"] == pytest.approx(alone()["loss"], rel=TOLERANCE)


@pytest.mark.parametrize("rank", range(2))
def test_no_weights_anywhere_is_an_error_everywhere(rank: int, fsdp_results: Path) -> None:
    """Nobody waits for a process that has given up, and nothing is trained from what lay in memory."""
    said = found(fsdp_results, "no_weights", rank=rank)
    assert said["type"] == "RuntimeError"
    assert "has no weights" in said["text"]


@pytest.mark.parametrize("version", VERSIONS)
def test_overflows_are_agreed_on(version: str, fsdp_results: Path) -> None:
    """A piece that overflows on one process skips the step on all; when all do, no weight is spoiled."""
    for rank in range(2):
        one, every = found(fsdp_results, "overflows", rank=rank)[version]
        assert one["skipped"] == [False, True, False, False]
        assert every["skipped"] == [True] * 4
        assert min(one["losses"] + every["losses"]) > 3.0  # a loss that is no number is logged as 0


WRAPPERS = {"ddp": "DistributedDataParallel", "1": "FullyShardedDataParallel", "2": "FSDPGPT2LMHeadModel"}


@pytest.mark.parametrize("way", WRAPPERS)
def test_fp16_scales_losses_as_one_process_does_and_goes_on_exactly(way: str, fsdp_results: Path) -> None:
    one = alone(fp16=True)
    for rank in range(2):
        results = found(fsdp_results, "scaled", rank=rank)[way]
        assert (results["world_size"], results["wrapper"]) == (2, WRAPPERS[way])
        assert results["scaler"] == ("AgreeingScaler" if way == "1" else "GradScaler")
        assert results["formats"] == ["torch.float16"]
        assert results["losses"] == pytest.approx(one["loss"], rel=1e-3)
        assert results["norms"] == pytest.approx(one["grad_norm"], rel=1e-2)
        assert results["again"] == results["losses"]


@pytest.mark.parametrize("way", WRAPPERS)
@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ("option", "optimizer_in_backward=True"),
        ("layerwise", "optim='galore_adamw_layerwise'"),
        ("lomo", "optim='lomo'"),
    ],
)
def test_optimizers_inside_the_backward_pass_are_refused_at_construction(
    asked: str, option: str, way: str, fsdp_results: Path
) -> None:
    why = "gradients are complete only when they have been summed over processes or devices, after the backward pass"
    for rank in range(2):
        error = found(fsdp_results, "inside", rank=rank)[way][asked]
        assert error["type"] == "OptionError"
        assert error["text"].startswith(f"{option}: {why}")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_accelerator_knows(version: str, fsdp_results: Path) -> None:
    """What scripts and TRL read of it, and do with it."""
    results = found(fsdp_results, "accelerators")
    own, plain = results[version], results["ddp"]
    assert own["type"] == "FSDP"
    assert own["plugin"]
    assert own["unwraps"]
    assert own["second"]
    assert own["shape"] == plain["shape"]
    assert own["names"] == plain["names"]
    assert own["same"]
    assert own["second_version"] is (version == "2")
    assert own["operations"] == plain["operations"] > 0
    assert own["loss"] == pytest.approx(plain["loss"], rel=TOLERANCE)
    assert found(fsdp_results, "accelerators", rank=1)[version]["names"] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_each_training_shards_a_new_model(version: str, fsdp_results: Path) -> None:
    """`model_init`, twice."""
    once, again = found(fsdp_results, "new_models")[version]
    assert once == again == pytest.approx(alone()["loss"], rel=TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_models_of_no_library_are_sharded(version: str, fsdp_results: Path) -> None:
    """As one unit, with checkpoints like any."""
    results = found(fsdp_results, "other_models")
    plain, _ = results["ddp"]
    own, again = results[version]
    assert own == pytest.approx(plain, rel=TOLERANCE)
    assert again == own
