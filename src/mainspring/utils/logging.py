"""How loud the package is: verbosity, format and progress bars, over the standard library's ``logging``.

Everything here acts on the logger ``"mainspring"`` and, through it, on the loggers of all modules below it. Messages
are printed on stderr; where the program has configured logging itself (the root logger has handlers), they go there
instead, in the program's own format, so that no line is printed twice.

The environment variable ``MAINSPRING_VERBOSITY`` (a key of :data:`log_levels`) sets the level to start with.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARN, WARNING
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CRITICAL",
    "DEBUG",
    "ERROR",
    "FATAL",
    "INFO",
    "NOTSET",
    "WARN",
    "WARNING",
    "add_handler",
    "captureWarnings",
    "disable_default_handler",
    "disable_progress_bar",
    "disable_propagation",
    "enable_default_handler",
    "enable_explicit_format",
    "enable_progress_bar",
    "enable_propagation",
    "get_log_levels_dict",
    "get_logger",
    "get_verbosity",
    "is_progress_bar_enabled",
    "log_levels",
    "remove_handler",
    "reset_format",
    "set_verbosity",
    "set_verbosity_debug",
    "set_verbosity_error",
    "set_verbosity_info",
    "set_verbosity_warning",
]

LIBRARY = "mainspring"
EXPLICIT_FORMAT = "[%(levelname)s|%(filename)s:%(lineno)s] %(asctime)s >> %(message)s"

log_levels: dict[str, int] = {
    "detail": DEBUG,  # in the environment variable, it also prints level, file, line and time
    "debug": DEBUG,
    "info": INFO,
    "warning": WARNING,
    "error": ERROR,
    "critical": CRITICAL,
}


class Logger(logging.Logger):
    """A logger that can also say a thing only once."""

    def warning_once(self, message: str, *args: object) -> None:
        """Log a warning unless this logger has logged the same one before."""
        self._once(WARNING, message, args)

    def info_once(self, message: str, *args: object) -> None:
        """Log an information unless this logger has logged the same one before."""
        self._once(INFO, message, args)

    def _once(self, level: int, message: str, args: tuple[object, ...]) -> None:
        said: set[tuple[int, str]] = self.__dict__.setdefault("_said", set())
        text = message % args if args else message
        if self.isEnabledFor(level) and (level, text) not in said:
            said.add((level, text))
            self.log(level, "%s", text, stacklevel=3)


if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]  # a generic at run time from Python 3.11 on
else:
    _Handler = logging.StreamHandler


class _DefaultHandler(_Handler):
    """Prints on the stderr of the moment, and only when the program has not set up logging itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would keep today's sys.stderr for ever

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> Any:  # a bool; from Python 3.12 on also a record
        if logging.getLogger(LIBRARY).propagate and logging.getLogger().handlers:
            return False
        return super().filter(record)


_handler = _DefaultHandler()
_lock = threading.Lock()
_progress_bars = True


@functools.cache
def library() -> logging.Logger:
    """Return the logger above all loggers of the package, set up at the first call."""
    top = logging.getLogger(LIBRARY)
    top.addHandler(_handler)
    if top.level == NOTSET:  # a level that the program gave before is left alone
        asked = os.environ.get("MAINSPRING_VERBOSITY", "")
        top.setLevel(log_levels.get(asked.lower(), WARNING))
        if asked.lower() == "detail":
            _handler.setFormatter(logging.Formatter(EXPLICIT_FORMAT))
        if asked and asked.lower() not in log_levels:
            choices = ", ".join(log_levels)
            top.warning("MAINSPRING_VERBOSITY=%r: not a level; use one of %s", asked, choices)
    return top


def get_logger(name: str | None = None) -> Logger:
    """Return the logger called ``name``; the package's own when None.

    Args:
        name: A logger's name, usually ``__name__``. A name outside of the package gives a logger outside of it, which
            the functions of this module do not touch.
    """
    library()
    logger = logging.getLogger(name or LIBRARY)
    with _lock:
        if type(logger) is logging.Logger:
            # The class is given to this one logger, not to logging.setLoggerClass: other packages' stay as they are.
            logger.__class__ = Logger
    return cast("Logger", logger)


def get_log_levels_dict() -> dict[str, int]:
    """Return the names of levels that options and the environment variable take."""
    return log_levels


def get_verbosity() -> int:
    """Return the level of the package's logger, as a number of the standard library (30: WARNING)."""
    return library().getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Show messages of this level and above.

    Args:
        verbosity: A level of the standard library: 10 DEBUG, 20 INFO, 30 WARNING, 40 ERROR, 50 CRITICAL.
    """
    library().setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Show everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Show information, warnings and errors."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Show warnings and errors."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Show errors only."""
    set_verbosity(ERROR)


def add_handler(handler: logging.Handler) -> None:
    """Send the package's messages to ``handler`` as well."""
    library().addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """Stop sending messages to ``handler``.

    Raises:
        ValueError: The handler was not there.
    """
    if handler not in library().handlers:
        raise ValueError(f"handler={handler!r}: not a handler of the package's logger; add it with add_handler first")
    library().removeHandler(handler)


def enable_default_handler() -> None:
    """Print on stderr (the way it is at start)."""
    library().addHandler(_handler)


def disable_default_handler() -> None:
    """Do not print on stderr."""
    library().removeHandler(_handler)


def enable_propagation() -> None:
    """Hand messages to the handlers that the program has set up on the root logger (the way it is at start)."""
    library().propagate = True


def disable_propagation() -> None:
    """Keep messages from the root logger's handlers; the package prints them itself."""
    library().propagate = False


def enable_explicit_format() -> None:
    """Put level, file, line and time before each message that the package's own handlers print."""
    _set_format(logging.Formatter(EXPLICIT_FORMAT))


def reset_format() -> None:
    """Print messages without anything before them (the way it is at start)."""
    _set_format(None)


def captureWarnings(capture: bool) -> None:  # noqa: N802 - the standard library's name
    """Send what ``warnings.warn`` says through logging, to the package's handlers too.

    Args:
        capture: True to begin, False to end.
    """
    warnings_logger = logging.getLogger("py.warnings")
    change: Callable[[logging.Handler], Any] = warnings_logger.addHandler if capture else warnings_logger.removeHandler
    for handler in library().handlers:
        change(handler)
    logging.captureWarnings(capture)


def is_progress_bar_enabled() -> bool:
    """Return whether progress bars may be drawn."""
    return _progress_bars


def enable_progress_bar() -> None:
    """Draw progress bars (the way it is at start)."""
    global _progress_bars
    _progress_bars = True


def disable_progress_bar() -> None:
    """Draw no progress bar, whatever ``disable_tqdm`` says."""
    global _progress_bars
    _progress_bars = False


def _set_format(formatter: logging.Formatter | None) -> None:
    for handler in library().handlers:
        handler.setFormatter(formatter)
