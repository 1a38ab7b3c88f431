"""`mainspring explain CONFIG` prints what a file of options comes to, or says what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mainspring.cli import main


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config.yml"])
def test_a_file_is_explained(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / name
    file.write_text('{"output_dir": "out", "evaluation_strategy": "steps", "logging_steps": 20}')
    assert main(["explain", str(file)]) == 0
    printed = capsys.readouterr()
    assert f"logging_steps  20       file {file}" in printed.out
    assert "eval_steps     20       derived from logging_steps" in printed.out
    assert "from the older spelling evaluation_strategy='steps'" in printed.out
    assert "weight_decay" not in printed.out


def test_all_options_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"output_dir": "out"}')
    assert main(["explain", "--all", str(file)]) == 0
    assert "weight_decay" in capsys.readouterr().out


def test_what_only_the_script_reads_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.JSON"
    file.write_text(
        '{"sortish_sampler": false, "seed": 7, "model_name_or_path": "gpt2", "learning_rat": 1, "no_cuda": true}'
    )
    assert main(["explain", str(file)]) == 0
    *table, mine, slip = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  seed") for line in table)
    assert mine == "not an option of the arguments: model_name_or_path"
    assert slip == "not an option of the arguments: learning_rat; did you mean 'learning_rate'?"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.json", '{"seed": -1, "fp16": true, "bf16": true}', "seed=-1: must be at least 0"),
        ("c.json", '{"seed": 1,}', "c.json': not JSON: "),
        ("c.json", "[1]", "c.json': holds a list; write options by name"),
        ("c.yaml", "seed: [", "c.yaml': not YAML: "),
        ("c.json", None, "No such file or directory: '"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_code_tells(
    name: str, text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(["explain", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mainspring: ")
    assert said in printed.err


def test_a_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["explain"])
    assert stopped.value.code == 2
    assert "CONFIG" in capsys.readouterr().err


def test_it_answers_without_torch_and_without_warnings(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"output_dir": "out", "evaluation_strategy": "epoch", "eval_steps": 7}')
    code = f"from mainspring.cli import main; main(['explain', {str(file)!r}]); import sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
