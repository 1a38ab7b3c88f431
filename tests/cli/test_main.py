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


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_a_name_says_that_it_is_not_available_exactly_when_the_option_refuses_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["optimizers"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == name]
    try:
        mainspring.TrainingArguments("out", optim=name)
    except ValueError:
        assert line.endswith("not available yet")
    else:
        assert line == name


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
