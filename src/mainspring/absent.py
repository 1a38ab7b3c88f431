"""Names of the reference whose machinery is not here yet: importing one fails with a message that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def not_available_yet(module: str, *names: str) -> Callable[[str], NoReturn]:
    """Make the `__getattr__` (PEP 562) of a module that lacks `names`.

    It raises ImportError for them, and AttributeError for all others. Not AttributeError for both: `from module import
    name` replaces that by a message of its own, which does not tell a name that is still to come from a misspelt one.
    `hasattr` with one of `names` therefore raises too.

    Args:
        module: The module's `__name__`.
        names: What is not there yet.
    """
    coming = frozenset(names)

    def refuse(name: str) -> NoReturn:
        if name in coming:
            raise ImportError(f"{name} is not available yet in {module}", name=module)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return refuse
