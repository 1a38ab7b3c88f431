"""A checkpoint of any form becomes one model, whole or not at all, in little memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mainspring.checkpoint import Facts, load_weights, save_model, seal
from mainspring.checkpoint.export import export, files
from mainspring.errors import CheckpointError
from tests.checkpoint.zero.written import parameters, write_stage_2, write_stage_3
from tests.helpers import models

STATE = {
    "b.weight": torch.linspace(-3, 3, 35).view(5, 7),
    "a": torch.arange(6, dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
    "count": torch.tensor(3),
    "empty": torch.empty(0, 2),
    "ü": torch.ones(2, 3).half(),
}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def plain(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint of one safetensors file."""
    folder.mkdir(parents=True)
    save_file(STATE if state is None else state, folder / "model.safetensors", {"format": "pt"})
    return folder


def sealed(folder: Path) -> Path:
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    seal(folder, Facts(run_id="mine", step=4, samples=4))
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is read ----


def test_the_file_is_the_librarys_own(tmp_path: Path) -> None:
    """To the byte, so that whoever reads such files reads it."""
    export(plain(tmp_path / "in"), tmp_path / "out")
    save_file(STATE, tmp_path / "theirs.safetensors", {"format": "pt"})
    found, theirs = (
        (tmp_path / "out" / "model.safetensors").read_bytes(),
        (tmp_path / "theirs.safetensors").read_bytes(),
    )
    assert json.loads(found[8 : 8 + int.from_bytes(found[:8], "little")]) == json.loads(
        theirs[8 : 8 + int.from_bytes(theirs[:8], "little")]
    )
    assert found[8 + int.from_bytes(found[:8], "little") :] == theirs[8 + int.from_bytes(theirs[:8], "little") :]


@pytest.mark.parametrize("form", ["pytorch_model.bin", "pytorch_model_fsdp.bin"])
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_become_one(form: str, modern: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save(STATE, tmp_path / "in" / form, _use_new_zipfile_serialization=modern)
    export(tmp_path / "in", tmp_path / "out")
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), STATE)


def test_an_index_is_followed_and_wrappers_names_dropped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    places = {"module.a": "one.bin", "module.b": "two.bin"}
    for name, file in places.items():
        torch.save({name: torch.ones(3)}, tmp_path / "in" / file)
    (tmp_path / "in" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert export(tmp_path / "in", tmp_path / "out").form == "2 files with an index"
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), {"a": torch.ones(3), "b": torch.ones(3)})


def test_deepspeeds_numbers_come_before_the_gathered_ones(tmp_path: Path) -> None:
    """Beside them a trainer saves the weights in what the model computes in."""
    weights = parameters((4, 3), (5,))
    write_stage_3(tmp_path / "in", [weights])
    save_file({name: value.bfloat16() for name, value in weights.items()}, tmp_path / "in" / "model.safetensors")
    export(tmp_path / "in", tmp_path / "out")
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), weights)


@pytest.mark.parametrize("name", ["out", "out.safetensors", "out.bin"])
def test_tied_weights_are_written_once_and_named_twice(name: str, tmp_path: Path) -> None:
    write_stage_2(tmp_path / "in", [parameters((4, 3), (5,))], shared_params={"head": "p0"})
    assert export(tmp_path / "in", tmp_path / name).tensors == 2
    if name == "out.bin":
        found = torch.load(tmp_path / name)
        assert found["head"].data_ptr() == found["p0"].data_ptr()
        return
    with safe_open(tmp_path / name / "model.safetensors" if name == "out" else tmp_path / name, "pt") as file:
        assert sorted(file.keys()) == ["p0", "p1"]
        assert file.metadata() == {"format": "pt", "head": "p0"}


def test_weights_that_share_memory_in_a_file_of_torch_are_written_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tied, rows = torch.randn(4, 3), torch.randn(6)
    torch.save({"a": tied, "again": tied, "low": rows[:3], "high": rows[3:]}, tmp_path / "in" / "pytorch_model.bin")
    export(tmp_path / "in", tmp_path / "out")
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), {"a": tied, "low": rows[:3], "high": rows[3:]})


def test_its_own_tied_weights_come_back(tmp_path: Path) -> None:
    """What we wrote for a plain module, exported, loads into it again without anything missing."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    save_model(model, tmp_path / "in")
    for name, limit in (("one", None), ("many", 20)):
        export(tmp_path / "in", tmp_path / name, max_shard_size=limit)
        other = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
        other["b"].weight = other["a"].weight
        assert load_weights(other, tmp_path / name).messages() == []
        noted = []
        for path in (tmp_path / name).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                if "b.weight" in file.metadata():
                    noted.append((file.metadata()["b.weight"], "a.weight" in file.keys()))  # noqa: SIM118
        assert noted == [("a.weight", True)]
        assert_equal(other.state_dict(), model.state_dict())


def test_a_tensor_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"epoch in .*pytorch_model.bin is not a tensor"):
        export(tmp_path / "in", tmp_path / "out")


def test_a_type_that_safetensors_does_not_know_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save(
        {"a": torch.ones(1), "wide": torch.ones(1, dtype=torch.complex128)}, tmp_path / "in" / "pytorch_model.bin"
    )
    with pytest.raises(CheckpointError, match="wide has values of type torch.complex128"):
        export(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# ---- what is written ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("piece", [1 << 20, 3])
def test_numbers_are_converted_and_all_else_is_not(
    dtype: torch.dtype, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mainspring.checkpoint.stored.PIECE", piece)
    export(plain(tmp_path / "in"), tmp_path / "out", dtype=dtype)
    wanted = {name: value.to(dtype) if value.is_floating_point() else value for name, value in STATE.items()}
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), wanted)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_file_of_torch_is_one_that_torch_loads(dtype: torch.dtype | None, tmp_path: Path) -> None:
    done = export(plain(tmp_path / "in"), tmp_path / "deep" / "model.bin", dtype=dtype)
    wanted = {name: value.to(dtype) if dtype and value.is_floating_point() else value for name, value in STATE.items()}
    assert_equal(torch.load(tmp_path / "deep" / "model.bin"), wanted)
    assert_equal(torch.load(tmp_path / "deep" / "model.bin", mmap=True), wanted)
    assert done.size == sum(value.nbytes for value in wanted.values())


def test_a_large_model_is_divided_as_the_reference_does(tmp_path: Path) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {f"layer{index}": torch.full((index % 5 + 1, 8), float(index)) for index in range(12)}
    state["huge"] = torch.zeros(40, 8)
    export(plain(tmp_path / "in", state), tmp_path / "out", max_shard_size=400)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    ordered = {name: state[name] for name in load_file(tmp_path / "in" / "model.safetensors")}
    theirs = split_torch_state_dict_into_shards(
        ordered, filename_pattern="model{suffix}.safetensors", max_shard_size=400
    )
    assert index["metadata"]["total_size"] == theirs.metadata["total_size"]
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    found = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        part = load_file(path)
        assert sum(value.nbytes for value in part.values()) <= 400 or list(part) == ["huge"]
        assert all(index["weight_map"][name] == path.name for name in part)
        found |= part
    assert_equal(found, state)


def test_what_belongs_to_the_model_goes_with_it(tmp_path: Path) -> None:
    source = plain(tmp_path / "in")
    own = ["config.json", "generation_config.json", "tokenizer.json", "vocab.txt", "spiece.model", "modeling_mine.py"]
    not_own = ["optimizer.pt", "training_args.bin", "progress.json", "zero_to_fp32.py", "rng_state.pth", "notes.log"]
    for name in (*own, *not_own):
        (source / name).write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("x")
    sealed(source)
    (source / "merges.txt").write_text("put there by somebody else")
    export(source, tmp_path / "out")
    assert sorted(everything(tmp_path / "out")) == sorted(
        [*own, "additional_chat_templates/tools.jinja", "model.safetensors"]
    )


def test_the_configuration_names_the_type_that_was_asked_for(tmp_path: Path) -> None:
    source = plain(tmp_path / "in")
    (source / "config.json").write_text('{"dtype": "float32", "hidden_size": 3}')
    export(source, tmp_path / "out", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"dtype": "bfloat16", "hidden_size": 3}
    export(source, tmp_path / "same")
    assert (tmp_path / "same" / "config.json").read_text() == (source / "config.json").read_text()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_transformers_opens_it(dtype: torch.dtype | None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = models.tiny_gpt2()
    save_model(model, tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out", dtype=dtype, max_shard_size=4000)
    found, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_equal(found.state_dict(), {k: v.to(dtype or v.dtype) for k, v in model.state_dict().items()})


def test_adapters_are_exported_and_not_the_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def base() -> Any:
        torch.manual_seed(0)
        return models.tiny_gpt2()

    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    model = peft.get_peft_model(base(), config)
    model.add_adapter("second", config)
    model.save_pretrained(tmp_path / "in")
    done = export(tmp_path / "in", tmp_path / "out", dtype=torch.float32)
    assert done.adapter
    assert sorted(everything(tmp_path / "out")) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "second/adapter_config.json",
        "second/adapter_model.safetensors",
    ]  # fmt: skip
    found = peft.PeftModel.from_pretrained(base(), tmp_path / "out")
    found.load_adapter(tmp_path / "out" / "second", "second")
    assert_equal(found.state_dict(), model.state_dict())
    with pytest.raises(CheckpointError, match="2 adapters do not go into one file"):
        export(tmp_path / "in", tmp_path / "adapter.safetensors")


def test_an_adapter_without_its_weights_is_refused(tmp_path: Path) -> None:
    write_stage_3(tmp_path / "in", [parameters((2,))])
    (tmp_path / "in" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="load_state_dict_from_zero_checkpoint"):
        export(tmp_path / "in", tmp_path / "out")


# ---- whole, or not at all ----


def test_a_checkpoint_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    source = sealed(plain(tmp_path / "in"))
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (source / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="model.safetensors is not what was written: its hash differs"):
        export(source, tmp_path / "out")
    (source / "manifest.json").unlink()
    (source / "progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match="manifest.json is missing beside progress.json"):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out", "out.bin", "out.safetensors"])
@pytest.mark.parametrize("there", [True, False])
def test_an_export_that_fails_leaves_what_was_there(
    name: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plain(tmp_path / "in")
    if there:
        export(source, tmp_path / name)
    before = everything(tmp_path)
    real = files._write

    def fails(file: Any, value: Any, dtype: Any) -> None:
        real(file, value, dtype)
        if value.shape == (5, 7):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write", fails)
    with pytest.raises(OSError, match="No space left"):
        export(source, tmp_path / name, dtype=torch.float64, force=there)
    assert everything(tmp_path) == before


def test_a_folder_whose_place_cannot_be_taken_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = plain(tmp_path / "in")
    export(source, tmp_path / "out")
    before = everything(tmp_path)

    def fails(_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mainspring.checkpoint.export.exporting.Stage.commit", fails)
    with pytest.raises(OSError, match="Input/output error"):
        export(source, tmp_path / "out", dtype=torch.float64, force=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["out", "out.bin", "out.safetensors"])
def test_what_is_there_is_replaced_only_when_told_so(name: str, tmp_path: Path) -> None:
    source = plain(tmp_path / "in")
    export(source, tmp_path / name, max_shard_size=None if "." in name else 50)
    before = everything(tmp_path)
    with pytest.raises(FileExistsError, match="--force replaces it"):
        export(source, tmp_path / name)
    assert everything(tmp_path) == before
    export(source, tmp_path / name, force=True)
    export(source, tmp_path / f"new{name}")
    if name == "out":
        assert everything(tmp_path / name) == everything(tmp_path / f"new{name}")
    else:
        assert load(tmp_path / name).keys() == load(tmp_path / f"new{name}").keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", name, f"new{name}"])


def load(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path) if path.suffix == ".safetensors" else torch.load(path))


@pytest.mark.parametrize("stranger", ["thesis.tex", "sub/notes.md.bak", "optimizer.pt", "trainer_state.json"])
def test_a_folder_that_holds_more_than_an_export_is_never_replaced(stranger: str, tmp_path: Path) -> None:
    source = plain(tmp_path / "in")
    export(source, tmp_path / "out")
    (tmp_path / "out" / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / stranger).write_text("mine")
    with pytest.raises(FileExistsError, match=stranger):
        export(source, tmp_path / "out", force=True)
    assert (tmp_path / "out" / stranger).read_text() == "mine"


def test_a_checkpoint_does_not_replace_itself(tmp_path: Path) -> None:
    source = plain(tmp_path / "in")
    for target in (source, tmp_path):
        with pytest.raises(FileExistsError, match="holds the checkpoint"):
            export(source, target, force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is no folder"):
        export(source, tmp_path / "file", force=True)
    assert_equal(load_file(source / "model.safetensors"), STATE)


def test_it_is_asked_whether_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> Any:
        return shutil._ntuple_diskusage(10, 10, 0)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(OSError, match="No space left on device"):
        export(plain(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- memory ----

_PEAKS = """
import json, sys
from pathlib import Path

import torch
from mainspring.checkpoint.export import export

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

root = Path(sys.argv[1])
export(root / "small", root / "one", dtype=torch.bfloat16)
export(root / "small", root / "one.bin", dtype=torch.bfloat16)
peaks = {}
for form in ("zero2", "zero3", "safetensors", "bin"):
    for out, dtype in (("", torch.bfloat16), (".bin", None)):
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        export(root / form, root / f"{form}-out{out}", dtype=dtype)
        peaks[form + out] = status("VmHWM") - before
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say how much memory was used")
def test_memory_stays_below_the_largest_tensor(tmp_path: Path) -> None:
    """The most that a process had at any time in a form, beyond what it had before: of a model of 192 MB in tensors of 24."""
    weights = {f"p{index}": torch.zeros(6_000_000) for index in range(8)}
    write_stage_2(tmp_path / "zero2", [weights])
    write_stage_3(tmp_path / "zero3", [weights])
    plain(tmp_path / "safetensors", weights)
    (tmp_path / "bin").mkdir()
    torch.save(weights, tmp_path / "bin" / "pytorch_model.bin")
    write_stage_3(tmp_path / "small", [parameters((9,))])
    done = subprocess.run([sys.executable, "-c", _PEAKS, str(tmp_path)], check=True, capture_output=True, text=True)
    peaks = json.loads(done.stdout)
    assert len(peaks) == 8
    assert max(peaks.values()) < 24_000_000, peaks
