"""One table per kind of plug-in: names on the left, import paths on the right.

A row is a path, so a table of fifty optimizers imports none of them, and adding one is one line:

    OPTIMIZERS = Registry("optimizer", {
        "adamw_torch": "mainspring.optimizers:adamw",
        "galore_adamw": Entry("mainspring.optimizers.galore:galore_adamw", needs="galore-torch"),
    })
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mainspring.errors import MissingPackageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Entry", "Registry"]


@dataclass(frozen=True)
class Entry:
    """Where a plug-in is found.

    Attributes:
        path: ``"package.module:attribute"``.
        needs: Name under which pip knows the package that the module needs; None when it needs nothing further.
    """

    path: str
    needs: str | None = None

    def __post_init__(self) -> None:
        module, colon, attribute = self.path.partition(":")
        if not (module and colon and attribute):
            raise ValueError(f"path={self.path!r}: not a place to import from; write 'package.module:attribute'")


class Registry:
    """Names of one kind of plug-in, each imported when it is first asked for.

    Args:
        kind: What the names are names of, as it should read in an error ("optimizer").
        entries: Name to ``"package.module:attribute"`` or to an :class:`Entry`.
    """

    def __init__(self, kind: str, entries: Mapping[str, str | Entry]) -> None:
        self.kind = kind
        self._entries = {name: Entry(entry) if isinstance(entry, str) else entry for name, entry in entries.items()}
        self._shipped = frozenset(self._entries)
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Import and return what ``name`` stands for.

        Raises:
            ValueError: The name is unknown.
            MissingPackageError: The package that the entry needs is not installed.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> tuple[str, ...]:
        """Return every name, in the order of the table."""
        return tuple(dict.fromkeys([*self._entries, *self._loaded]))

    def add(self, name: str, path_or_object: object) -> None:
        """Add a plug-in of the user's own.

        A name added before is replaced, so a notebook cell can run twice; a name of the package is never replaced.

        Args:
            name: The new name.
            path_or_object: An import path, an :class:`Entry`, or the plug-in itself.

        Raises:
            ValueError: The package itself has that name.
        """
        if name in self._shipped:
            raise ValueError(f"{self.kind} {str(name)!r} is a name of mainspring; choose another for your own")
        self._entries.pop(name, None)
        self._loaded.pop(name, None)
        if isinstance(path_or_object, str):
            self._entries[name] = Entry(path_or_object)
        elif isinstance(path_or_object, Entry):
            self._entries[name] = path_or_object
        else:
            self._loaded[name] = path_or_object

    def _load(self, name: str) -> Any:
        try:
            entry = self._entries[name]
        except KeyError:
            raise ValueError(f"unknown {self.kind} {str(name)!r}{self._hint(str(name))}") from None
        module, _, attribute = entry.path.partition(":")
        with self.needing(name):
            return getattr(import_module(module), attribute)

    @contextmanager
    def needing(self, name: str) -> Iterator[None]:
        """Run what imports the package that ``name`` needs.

        Raises:
            MissingPackageError: It is not installed; the message says how to install it.
        """
        try:
            yield
        except ModuleNotFoundError as error:
            needs = self._entries[name].needs if name in self._entries else None
            if needs is None:
                raise
            raise MissingPackageError(
                f"{self.kind} {str(name)!r} needs {needs}: pip install {needs}", name=error.name
            ) from error

    def _hint(self, name: str) -> str:
        return did_you_mean(name, self.names()) or f"; one of: {', '.join(self.names())}"
