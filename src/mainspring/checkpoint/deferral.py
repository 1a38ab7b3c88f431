"""Which writes may wait: a checkpoint's large files are written at once, or kept as jobs for later.

Only the two writers of this package take part, `save_torch` and `save_model`, and only their tensors: what is decided about
names, shards, configurations and tied weights is decided at once, on the live model, in either case. So the files are
the same, and nothing but finished copies is read later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mainspring.checkpoint.disk import as_os_errors

Job = Callable[[], object]

# The modules in which a `save_pretrained` is defined, and their name for safetensors' `save_file`.
_THEIR_WRITERS = {"transformers.modeling_utils": "safe_save_file", "peft.peft_model": "safe_save_file"}


@dataclass(frozen=True)
class _Deferral:
    snapshot: Callable[[Any], Any]
    jobs: list[Job] = field(default_factory=list)


# By context and not by module, so that another thread that saves something meanwhile is not deferred with us.
_current: ContextVar[_Deferral | None] = ContextVar("_current", default=None)


@contextmanager
def deferred(snapshot: Callable[[Any], Any]) -> Iterator[list[Job]]:
    """Keep the writes of `save_torch` and `save_model` as jobs instead of doing them.

    Args:
        snapshot: Copies the state to be written, so that training can change the original.

    Yields:
        The jobs, in order; each writes one file when it is called, in whatever thread.
    """
    deferral = _Deferral(snapshot)
    token = _current.set(deferral)
    try:
        yield deferral.jobs
    finally:
        _current.reset(token)


def write(writer: Callable[[Any], object], state: Any) -> None:
    """Call `writer(state)` now; inside `deferred`, note it as a job with a snapshot of the state.

    Args:
        writer: Writes one file.
        state: Tensors in containers.

    Raises:
        OSError: The system refused the write; a job raises it when it is called.
    """
    writer = as_os_errors()(writer)
    deferral = _current.get()
    if deferral is None:
        writer(state)
    else:
        deferral.jobs.append(partial(writer, deferral.snapshot(state)))


@dataclass(frozen=True)
class SharedJob:
    """A write in which all processes take part: each has the same ones, in the same order.

    Attributes:
        writer: Writes a state with the others, who meet in the group it is given.
        state: A snapshot of this process's part.
    """

    writer: Callable[[Any, Any], object]
    state: Any

    def __call__(self, group: Any = None) -> None:
        """Write it; `group` is None for that of all processes."""
        self.writer(self.state, group)


def write_together(writer: Callable[[Any, Any], object], state: Any) -> None:
    """`write` for what all processes write together.

    Args:
        writer: Takes a state and a process group, None for that of all processes.
        state: Tensors, of which each process may hold shards, in containers.

    Raises:
        OSError: The system refused the write to any process.
    """
    deferral = _current.get()
    if deferral is None:
        writer(state, None)
    else:
        deferral.jobs.append(SharedJob(writer, deferral.snapshot(state)))


@contextmanager
def their_writes_too(save_pretrained: Callable[..., object]) -> Iterator[None]:
    """Inside `deferred`, let a model that saves itself write its tensors through `write`.

    Args:
        save_pretrained: The method that will be called. One that is neither transformers' nor PEFT's is left alone.
    """
    home = getattr(save_pretrained, "__module__", None) or ""
    module, name = sys.modules.get(home), _THEIR_WRITERS.get(home, "")
    original = getattr(module, name, None)
    if original is None or _current.get() is None:
        yield
        return
    setattr(module, name, partial(_save_file, original))
    try:
        yield
    finally:
        setattr(module, name, original)


def _save_file(original: Callable[..., None], tensors: Any, *args: Any, **kwargs: Any) -> None:
    write(lambda state: original(state, *args, **kwargs), tensors)
