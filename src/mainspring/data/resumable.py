"""Streams that can say where they stand, and be entered there: exactly, or not at all."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from mainspring.data.samplers import IterableShard

_EXACT_SINCE = (5, 2)
"""Before this version of ``datasets``, a resumed ``map``, or a position saved by a resumed run, can be wrong."""

_GENERATE = {"ExamplesIterable"}
"""Links that give what a generator makes: from the start of a shard again, leaving out what was given."""

_KEEP_PLACE = {
    "ArrowExamplesIterable",
    "FormattedExamplesIterable",
    "HorizontallyConcatenatedMultiSourcesExamplesIterable",
    "RepeatExamplesIterable",
    "SelectColumnsIterable",
    "SkipExamplesIterable",
    "StepExamplesIterable",
    "TakeExamplesIterable",
    "VerticallyConcatenatedMultiSourcesExamplesIterable",
}
"""Links of a chain of ``datasets`` that go on with the very next example."""

_APPLY = {"FilteredExamplesIterable", "MappedExamplesIterable"}
"""Links that apply a function. In batches, in tables or asynchronously, they apply it to some examples once more."""

_REPLAY = {
    "CyclingMultiSourcesExamplesIterable",
    "RandomlyCyclingMultiSourcesExamplesIterable",
    "RebatchedArrowExamplesIterable",
}
"""Links that read a few examples again which they had read ahead."""


class Resumable:
    """A stream, or one process's share of it, that saves its position by ``state_dict`` and ``load_state_dict``.

    Args:
        dataset: A stream to which there is no :func:`obstacle`.

    Attributes:
        dataset: What is read in its place.
        kind: What it is made of; a position fits only a stream of the same kind.
        replays: See :func:`replays`.
    """

    def __init__(self, dataset: Any) -> None:
        source = _source(dataset)
        links = _chain(source)
        self.kind = [type(link).__name__ for link in links] or [type(source).__name__]
        self.replays = replays(dataset)
        self._source = _detached(source) if links else source
        self.dataset = self._source
        if isinstance(dataset, IterableShard):
            self.dataset = copy.copy(dataset)
            self.dataset.dataset = self._source

    def place(self, epoch: int, samples: int) -> dict[str, Any]:
        """A place as it is saved, but for the stream's own state: ``samples`` over all processes lie before it."""
        return {"epoch": epoch, "samples": samples, "stream": self.kind}

    def state(self) -> Any:
        """The position after the last sample read."""
        return self._source.state_dict()

    def enter(self, state: Any) -> None:
        """Make the next iteration go on from ``state``."""
        if isinstance(self.dataset, IterableShard):
            self.dataset.enter(state)
        else:
            self._source.load_state_dict(state)


def obstacle(dataset: Any) -> str | None:
    """Why a stream cannot go on exactly from a position that it saved; None if it can."""
    source = _source(dataset)
    if not (hasattr(source, "state_dict") and hasattr(source, "load_state_dict")):
        return f"{type(source).__name__} has no state_dict and load_state_dict"
    return _obstacle_in_chain(source) if _is_of_datasets(source) else None


def replays(dataset: Any) -> bool:
    """Whether a stream takes some of its steps again when it is entered: exact only if these draw no numbers."""
    source = _source(dataset)
    if not _is_of_datasets(source):
        return False
    return bool(source._formatting and source._formatting.is_table) or any(map(_replays, _chain(source)))


def _source(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, IterableShard) else dataset


def _is_of_datasets(dataset: object) -> bool:
    return isinstance(dataset, getattr(sys.modules.get("datasets"), "IterableDataset", ()))


def _obstacle_in_chain(dataset: Any) -> str | None:
    version = sys.modules["datasets"].__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _EXACT_SINCE:
        return f"datasets {version} does not go on exactly where it stood, {'.'.join(map(str, _EXACT_SINCE))} does"
    for link in _chain(dataset):
        name = type(link).__name__
        if name == "BufferShuffledExamplesIterable":
            return "what is in the buffer of shuffle() would be lost"
        if name not in _GENERATE | _KEEP_PLACE | _APPLY | _REPLAY:
            return f"{name} is not known to go on exactly where it stood"
    return None


def _replays(link: Any) -> bool:
    name = type(link).__name__
    if name in _APPLY:
        return bool(link.batched or link.formatting) or inspect.iscoroutinefunction(link.function)
    if name in _REPLAY:
        return any(type(earlier).__name__ in _APPLY for source in _sources(link) for earlier in _links(source))
    return name in _GENERATE


def _chain(dataset: Any) -> list[Any]:
    """The links of a stream of ``datasets``, the last one first; none of other streams."""
    return list(_links(dataset._ex_iterable)) if _is_of_datasets(dataset) else []


def _links(link: Any) -> Iterator[Any]:
    yield link
    for source in _sources(link):
        yield from _links(source)


def _sources(link: Any) -> list[Any]:
    return [link.ex_iterable] if hasattr(link, "ex_iterable") else list(getattr(link, "ex_iterables", ()))


def _detached(dataset: Any) -> Any:
    """A copy that counts for itself.

    Streams made of one another (``take`` for evaluation, ``skip`` for training) share the links of the chain, and these
    hold the position: reading one would change what the other says. The data itself is not copied.
    """
    clone = object.__new__(type(dataset))
    vars(clone).update(vars(dataset))
    clone._ex_iterable = _detached_link(dataset._ex_iterable)
    return clone


def _detached_link(link: Any) -> Any:
    clone = copy.copy(link)
    if hasattr(link, "ex_iterable"):
        clone.ex_iterable = _detached_link(link.ex_iterable)
    elif hasattr(link, "ex_iterables"):
        clone.ex_iterables = [_detached_link(source) for source in link.ex_iterables]
    return clone
