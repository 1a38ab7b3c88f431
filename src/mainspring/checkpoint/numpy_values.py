"""numpy's numbers, texts and arrays in the files of `torch.save`: what must be allowed for them to load.

States of schedulers and callbacks hold them easily: `np.mean` returns one. Arrays of Python objects are not among them.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

_KINDS = "?bhilqBHILQefdgFDGSU"
_CODE = re.compile(r"[<>=|]?[?A-Za-z]\d{0,9}")


def _scalar(kind: Any, data: bytes) -> Any:
    """Return the number or text that numpy pickled; numpy's own function for this trusts what it is given."""
    if not isinstance(kind, np.dtype) or type(kind) not in DTYPES or len(data) != kind.itemsize:
        raise ValueError("it holds no number of numpy's")
    return np.frombuffer(data, kind)[0] if data else kind.type()


def _no_bytes() -> bytes:
    """Return what the pickle of an empty text or array calls `bytes` for; with a number that would ask for memory."""
    return b""


DTYPES = tuple(dict.fromkeys(type(np.dtype(kind)) for kind in _KINDS))

NUMPY_GLOBALS: list[Any] = [
    *DTYPES,
    # Where pickles of numpy 2 and of numpy 1 look for it.
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_no_bytes, "builtins.bytes"),
]
"""What `torch.serialization.safe_globals` must allow beyond the pieces of numpy's random state."""


def dtype_class(code: object) -> str | None:
    """Return the name of the class of the dtype that a pickle asks for by a code ("f8"); None: it is no plain one."""
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        return None
    try:
        found = type(np.dtype(code))
    except (TypeError, ValueError):
        return None
    return f"{found.__module__}.{found.__qualname__}"
