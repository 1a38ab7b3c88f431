"""The content of a `manifest.json`, and its text.

The text ends with the hash of all that stands before it, so that a damaged manifest is not believed either.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import PureWindowsPath
from typing import Any

import xxhash

from mainspring.checkpoint.hashing import FileRecord
from mainspring.checkpoint.names import MANIFEST_NAME
from mainspring.errors import CheckpointError

FORMAT = "mainspring checkpoint"
VERSION = 1

_END = b'"\n}\n'
_SEALED = re.compile(rb'(?P<text>.*"seal": ")(?P<seal>[0-9a-f]{16})' + re.escape(_END), re.DOTALL)


class NewerManifestError(CheckpointError):
    """A manifest of a version to come: no damage, but nothing that can be judged here."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint was written for.

    Attributes:
        run_id: Which run wrote it; the same after a resume.
        step: Updates done.
        samples: Samples consumed since the run began, over all processes.
        world_size: Number of processes.
        max_steps: Updates that the run is to do.
        metric_name: What decides which checkpoint is the best; None: nothing does.
        metric: Its value here; None: not evaluated at this step.
        best: Whether it was the best so far.
        metrics: All metrics of the evaluation at this step. Those that are no numbers are not written.
    """

    run_id: str
    step: int
    samples: int
    world_size: int = 1
    max_steps: int | None = None
    metric_name: str | None = None
    metric: float | None = None
    best: bool = False
    metrics: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The content of a `manifest.json`.

    Attributes:
        facts: What the checkpoint was written for.
        files: Each file's record under its path in the checkpoint, with `/` between folders.
        libraries: Versions of the packages that wrote it, and of Python.
        written_at: When, as ISO 8601 in UTC. It decides which of several runs wrote last, and nothing else.
        version: Of the format.
    """

    facts: Facts
    files: Mapping[str, FileRecord]
    libraries: Mapping[str, str]
    written_at: str
    version: int = VERSION

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())


def encode(manifest: Manifest) -> bytes:
    """Return the text of a manifest, sealed."""
    content = {"format": FORMAT, **asdict(manifest), "facts": _plain(manifest.facts), "seal": ""}
    text = json.dumps(content, indent=1).removesuffix('"\n}').encode("ascii")
    return text + _digest(text) + _END


def decode(data: bytes) -> Manifest:
    """Return the manifest in a text.

    Raises:
        CheckpointError: It is damaged, or is not one of ours.
        NewerManifestError: It is of a version to come.
    """
    content = _unsealed(data)
    try:
        return Manifest(
            facts=_facts(content["facts"]),
            files={_inside(name): FileRecord(one["size"], one["xxh3"]) for name, one in content["files"].items()},
            libraries=dict(content["libraries"]),
            written_at=str(content["written_at"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST_NAME} is none that this library writes: {error}") from error


def _plain(facts: Facts) -> dict[str, Any]:
    """The facts as JSON can hold them; metrics often are numpy's numbers."""
    numbers = {name: float(value) for name, value in facts.metrics.items() if isinstance(value, Real)}
    return {**asdict(facts), "metric": None if facts.metric is None else float(facts.metric), "metrics": numbers}


def _unsealed(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST_NAME} is damaged: it is not valid JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{MANIFEST_NAME} is damaged, or was written by something else: it is not a {FORMAT}'s")
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:  # which may be sealed in another way
        raise NewerManifestError(
            f"{MANIFEST_NAME} has version {version}, and only {VERSION} is known here: a newer mainspring wrote it"
        )
    sealed = _SEALED.fullmatch(data)
    if sealed is None or _digest(sealed["text"]) != sealed["seal"]:
        raise CheckpointError(f"{MANIFEST_NAME} is damaged: its text is not the one that was written")
    if version != VERSION:
        raise CheckpointError(f"{MANIFEST_NAME} has version {version}, but only {VERSION} is known here")
    return content


def _facts(content: Mapping[str, Any]) -> Facts:
    if not (isinstance(content["run_id"], str) and isinstance(content["step"], int)):
        raise TypeError(f"run_id={content['run_id']!r} and step={content['step']!r} are not a text and a number")
    return Facts(**{name: content[name] for name in Facts.__dataclass_fields__ if name in content})


def _inside(name: str) -> str:
    """`name`, if it is a path that stays in its folder."""
    leads_out = not {"", ".", ".."}.isdisjoint(name.split("/"))
    if os.name == "nt":
        leads_out = leads_out or "\\" in name or bool(PureWindowsPath(name).anchor)
    if leads_out or "\0" in name or name == MANIFEST_NAME:
        raise ValueError(f"{name!r} is not a path inside a checkpoint")
    return name


def _digest(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode("ascii")
