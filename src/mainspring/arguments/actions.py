"""What argparse does with the words of an option: their value is stored, and where it was written."""

from __future__ import annotations

import argparse
from typing import Any

from mainspring.arguments.masking import shown
from mainspring.arguments.sources import Origin

COMMAND_LINE = "command line"

PLACE = "--\0place"
"""A word before those of a file, followed by the file's name. Nobody can type it."""


class Written:
    """What was written for each option, in the order of reading: the last value counts.

    Attributes:
        place: Where the words that are being read were written.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin to read another command line."""
        self.place = COMMAND_LINE
        self._values: dict[str, dict[str, Any]] = {}

    def note(self, option: str, value: Any) -> None:
        """An option was written at the place that is being read."""
        by_place = self._values.setdefault(option, {})
        by_place.pop(self.place, None)  # the last place is to be the one that counts
        by_place[self.place] = value

    def __contains__(self, option: str) -> bool:
        return option in self._values

    def origin(self, option: str) -> Origin:
        """Where the value that counts was written, and what it won over."""
        if option not in self:
            return Origin("default of the parser")  # from argparse's set_defaults
        *others, (place, value) = self._values[option].items()
        lost = [f"{shown(option, other)!r} from {elsewhere}" for elsewhere, other in others if other != value]
        return Origin(place, f"wins over {', '.join(lost)}" if lost else "")


class Store(argparse.Action):
    """Store the value."""

    def __init__(self, *args: Any, written: Written, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.written = written

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Take the words of one mention of the option."""
        value = self.value_of(values)
        setattr(namespace, self.dest, value)
        self.written.note(self.dest, value)

    def value_of(self, values: Any) -> Any:
        """The value that the words stand for."""
        return values


class StoreOneOrMany(Store):
    """No word is True, one word is its value, several are a list."""

    def value_of(self, values: Any) -> Any:
        """The value that the words stand for."""
        return True if not values else values[0] if len(values) == 1 else values


class SwitchOff(Store):
    """Store False; no word follows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, nargs=0, **kwargs)

    def value_of(self, values: Any) -> Any:
        """The value that the option stands for."""
        return False


class MovePlace(Store):
    """The words that follow were written elsewhere."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Take the name of the place."""
        self.written.place = values
