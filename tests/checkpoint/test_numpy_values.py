from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mainspring.checkpoint import CheckpointError, load_torch, save_torch
from mainspring.checkpoint.numpy_values import _scalar
from mainspring.checkpoint.pickles import dangerous_globals

PLAIN = [
    np.float64(1.5),
    np.float32(0.1),
    np.float16(2),
    np.longdouble(3),
    np.int64(-7),
    np.uint8(9),
    np.bool_(True),
    np.complex64(1j),
    np.str_("Größe"),
    np.str_(""),
    np.bytes_(b"ab"),
    np.arange(6.0).reshape(2, 3),
    np.array(["a", "bc"]),
    np.zeros((0, 2), dtype=np.int32),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__}-{np.asarray(value).dtype}")
def test_numbers_texts_and_arrays_of_numpy_go_on(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "state.pt"
    save_torch({"best": value}, file)
    assert dangerous_globals(file) == []
    loaded = load_torch(file)["best"]
    assert type(loaded) is type(value)
    assert np.asarray(loaded).dtype == np.asarray(value).dtype
    assert np.array_equal(loaded, value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.array([{}], dtype=object), "numpy.dtypes.ObjectDType"),
        (np.datetime64("2020-01-01"), "numpy.dtypes.DateTime64DType"),
        (np.array([(1, 2.0)], dtype="i4,f8"), "numpy.dtypes.VoidDType"),
    ],
)
def test_what_would_not_load_again_is_refused_when_it_is_saved(tmp_path: Path, value: Any, named: str) -> None:
    file = tmp_path / "state.pt"
    with pytest.raises(CheckpointError, match=named):
        save_torch({"best": value}, file)
    with pytest.raises(CheckpointError):
        load_torch(file)


def test_a_crafted_number_reads_nothing_beyond_its_bytes() -> None:
    for kind, data in ((np.dtype("f8"), b"1234"), (np.dtype("O"), b"12345678"), ("f8", b"12345678")):
        with pytest.raises(ValueError, match="no number"):
            _scalar(kind, data)


def test_bytes_of_a_length_are_not_made(tmp_path: Path) -> None:
    class Crafted:
        def __reduce__(self) -> Any:
            return bytes, (1 << 40,)

    torch.save(Crafted(), tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="TypeError"):
        load_torch(tmp_path / "state.pt")


def test_a_code_that_is_no_plain_one_is_refused(tmp_path: Path) -> None:
    class Crafted:
        def __reduce__(self) -> Any:
            return np.dtype, ("(2,)O",)

    file = tmp_path / "state.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.write_bytes(pickle.dumps(Crafted(), protocol=2))
        stream = io.BytesIO()
        torch.save(Crafted(), stream)
    assert dangerous_globals(file) == ["a name that it computes"]
    file.write_bytes(stream.getvalue())
    assert dangerous_globals(file) == ["a name that it computes"]
