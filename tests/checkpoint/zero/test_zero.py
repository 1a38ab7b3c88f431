"""What is read of DeepSpeed's checkpoints, and what is refused; the real engine's are in `tests/deepspeed`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring.checkpoint import get_fp32_state_dict_from_zero_checkpoint, load_state_dict_from_zero_checkpoint
from mainspring.checkpoint.zero import zero_weights
from mainspring.errors import CheckpointError
from tests.checkpoint import payloads
from tests.checkpoint.zero.written import begin, model_file, parameters, write_stage_2, write_stage_3

GROUPS = [parameters((3, 5), (7,), ()), {f"q{name}": value for name, value in parameters((4, 2), (1,)).items()}]
EVERY = {name: value for group in GROUPS for name, value in group.items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_any_number_of_processes_gives_the_same_weights(processes: int, tmp_path: Path) -> None:
    write_stage_2(tmp_path / "two", GROUPS, processes)
    write_stage_3(tmp_path / "three", GROUPS, processes)
    assert_equal(get_fp32_state_dict_from_zero_checkpoint(tmp_path / "two"), EVERY)
    assert_equal(get_fp32_state_dict_from_zero_checkpoint(tmp_path / "three"), EVERY)


@pytest.mark.parametrize("on_nvme", [(0,), (1,), (0, 1)])
def test_numbers_from_nvme_are_found_by_their_length(on_nvme: tuple[int, ...], tmp_path: Path) -> None:
    large = [parameters((200, 100), (7,)), {f"q{name}": value for name, value in parameters((9000,)).items()}]
    write_stage_3(tmp_path, large, on_nvme=on_nvme)
    wanted = {name: value for group in large for name, value in group.items()}
    assert_equal(get_fp32_state_dict_from_zero_checkpoint(tmp_path), wanted)


def test_numbers_from_nvme_that_could_be_of_either_group_are_refused(tmp_path: Path) -> None:
    write_stage_3(tmp_path, [{"a": torch.randn(500)}, {"b": torch.randn(500)}], on_nvme=(0, 1))
    with pytest.raises(CheckpointError, match="several files from NVMe"):
        get_fp32_state_dict_from_zero_checkpoint(tmp_path)


def test_numbers_from_nvme_that_are_gone_are_missed(tmp_path: Path) -> None:
    write_stage_3(tmp_path, GROUPS, on_nvme=(0,))
    for file in tmp_path.glob("*/offloaded_tensors/rank01/0_*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="lacks a file of the optimizer's numbers that were on NVMe"):
        get_fp32_state_dict_from_zero_checkpoint(tmp_path)


def test_gaps_between_parameters_are_left_out(tmp_path: Path) -> None:
    write_stage_2(tmp_path, [{"a": torch.arange(3.0), "gap": torch.full((2,), float("nan")), "b": torch.arange(4.0)}])
    place = tmp_path / "global_step1"
    shapes = [{"a": torch.Size([3]), "b": torch.Size([4])}]
    torch.save(model_file(shapes, {}), place / "mp_rank_00_model_states.pt")
    for file in place.glob("*_optim_states.pt"):
        content = torch.load(file)
        content["optimizer_state_dict"]["param_alignment_paddings"] = [[2, 0]]
        torch.save(content, file)
    found = get_fp32_state_dict_from_zero_checkpoint(tmp_path)
    assert_equal(found, {"a": torch.arange(3.0), "b": torch.arange(4.0)})


def test_the_tag_chooses_the_folder(tmp_path: Path) -> None:
    write_stage_2(tmp_path, GROUPS)
    (tmp_path / "global_step1").rename(tmp_path / "mine")
    assert_equal(get_fp32_state_dict_from_zero_checkpoint(tmp_path, "mine"), EVERY)
    with pytest.raises(CheckpointError, match="global_step1 does not exist"):
        get_fp32_state_dict_from_zero_checkpoint(tmp_path)


@pytest.mark.parametrize("tag", ["..", "../other", "/tmp", "a/b", ""])
def test_a_tag_is_no_way_out_of_the_checkpoint(tag: str, tmp_path: Path) -> None:
    write_stage_2(tmp_path / "in" / "other", GROUPS)
    (tmp_path / "in" / "latest").write_text(tag)
    for given in (None, tag):
        with pytest.raises(CheckpointError, match="is not the name of a folder"):
            zero_weights(tmp_path / "in", given)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mp_rank_01_model_states.pt", "tensor parallel"),
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor parallel"),
        ("layer_03-model_states.pt", "stages of a pipeline, or of experts"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "stages of a pipeline, or of experts"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "stages of a pipeline, or of experts"),
        ("zero_pp_rank_3_mp_rank_00_optim_states.pt", "lacks what process 2 wrote"),
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "files of two checkpoints"),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", "files of two checkpoints"),
        ("zero_pp_rank_2_mp_rank_00_optim_states.pt", "3 processes wrote of the optimizer, and there were 2"),
    ],
)
def test_other_divisions_and_leftovers_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    write_stage_2(tmp_path, GROUPS)
    place = tmp_path / "global_step1"
    (place / name).write_bytes((place / "zero_pp_rank_0_mp_rank_00_optim_states.pt").read_bytes())
    with pytest.raises(CheckpointError, match=reason):
        zero_weights(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(("shape", "reason"), [((3, 6), "fewer values|missing"), ((1, 5), "too many")])
def test_other_shapes_than_there_are_values_are_refused(
    stage: int, shape: tuple[int, ...], reason: str, tmp_path: Path
) -> None:
    (write_stage_2 if stage == 2 else write_stage_3)(tmp_path, GROUPS)
    for file in (tmp_path / "global_step1").glob("*_model_states.pt"):
        content = torch.load(file)
        content["param_shapes"][0]["p0"] = torch.Size(shape)
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=reason):
        zero_weights(tmp_path)


def test_experts_are_refused(tmp_path: Path) -> None:
    write_stage_2(tmp_path, GROUPS, ds_autoep_layers=[{"num_experts": 2}])
    with pytest.raises(CheckpointError, match="a model of experts"):
        zero_weights(tmp_path)


def test_without_the_optimizers_files_nothing_is_made_up(tmp_path: Path) -> None:
    """The model's file has parameters, in what the model computes in: those are not the weights that were asked for."""
    write_stage_2(tmp_path, GROUPS)
    for file in (tmp_path / "global_step1").glob("*_optim_states.pt"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"\*_optim_states.pt"):
        zero_weights(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no file 'latest'"):
        zero_weights(tmp_path)
    begin(tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint of DeepSpeed's"):
        zero_weights(tmp_path)


@pytest.mark.parametrize("content", [[1], {"module": {}}, {"module": {"a": 1}, "buffer_names": []}, {}], ids=repr)
def test_other_content_is_refused_in_words(content: Any, tmp_path: Path) -> None:
    place = begin(tmp_path)
    torch.save(content, place / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"global_step1"):
        zero_weights(tmp_path)


@pytest.mark.parametrize("payload", payloads.PAYLOADS, ids=lambda payload: payload.__name__)
@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_nothing_in_one_is_executed(payload: Any, name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    write_stage_2(tmp_path / "in", GROUPS)
    payloads.write_zip(payload(canary), tmp_path / "in" / "global_step1" / name)
    with pytest.raises(CheckpointError, match=f"{name} was refused, and nothing in it was executed"):
        zero_weights(tmp_path / "in")
    assert not canary.exists()


def test_a_second_name_of_what_was_left_out_is_left_out(tmp_path: Path) -> None:
    write_stage_2(tmp_path, GROUPS, shared_params={"again": "p0", "other": "frozen"})
    assert zero_weights(tmp_path).aliases == {"again": "p0"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p0 = nn.Parameter(torch.zeros(3, 5))
        self.p1 = nn.Parameter(torch.zeros(7, dtype=torch.bfloat16))
        self.again = self.p0
        self.own = nn.Parameter(torch.zeros(2))


def test_a_model_is_loaded_in_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the types that it has; what does not match is said."""
    write_stage_2(tmp_path, GROUPS, shared_params={"again": "p0"})
    model = Tied()
    before = dict(model.named_parameters())
    assert load_state_dict_from_zero_checkpoint(model, tmp_path) is model
    assert all(value is before[name] for name, value in model.named_parameters())
    assert torch.equal(model.again, EVERY["p0"])
    assert torch.equal(model.p1, EVERY["p1"].bfloat16())
    assert model.own.tolist() == [0, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "the checkpoint lacks 1 tensor(s): own",
        "Tied has no 3 tensor(s): p2, qp0, qp1",
    ]


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    write_stage_2(tmp_path, GROUPS)
    with pytest.raises(CheckpointError, match="the weights of another model"):
        load_state_dict_from_zero_checkpoint(nn.Linear(2, 2), tmp_path)
    model = Tied()
    model.p1 = nn.Parameter(torch.zeros(8))
    with pytest.raises(CheckpointError, match=r"p1 has shape \[7\] in the checkpoint, and \[8\] in the model"):
        load_state_dict_from_zero_checkpoint(model, tmp_path)


def test_deepspeed_is_not_imported(tmp_path: Path) -> None:
    write_stage_3(tmp_path, GROUPS)
    code = (
        "import sys; from mainspring.checkpoint import get_fp32_state_dict_from_zero_checkpoint as read;"
        "read(sys.argv[1]); sys.exit('deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
