"""Which files of a checkpoint count."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mainspring.checkpoint.manifest import read_manifest


@dataclass(frozen=True)
class Contents:
    """The files of a checkpoint: those that its manifest lists; where it has none, all that are there.

    Files that nobody listed may lie in a checkpoint, and are never read: they were not part of what was saved.

    Attributes:
        root: The checkpoint.
        listed: Their paths in it, with `/` between folders; None: it has no manifest.
    """

    root: Path
    listed: Collection[str] | None

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> Contents:
        """Read the manifest of a folder, if it has one.

        Raises:
            CheckpointError: The manifest is damaged, or of a version to come.
            OSError: It cannot be read.
        """
        manifest = read_manifest(folder)
        return cls(Path(folder), None if manifest is None else frozenset(manifest.files))

    def file(self, name: str) -> Path | None:
        """Return where a file is; None: it is not part of the checkpoint."""
        path = self.root / name
        return path if (path.is_file() if self.listed is None else name in self.listed) else None

    def below(self, folder: str) -> Contents:
        """Return those of a folder in it."""
        before = f"{folder}/"
        listed = self.listed
        inner = None if listed is None else frozenset(name[len(before) :] for name in listed if name.startswith(before))
        return Contents(self.root / folder, inner)

    def folders(self) -> list[str]:
        """Return the names of the folders at its top."""
        if self.listed is None:
            return sorted(path.name for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []
        return sorted({name.partition("/")[0] for name in self.listed if "/" in name})
