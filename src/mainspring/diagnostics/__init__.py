"""Tools that look into a run: what overflows, what made an update non-finite, and whether a loss survives being split.

Nothing here is imported, and no hook is set, unless one of them is asked for.

- `overflow`, `aids`: magnitudes of what goes in and out of every module; the option `debug`
- `divergence`, `witness`, `report`: where the first value of an update that is not finite came from
- `invariance`, `deviations`: whether a batch gives the same gradient however it is split
- `taps`: the hooks of the first two
- `values`, `rows`, `kept`: what is in a nest of values, in a batch; what a pass changes, put back
- `alone`: nothing is exchanged with other processes
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mainspring.diagnostics.deviations import Invariance, SplitDeviation
    from mainspring.diagnostics.divergence import explain
    from mainspring.diagnostics.invariance import grad_invariance
    from mainspring.diagnostics.overflow import DebugUnderflowOverflow
    from mainspring.diagnostics.report import Divergence, Phase

__all__ = [
    "DebugUnderflowOverflow",
    "Divergence",
    "Invariance",
    "Phase",
    "SplitDeviation",
    "explain",
    "grad_invariance",
]

_ROOMS = {
    "DebugUnderflowOverflow": "overflow",
    "Divergence": "report",
    "Invariance": "deviations",
    "Phase": "report",
    "SplitDeviation": "deviations",
    "explain": "divergence",
    "grad_invariance": "invariance",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
