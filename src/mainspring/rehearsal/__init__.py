"""Updates that are tried and taken back.

| question | module |
|---|---|
| which updates are made, of what? | `updates` |
| what is put back afterwards? | `kept` |
"""

from __future__ import annotations

from mainspring.rehearsal.updates import Rehearsal

__all__ = ["Rehearsal"]
