from __future__ import annotations

import subprocess
import sys

import pytest

import mainspring
from mainspring.cli import main
from mainspring.names import OPTIMIZER_NAMES, SCHEDULER_NAMES


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"mainspring {mainspring.__version__}\n"


@pytest.mark.parametrize(("command", "names"), [("optimizers", OPTIMIZER_NAMES), ("schedulers", SCHEDULER_NAMES)])
def test_names_are_listed_one_per_line(
    command: str, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 0
    assert tuple(line.split()[0] for line in capsys.readouterr().out.splitlines()) == names


@pytest.mark.parametrize(
    ("command", "name", "needs"),
    [
        ("optimizers", "adamw_torch", ""),
        ("optimizers", "adamw_8bit", "needs bitsandbytes"),
        ("optimizers", "galore_adamw", "needs galore-torch transformers, optim_target_modules"),
        ("optimizers", "galore_adamw_8bit", "needs galore-torch transformers, a CUDA device, optim_target_modules"),
        ("schedulers", "linear", ""),
        ("schedulers", "warmup_stable_decay", "needs num_decay_steps in lr_scheduler_kwargs"),
    ],
)
def test_a_name_says_what_it_needs(command: str, name: str, needs: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == name]
    assert line.removeprefix(name).strip() == needs


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "optimizers" in out
    assert "schedulers" in out


def test_an_unknown_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["optimizer"])
    assert stopped.value.code == 2
    assert "invalid choice: 'optimizer'" in capsys.readouterr().err


def test_it_answers_without_torch() -> None:
    code = "import sys; from mainspring.cli import main; main(['optimizers']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    # The command waits for the end of its input, so that nobody reads its output any more when it prints.
    code = "import sys; sys.stdin.read(); from mainspring.cli import main; sys.exit(main(['optimizers']))"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1
