"""Checkpoints of sharded models: whole or in shards, each read by every other way to train, on any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.fsdp_cases import ENGINES
from tests.distributed.fsdp_read import TOLERANCE, alone, found, furthest, weights_of
from tests.distributed.fsdp_runs import SAVED, logged, model, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PAIRS = [(saved, read) for saved in ENGINES for read in ENGINES]
SAME = {("whole", "shards"), ("shards", "whole"), ("first_whole", "first_shards"), ("first_shards", "first_whole")}
"""Pairs whose processes compute the same sums in the same order."""

WRAPPERS = {"ddp": "DistributedDataParallel", "first_whole": "FullyShardedDataParallel"}
WRAPPERS["first_shards"] = WRAPPERS["first_whole"]


@pytest.mark.parametrize(("saved", "read"), PAIRS, ids=lambda name: name)
def test_every_way_goes_on_from_every_other(saved: str, read: str, fsdp_results: Path) -> None:
    """The uninterrupted run's losses and weights; its bits where the processes compute as they did."""
    facts = found(fsdp_results, f"{saved}-{read}")
    assert facts["wrapper"] == WRAPPERS.get(read, "FSDPGPT2LMHeadModel")
    assert facts["world_size"] == 2
    assert facts["losses"] == pytest.approx(alone()["loss"], rel=TOLERANCE)
    apart = furthest(weights_of(fsdp_results, f"{saved}-{read}"), weights_of(fsdp_results, f"saved-{saved}"))
    assert apart == 0.0 if saved == read or (saved, read) in SAME else apart < 1e-5


@pytest.mark.parametrize(("name", "work", "size"), [("fewer", "two", 2), ("fewest", "one", 1)])
def test_fewer_processes_go_on(name: str, work: str, size: int, fsdp_results: Path) -> None:
    """Four saved shards, two went on and saved theirs, and one went on from those: the same losses."""
    facts = found(fsdp_results, name, work)
    assert facts["world_size"] == size
    assert facts["losses"] == pytest.approx(alone()["loss"], rel=TOLERANCE)


def test_copies_go_on_bit_for_bit(fsdp_results: Path) -> None:
    """Sharded over two, with a copy on two others."""
    apart = furthest(weights_of(fsdp_results, "copies_again"), weights_of(fsdp_results, "copies"))
    assert apart == 0.0


@pytest.mark.parametrize("saved", [name for name in ENGINES if name != "ddp"])
def test_a_process_alone_goes_on(saved: str, fsdp_results: Path, tmp_path: Path) -> None:
    """Without any launcher, from whole states by the names of parameters and from shards."""
    run = trainer(tmp_path)
    run.train(resume_from_checkpoint=str(fsdp_results / f"saved-{saved}" / f"checkpoint-{SAVED}"))
    assert logged(run) == pytest.approx(alone()["loss"], rel=TOLERANCE)
    assert furthest(run.model.state_dict(), weights_of(fsdp_results, f"saved-{saved}")) < 5e-5


@pytest.mark.parametrize("saved", ["whole", "first_whole"])
def test_whole_states_have_the_names_of_the_reference(saved: str, fsdp_results: Path) -> None:
    """The weights as `from_pretrained` opens them; the optimizer under the name that FSDP's has."""
    folder = fsdp_results / f"saved-{saved}" / f"checkpoint-{SAVED}"
    assert (folder / "optimizer.bin").is_file()
    assert not (folder / "optimizer.pt").exists()
    assert load_file(folder / "model.safetensors").keys() <= model().state_dict().keys()
    type(model()).from_pretrained(folder)


@pytest.mark.parametrize("saved", ["shards", "first_shards"])
def test_shards_lie_where_the_reference_has_them(saved: str, fsdp_results: Path) -> None:
    """Each process wrote its own; nothing whole is there, but what describes the model."""
    folder = fsdp_results / f"saved-{saved}" / f"checkpoint-{SAVED}"
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        assert (folder / name / ".metadata").is_file()
        assert len(list((folder / name).glob("*.distcp"))) == 2
    assert not (folder / "model.safetensors").exists()
    assert (folder / "config.json").is_file()


def test_the_references_file_of_weights_is_read(fsdp_results: Path) -> None:
    """`pytorch_model_fsdp.bin`, by sharded models of both versions and by DDP."""
    results = found(fsdp_results, "reference_files")
    for name in ("ddp", "2", "1"):
        assert results[name] == pytest.approx(alone()["loss"], rel=TOLERANCE)


@pytest.mark.parametrize("way", ENGINES)
def test_the_best_model_is_loaded_back(way: str, fsdp_results: Path) -> None:
    """It evaluates as it did then, and not as the last one does."""
    step, metric, loss = found(fsdp_results, "best_models")[way]
    assert step < 4
    assert loss == pytest.approx(metric, rel=1e-6)


@pytest.mark.parametrize("version", ["1", "2"])
def test_save_model_is_whole_although_checkpoints_are_not(version: str, fsdp_results: Path) -> None:
    """`from_pretrained` opens it, as the class that it is."""
    saved = found(fsdp_results, "saved_models")[version]
    assert saved["classes"] == ["GPT2LMHeadModel"]
    assert saved["there"] == pytest.approx(saved["here"], rel=1e-6)


@pytest.mark.parametrize("version", ["1", "2"])
def test_only_the_model_is_saved_where_asked(version: str, fsdp_results: Path) -> None:
    """No optimizer."""
    files = found(fsdp_results, "only_models")[version]
    assert "model.safetensors" in files
    assert "optimizer.bin" not in files


@pytest.mark.parametrize("way", ENGINES)
def test_adapters_go_on(way: str, fsdp_results: Path) -> None:
    """LoRA under each: the same losses as under DDP, before and after a resume; saved as adapters or in shards."""
    pytest.importorskip("peft")
    results = found(fsdp_results, "adapters")
    own, plain = results[way], results["ddp"]
    assert own["losses"] == pytest.approx(plain["losses"], rel=TOLERANCE)
    assert own["again"] == own["losses"]
    assert ("adapter_model.safetensors" in own["files"]) is not way.endswith("shards")
