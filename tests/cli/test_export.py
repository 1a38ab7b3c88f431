from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mainspring.cli import main
from mainspring.cli.export import _size
from tests.checkpoint.zero.written import parameters, write_stage_3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_stage_3(tmp_path / "checkpoint-4", [parameters((4, 3), (5,))])
    return tmp_path / "checkpoint-4"


def test_it_says_what_it_wrote(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == (
        f"wrote {tmp_path / 'out'}: 2 tensors (bfloat16), 34 B, from DeepSpeed's, ZeRO stage 3\n"
    )
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        "p0": ((4, 3), torch.bfloat16),
        "p1": ((5,), torch.bfloat16),
    }


def test_the_documented_call_gives_the_file(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the checkpoint, as `zero_to_fp32.py . pytorch_model.bin` was called."""
    monkeypatch.chdir(checkpoint)
    assert main(["export", ".", "pytorch_model.bin"]) == 0
    found = torch.load(checkpoint / "pytorch_model.bin")
    assert all(torch.equal(found[name], value) for name, value in parameters((4, 3), (5,)).items())
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "does not write that file any more" in " ".join(capsys.readouterr().out.split())


def test_the_size_and_the_tag_are_used(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "global_step1").rename(checkpoint / "other")
    options = ["--max-shard-size", "40B", "--tag", "other"]
    assert main(["export", str(checkpoint), str(tmp_path / "out"), *options]) == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 2


def test_an_existing_one_is_replaced_when_forced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"old": torch.ones(1)}, tmp_path / "out.safetensors")
    assert main(["export", str(checkpoint), str(tmp_path / "out.safetensors")]) == 2
    assert "out.safetensors exists; --force replaces it" in capsys.readouterr().err
    assert list(load_file(tmp_path / "out.safetensors")) == ["old"]
    assert main(["export", str(checkpoint), str(tmp_path / "out.safetensors"), "--force"]) == 0
    assert sorted(load_file(tmp_path / "out.safetensors")) == ["p0", "p1"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["gone", "out"], "gone is not a folder"),
        (["{}", "out.bin", "--max-shard-size", "1GB"], "--max-shard-size divides a folder's weights"),
        (["{}", "out", "--tag", "gone"], "gone does not exist"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], reason: str, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert main(["export", *(word.format(checkpoint) for word in words)]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("200 MB", 2 * 10**8), ("1.5kb", 1500), ("7", 7), ("2T", 2 * 10**12), ("9B", 9)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert _size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5PB", "-1GB", "0", "5 G B"])
def test_other_sizes_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "in", "out", f"--max-shard-size={text}"])
    assert "is not a size as 5GB or 500MB" in capsys.readouterr().err


def test_its_help_needs_no_torch() -> None:
    code = "import sys; from mainspring.cli import _parser; _parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
