"""States in shards: saved by any number of processes, loaded by any other, whole on request, safe, in the background."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.checkpoint import CheckpointError, Contents, check_sizes, load_optimizer, load_weights, verify
from mainspring.checkpoint.names import SHARDED_MODEL_FOLDER, SHARDED_OPTIMIZER_FOLDER
from mainspring.checkpoint.sharded import read_metadata, stream_shards, whole_shards
from mainspring.cli.checkpoints.contents import optimizer, weights
from tests.distributed.worker_sharded import CASES, CHAIN, Evil, adam, main, make_evil, net, train
from tests.helpers import ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all worlds, shared by all tests."""
    folder = tmp_path_factory.mktemp("sharded")
    for case, (processes, _) in CASES.items():
        for ended in ranks.run(folder / "printed", main, case, folder, ranks=processes):
            assert ended.status == 0, f"{case}:\n{ended.text[-4000:]}"
    return folder


def facts(out: Path, name: str) -> dict[str, Any]:
    """What a world wrote down."""
    found: dict[str, Any] = torch.load(out / f"{name}.pt", weights_only=True)
    return found


def same(one: Any, other: Any, place: str = "") -> None:
    """Assert that two nested states are equal to the bit."""
    if isinstance(one, dict):
        assert sorted(map(str, one)) == sorted(map(str, other)), place
        for key in one:
            same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{place}.{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    else:
        assert one == other, place


@pytest.mark.parametrize("place", range(1, len(CHAIN)), ids=[f"{a}to{b}" for a, b in pairwise(CHAIN)])
def test_another_number_of_processes_loads_the_same_bits(place: int, out: Path) -> None:
    before, after = facts(out, f"link-{place - 1}"), facts(out, f"link-{place}")
    assert (before["world"], after["world"]) == CHAIN[place - 1 : place + 1]
    assert after["report"] == ((), ())
    same(before["saved"], after["loaded"])


def test_training_goes_on_as_in_one_process(out: Path) -> None:
    """Four processes, then two, one and three train as one does that is never interrupted."""
    model = net()
    losses = train(model, adam(model), 3 * len(CHAIN))
    chained = [loss for place in range(len(CHAIN)) for loss in facts(out, f"link-{place}")["losses"]]
    torch.testing.assert_close(torch.tensor(chained), torch.tensor(losses), rtol=1e-5, atol=1e-6)


def test_each_process_writes_its_own_shards(out: Path) -> None:
    folder = out / "link-0" / SHARDED_MODEL_FOLDER
    assert {path.name for path in folder.iterdir()} == {".metadata", *(f"__{rank}_0.distcp" for rank in range(4))}


def test_a_process_alone_reads_them_without_a_group(out: Path) -> None:
    """Tensor by tensor, or into a model and an optimizer that are whole."""
    saved = facts(out, "link-0")["saved"]
    folder = out / "link-0"
    same(saved["model"], dict(stream_shards(folder / SHARDED_MODEL_FOLDER, "model")))
    same(saved["optimizer"], whole_shards(folder / SHARDED_OPTIMIZER_FOLDER, "optimizer"))
    model = net()
    optimizer = adam(model)
    assert load_weights(model, folder).messages() == []
    assert load_optimizer(model, optimizer, folder)
    same(dict(model.state_dict()), saved["model"])
    assert model.head.weight is model.embed.weight
    assert train(model, optimizer, 3) == pytest.approx(facts(out, "link-1")["losses"], rel=1e-5)


def test_the_model_alone_can_be_read(out: Path, tmp_path: Path) -> None:
    """For an evaluation the optimizer's folder need not be there."""
    shutil.copytree(out / "link-0" / SHARDED_MODEL_FOLDER, tmp_path / SHARDED_MODEL_FOLDER)
    model = net()
    assert load_weights(model, tmp_path).messages() == []
    assert not load_optimizer(model, adam(model), tmp_path)


def test_a_part_that_was_not_saved_is_named(out: Path) -> None:
    with pytest.raises(CheckpointError, match="no state of the name 'optimizer'"):
        whole_shards(out / "link-0" / SHARDED_MODEL_FOLDER, "optimizer")


def test_the_main_process_hands_whole_states_out(out: Path) -> None:
    found = facts(out, "handed-out")
    assert found["world"] == 3
    same(found["got"], facts(out, "link-0")["saved"])


def test_a_state_by_numbers_is_handed_out_too(out: Path) -> None:
    """`optimizer.pt` of a run without shards."""
    found = facts(out, "handed-out")
    assert len(found["numbered"]) == 5
    same(found["expected"], found["numbered"])


def test_names_are_the_models_own(out: Path) -> None:
    """Whatever recomputes, compiles or shards the layers; one that is called `module` keeps its name."""
    found = facts(out, "names")
    assert found["model"] == sorted(net().state_dict())
    trained = sorted(name for name, parameter in net().named_parameters() if parameter.requires_grad)
    assert found["optimizer"] == trained


def test_the_first_form_of_fsdp(out: Path) -> None:
    found = facts(out, "first-form")
    assert found["world"] == 2
    same(found["saved"], found["loaded"])
    assert sorted(found["saved"]["model"]) == sorted(net().state_dict())
    same(found["saved"]["model"], facts(out, "first-in-second")["loaded"]["model"])
    same(found["saved"]["optimizer"]["state"], facts(out, "first-in-second")["loaded"]["optimizer"]["state"])


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_what_accelerate_writes_is_loaded(kind: str, out: Path) -> None:
    found = facts(out, f"theirs-{kind}")
    same(found["saved"], found["loaded"])


def test_accelerate_loads_what_is_written(out: Path) -> None:
    found = facts(out, "ours")
    same(found["saved"], found["loaded"])


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_what_accelerate_writes_is_loaded_by_one_process(kind: str, out: Path) -> None:
    saved = facts(out, f"theirs-{kind}")["saved"]
    model = net()
    model.unused.requires_grad_(False)
    optimizer = adam(model)
    assert load_weights(model, out / f"theirs-{kind}").messages() == []
    assert load_optimizer(model, optimizer, out / f"theirs-{kind}")
    same(saved["model"], dict(model.state_dict()))
    first = saved["optimizer"]["param_groups"][0]["params"][0]
    same(saved["optimizer"]["state"][first], optimizer.state[optimizer.param_groups[0]["params"][0]])


def test_a_disk_that_refuses_one_process_is_everybodys_error(out: Path) -> None:
    told = facts(out, "refused")["told"]
    assert len(told) == 3
    assert all(text.startswith(f"{errno.ENOSPC} ") for text in told)
    assert all("process 1 could not write its shards" in told[rank] for rank in (0, 2))
    assert not (out / "refused" / ".metadata").exists()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "__1_0.distcp is missing"),
        ("cut", "__1_0.distcp has"),
        ("shape", "back.weight"),
        ("name", "other"),
        ("model", "weights of another model"),
        ("evil", "nothing in it was executed"),
    ],
)
def test_damage_is_an_error_on_every_process(case: str, words: str, out: Path) -> None:
    told = [one[case] for one in facts(out, "damaged")["told"]]
    assert len(told) == 3
    assert all(words in text for text in told), told
    assert not (out / "canary").exists()


def test_a_background_save_holds_the_state_of_its_step(out: Path) -> None:
    """Although two more updates were done before the first byte was written."""
    found = facts(out, "background")
    assert [early for early, _ in found["every"]] == [False, False]
    same(found["saved"]["model"], dict(stream_shards(out / "checkpoint-2" / SHARDED_MODEL_FOLDER, "model")))
    same(found["saved"]["optimizer"], whole_shards(out / "checkpoint-2" / SHARDED_OPTIMIZER_FOLDER, "optimizer"))
    assert verify(out / "checkpoint-2") == ["trainer_state.json is missing"]  # which is the trainer's to write
    assert {"of-0", "of-1"} <= set(Contents.of(out / "checkpoint-2").listed or ())


def test_a_background_save_that_one_process_cannot_write_is_nobodys(out: Path) -> None:
    """Both know, nothing is put in place or left, and the next save comes about."""
    for rank, (_, outcome) in enumerate(facts(out, "background")["every"]):
        assert [name for name, _ in outcome] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"], rank
        errors = [error for _, error in outcome]
        assert (errors[0], errors[2]) == ("None", "None")
        assert str(errno.ENOSPC) in errors[1]
    assert not (out / "checkpoint-4").exists()
    assert (out / "checkpoint-5" / "manifest.json").is_file()
    assert not [path.name for path in out.iterdir() if path.name.endswith(".partial")]


def test_nobody_reads_all_shards_again_to_hash_them(out: Path) -> None:
    """Each process hashed its own, and the manifest lists them all."""
    found = facts(out, "hashed")
    shards = [f"{SHARDED_MODEL_FOLDER}/__{rank}_0.distcp" for rank in range(3)]
    assert found["listed"] == sorted([f"{SHARDED_MODEL_FOLDER}/.metadata", *shards, "trainer_state.json"])
    assert sorted(found["read"]) == [".metadata", "trainer_state.json"]


def test_the_manifest_knows_the_shards(out: Path, tmp_path: Path) -> None:
    """One that is missing, or changed in one byte, makes the checkpoint invalid."""
    whole = tmp_path / "checkpoint-1"
    shutil.copytree(out / "hashed", whole)
    assert verify(whole) == []
    shard = whole / SHARDED_MODEL_FOLDER / "__2_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert verify(whole) == [f"{SHARDED_MODEL_FOLDER}/__2_0.distcp is not what was written: its hash differs"]
    shard.unlink()
    assert check_sizes(whole) == [f"{SHARDED_MODEL_FOLDER}/__2_0.distcp is missing"]


def test_two_checkpoints_in_shards_are_compared(out: Path) -> None:
    """Tensor by tensor, whoever wrote how many shards."""
    one, other = out / "link-0", out / "link-1"
    assert weights(one).keys() == set(net().state_dict())
    same(weights(one)["back.weight"](), facts(out, "link-0")["saved"]["model"]["back.weight"])
    assert "state.back.weight.exp_avg" in optimizer(one)
    assert not torch.equal(weights(one)["back.weight"](), weights(other)["back.weight"]())


def test_metadata_that_would_execute_something_is_refused(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / SHARDED_MODEL_FOLDER
    shutil.copytree(out / "link-0" / SHARDED_MODEL_FOLDER, folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "canary")))
    for load in (lambda: read_metadata(folder), lambda: load_weights(net(), tmp_path)):
        with pytest.raises(CheckpointError, match="mkdir"):
            load()
    assert not (tmp_path / "canary").exists()


def test_a_shard_that_would_execute_something_is_refused(out: Path, tmp_path: Path) -> None:
    """What is no tensor lies pickled in the shards."""
    folder = tmp_path / SHARDED_OPTIMIZER_FOLDER
    shutil.copytree(out / "link-0" / SHARDED_OPTIMIZER_FOLDER, folder)
    make_evil(folder, tmp_path / "canary")
    model = net()
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_optimizer(model, adam(model), tmp_path)
    assert not (tmp_path / "canary").exists()


def test_metadata_that_points_out_of_its_folder_is_refused(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / SHARDED_MODEL_FOLDER
    shutil.copytree(out / "link-0" / SHARDED_MODEL_FOLDER, folder)
    content = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(content.replace(b"__1_0.distcp", b"../_0.distcp"))
    with pytest.raises(CheckpointError, match="not to be had beside it"):
        read_metadata(folder)


def without_chunks(metadata: Any) -> None:
    del metadata.state_dict_metadata["model.back.weight"].chunks[0]  # the last may be empty


def larger_than_its_chunks(metadata: Any) -> None:
    kind = metadata.state_dict_metadata["model.back.weight"]
    kind.size = torch.Size([2 * kind.size[0], *kind.size[1:]])


def without_a_place(metadata: Any) -> None:
    del metadata.storage_data[next(index for index in metadata.storage_data if index.fqn == "model.back.weight")]


def without_places(metadata: Any) -> None:
    metadata.storage_data = None


def before_the_beginning(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).offset = -5


def for_another(metadata: Any) -> None:
    places = metadata.storage_data
    one, other = (
        next(index for index in places if index.fqn == f"model.{name}") for name in ("back.weight", "back.bias")
    )
    places[one], places[other] = places[other], places[one]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_chunks, "has parts of model.back.weight only"),
        (larger_than_its_chunks, "has parts of model.back.weight only"),
        (without_a_place, "does not say where model.back.weight is"),
        (without_places, "does not say where"),
        (before_the_beginning, "not to be had beside it"),
        (for_another, "does not hold what the list of shards says it does of model.back"),
    ],
)
def test_metadata_that_is_not_all_there_is_refused(
    change: Callable[[Any], None], words: str, out: Path, tmp_path: Path
) -> None:
    """What no shard holds would keep the values that it had."""
    folder = tmp_path / SHARDED_MODEL_FOLDER
    shutil.copytree(out / "link-0" / SHARDED_MODEL_FOLDER, folder)
    metadata = read_metadata(folder)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=words):
        load_weights(net(), tmp_path)
