"""Which DeepSpeed configuration is in force: models that are loaded while stage 3 is are divided at once.

It is held weakly: a configuration is in force for as long as somebody keeps it, and the newest wins. transformers has a
registry of its own, which its `from_pretrained` asks; it is told the same, and what it was told by others counts here too.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from mainspring.arguments.deepspeed.joining import join_as_deepspeed_would

_THEIRS = "transformers.integrations.deepspeed"
_THEIR_REFERENCE = "_hf_deepspeed_config_weak_ref"

_current: weakref.ref[Any] | None = None
_told: weakref.WeakKeyDictionary[Any, ForTransformers] = weakref.WeakKeyDictionary()
"""What transformers was told of configurations that are still there."""


class ForTransformers:
    """A configuration as transformers' registry holds it.

    There it is asked what it says when a model is about to be divided: that is the moment for the processes to join.

    Args:
        held: The configuration, which lives as long as somebody else keeps it.
        join: What joins the processes.
    """

    def __init__(self, held: Any, join: Callable[[], None]) -> None:
        self._held = weakref.ref(held)
        self._join = join

    @property
    def held(self) -> Any:
        """The configuration itself."""
        return self._held()

    @property
    def config(self) -> dict[str, Any]:
        """What it says, with the processes joined that it divides models over."""
        found: dict[str, Any] = self.held.config
        if self.held.is_zero3():
            self._join()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)


def set_hf_deepspeed_config(hf_deepspeed_config_obj: Any, join: Callable[[], None] = join_as_deepspeed_would) -> None:
    """Put a configuration in force, for as long as somebody keeps the object.

    Args:
        hf_deepspeed_config_obj: An `HfDeepSpeedConfig`.
        join: What joins the processes that models are divided over.
    """
    global _current
    _current = weakref.ref(hf_deepspeed_config_obj)
    theirs = _registry_of_transformers(needed=hf_deepspeed_config_obj.is_zero3())
    if theirs is not None:
        told = ForTransformers(hf_deepspeed_config_obj, join)
        _told[hf_deepspeed_config_obj] = told  # which keeps it for as long as the configuration
        theirs.set_hf_deepspeed_config(told)


def unset_hf_deepspeed_config() -> None:
    """Put no configuration in force."""
    global _current
    _current = None
    theirs = _registry_of_transformers(needed=False)
    if theirs is not None:
        theirs.unset_hf_deepspeed_config()


@contextlib.contextmanager
def out_of_force() -> Iterator[None]:
    """Models that transformers loads in the body stay whole."""
    theirs = _registry_of_transformers(needed=False)
    found = getattr(theirs, _THEIR_REFERENCE, None)
    if found is None:
        yield
        return
    theirs.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        setattr(theirs, _THEIR_REFERENCE, found)


def is_deepspeed_zero3_enabled() -> bool:
    """Whether a configuration of stage 3 is in force."""
    held = _held()
    return held is not None and bool(held.is_zero3())


def deepspeed_config() -> dict[str, Any] | None:
    """The configuration in force; None where there is none."""
    held = _held()
    return None if held is None else held.config


def _held() -> Any:
    """The newest configuration: a script may have made it with transformers' own class."""
    theirs = getattr(_registry_of_transformers(needed=False), _THEIR_REFERENCE, None)
    if theirs is None:
        own = None if _current is None else _current()
        return None if own in _told else own  # what it was told of, somebody has put out of force there
    found = theirs()
    return found.held if isinstance(found, ForTransformers) else found


def _registry_of_transformers(needed: bool) -> Any:
    """The module that holds it; None where nobody has imported it and it is not needed, or not installed."""
    if not needed or _THEIRS in sys.modules:
        return sys.modules.get(_THEIRS)
    return importlib.import_module(_THEIRS) if importlib.util.find_spec("transformers") is not None else None
