from __future__ import annotations

import logging as standard
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from mainspring.utils import logging


@pytest.fixture(autouse=True)
def _as_at_start() -> Iterator[None]:
    library = logging.library()
    before = library.level, library.propagate, list(library.handlers)
    yield
    library.level, library.propagate, library.handlers[:] = before
    library.setLevel(before[0])
    logging.reset_format()
    logging.enable_progress_bar()


def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a program that has not set up logging. To be called in the test: pytest sets it up for each phase anew."""
    monkeypatch.setattr(standard.getLogger(), "handlers", [])


@pytest.mark.parametrize(
    ("setter", "level"),
    [
        (logging.set_verbosity_debug, 10),
        (logging.set_verbosity_info, 20),
        (logging.set_verbosity_warning, 30),
        (logging.set_verbosity_error, 40),
    ],
)
def test_verbosity_reaches_every_logger_of_the_package(setter: object, level: int) -> None:
    setter()  # type: ignore[operator]
    assert logging.get_verbosity() == level
    assert logging.get_logger("mainspring.some.room").getEffectiveLevel() == level
    assert standard.getLogger("mainspring.other").getEffectiveLevel() == level


def test_verbosity_leaves_other_packages_alone() -> None:
    before = logging.get_logger("someone.else").getEffectiveLevel()
    logging.set_verbosity_debug()
    assert logging.get_logger("someone.else").getEffectiveLevel() == before


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    unconfigured(monkeypatch)
    logger = logging.get_logger("mainspring.x")
    logger.warning("heard")
    logger.info("not heard")
    assert capsys.readouterr().err == "heard\n"


def test_a_program_with_logging_of_its_own_gets_each_message_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logging.get_logger("mainspring.x").warning("heard")
    assert caplog.messages == ["heard"]
    assert capsys.readouterr().err == ""


def test_without_propagation_the_package_prints_itself(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable_propagation()
    logging.get_logger("mainspring.x").warning("heard")
    assert caplog.messages == []
    assert capsys.readouterr().err == "heard\n"
    logging.enable_propagation()
    logging.get_logger("mainspring.x").warning("again")
    assert caplog.messages == ["again"]


def test_the_explicit_format_says_level_and_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfigured(monkeypatch)
    logging.enable_explicit_format()
    logging.get_logger("mainspring.x").warning("heard")
    line = capsys.readouterr().err
    assert line.startswith("[WARNING|test_logging.py:")
    assert line.endswith(">> heard\n")


def test_the_default_handler_can_be_taken_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfigured(monkeypatch)
    lines: list[str] = []

    class Keep(standard.Handler):
        def emit(self, record: standard.LogRecord) -> None:
            lines.append(record.getMessage())

    mine = Keep()
    logging.add_handler(mine)
    logging.disable_default_handler()
    logging.get_logger("mainspring.x").warning("heard")
    logging.remove_handler(mine)
    assert lines == ["heard"]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="not a handler"):
        logging.remove_handler(mine)


def test_once_means_once_for_each_text(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.get_logger("mainspring.once")
    for value in (1, 1, 2):
        logger.warning_once("value %d", value)
    assert caplog.messages == ["value 1", "value 2"]


def test_once_counts_only_what_was_shown(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.get_logger("mainspring.once.later")
    logger.info_once("now")
    logging.set_verbosity_info()
    logger.info_once("now")
    assert caplog.messages == ["now"]


def test_only_the_loggers_asked_for_here_get_our_class() -> None:
    assert type(standard.getLogger("another.package")) is standard.Logger
    assert isinstance(logging.get_logger("a.script"), logging.Logger)
    assert logging.get_logger() is standard.getLogger("mainspring")


def test_warnings_can_be_sent_to_the_log() -> None:
    heard: list[str] = []

    class Keep(standard.Handler):
        def emit(self, record: standard.LogRecord) -> None:
            heard.append(record.getMessage())

    mine = Keep()
    logging.add_handler(mine)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("careful", UserWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
        logging.remove_handler(mine)
    assert any("careful" in line for line in heard)


def test_progress_bars_can_be_switched_off() -> None:
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    assert not logging.is_progress_bar_enabled()


@pytest.mark.parametrize(("value", "printed"), [("info", "20\n"), ("ERROR", "40\n"), ("loud", "30\n")])
def test_the_environment_sets_the_first_level(value: str, printed: str) -> None:
    code = "from mainspring.utils import logging; print(logging.get_verbosity())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"MAINSPRING_VERBOSITY": value, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout == printed
    assert ("MAINSPRING_VERBOSITY='loud': not a level" in run.stderr) == (value == "loud")


def test_detail_also_prints_where_a_message_comes_from() -> None:
    code = "from mainspring.utils import logging; logging.get_logger('mainspring.x').debug('heard')"
    for value, start in (("detail", "[DEBUG|<string>:1] "), ("debug", "heard")):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"MAINSPRING_VERBOSITY": value, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.stderr.startswith(start)


@pytest.mark.parity
def test_the_reference_s_functions_are_there() -> None:
    from transformers.utils import logging as reference

    absent = {
        "EmptyTqdm",
        "tqdm",
        "set_tqdm_hook",
        "warning_once",  # methods of our loggers
        "info_once",
        "warning_advice",
    }
    theirs = {name for name, value in vars(reference).items() if getattr(value, "__module__", "") == reference.__name__}
    assert {name for name in theirs if not name.startswith("_")} - set(logging.__all__) <= absent
    assert logging.log_levels == reference.log_levels
