"""Which DeepSpeed configuration is in force: models that are loaded while stage 3 is are divided at once.

It is held weakly: a configuration is in force for as long as somebody keeps it, and the newest wins. transformers has a
registry of its own, which its `from_pretrained` asks; it is told the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import weakref
from typing import Any

_THEIRS = "transformers.integrations.deepspeed"

_current: weakref.ref[Any] | None = None


def set_hf_deepspeed_config(hf_deepspeed_config_obj: Any) -> None:
    """Put a configuration in force, for as long as somebody keeps the object.

    Args:
        hf_deepspeed_config_obj: An `HfDeepSpeedConfig`.
    """
    global _current
    _current = weakref.ref(hf_deepspeed_config_obj)
    theirs = _registry_of_transformers(needed=hf_deepspeed_config_obj.is_zero3())
    if theirs is not None:
        theirs.set_hf_deepspeed_config(hf_deepspeed_config_obj)


def unset_hf_deepspeed_config() -> None:
    """Put no configuration in force."""
    global _current
    _current = None
    theirs = _registry_of_transformers(needed=False)
    if theirs is not None:
        theirs.unset_hf_deepspeed_config()


def is_deepspeed_zero3_enabled() -> bool:
    """Whether a configuration of stage 3 is in force."""
    held = _held()
    return held is not None and bool(held.is_zero3())


def deepspeed_config() -> dict[str, Any] | None:
    """The configuration in force; None where there is none."""
    held = _held()
    return None if held is None else held.config


def _held() -> Any:
    return None if _current is None else _current()


def _registry_of_transformers(needed: bool) -> Any:
    """The module that holds it; None where nobody has imported it and it is not needed, or not installed."""
    if not needed or _THEIRS in sys.modules:
        return sys.modules.get(_THEIRS)
    return importlib.import_module(_THEIRS) if importlib.util.find_spec("transformers") is not None else None
