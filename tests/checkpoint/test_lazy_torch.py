from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mainspring.checkpoint import stored
from mainspring.checkpoint.lazy_torch import Inert, is_lazy, read_lazily
from mainspring.checkpoint.stored import InFiles, Stored
from mainspring.errors import CheckpointError
from tests.checkpoint import payloads

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


def read(value: Any, folder: Path) -> Any:
    torch.save(value, folder / "file.pt")
    return read_lazily(folder / "file.pt")


def assert_same(found: Any, wanted: Tensor) -> None:
    assert isinstance(found, Stored)
    whole = found.read()
    assert (whole.shape, whole.dtype, found.dtype, found.numel()) == (
        wanted.shape, wanted.dtype, wanted.dtype, wanted.numel(),
    )  # fmt: skip
    assert (
        whole.contiguous().view(-1).view(torch.uint8).tolist()
        == wanted.contiguous().view(-1).view(torch.uint8).tolist()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_values(dtype: torch.dtype, tmp_path: Path) -> None:
    wanted = torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = read({"a": wanted, "b": wanted[1:]}, tmp_path)
    assert_same(found["a"], wanted)
    assert_same(found["b"], wanted[1:])


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t, lambda t: t[2:5], lambda t: t[:, 1:3], lambda t: t.T, lambda t: t[::2, ::3], lambda t: t[0, 0],
        lambda t: t[:0], lambda t: t[:1, 3:4], lambda t: t.expand(2, 6, 8), lambda t: t.view(2, 3, 8).permute(2, 0, 1),
        lambda t: t[3].expand(5, 8), lambda t: t[:, :0],
    ],
    ids=range(12),
)  # fmt: skip
@pytest.mark.parametrize("piece", [1 << 20, 5])
def test_every_view(view: Any, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PIECE", piece)
    whole = torch.arange(48.0).view(6, 8)
    assert_same(read([view(whole)], tmp_path)[0], view(whole))


def test_what_holds_them_is_kept(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.mark = "mine"  # type: ignore[attr-defined]
    state = {
        "ordered": OrderedDict(a=torch.ones(1)), 3: (True, None, 1.5, "text"), "size": torch.Size([2, 3]),
        "parameter": parameter, "module": nn.Linear(2, 3).state_dict(), "set": {1, 2},
    }  # fmt: skip
    found = read(state, tmp_path)
    assert isinstance(found["ordered"], OrderedDict)
    assert (found[3], found["size"], found["set"]) == (state[3], torch.Size([2, 3]), {1, 2})
    assert_same(found["parameter"], parameter.detach())
    assert_same(found["module"]["weight"], state["module"]["weight"])


def test_what_is_allowed_and_of_no_use_is_stood_in_for(tmp_path: Path) -> None:
    found = read({"count": Counter("aab"), "device": torch.device("cpu"), "array": np.float64(3)}, tmp_path)
    assert isinstance(found["device"], Inert)
    assert isinstance(found["array"], Inert)


def test_only_asking_reads_a_tensor(tmp_path: Path) -> None:
    """A file that was cut off after its numbers' places were read."""
    found = read({"a": torch.ones(100_000)}, tmp_path)
    with (tmp_path / "file.pt").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match=r"file\.pt ends too early"):
        found["a"].read()


def test_a_file_inside_another(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(7)}, tmp_path / "inner")
    inner = (tmp_path / "inner").read_bytes()
    (tmp_path / "outer").write_bytes(b"before" + inner + b"behind")
    found = read_lazily(tmp_path / "outer", window=(6, len(inner)))
    assert_same(found["a"], torch.arange(7))


@pytest.mark.parametrize("payload", payloads.PAYLOADS, ids=lambda payload: payload.__name__)
@pytest.mark.parametrize("form", payloads.FORMS, ids=lambda form: form.__name__)
def test_nothing_is_executed(payload: Any, form: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    form(payload(canary), tmp_path / "file.pt")
    with pytest.raises(CheckpointError):
        read_lazily(tmp_path / "file.pt")
    assert not canary.exists()


@pytest.mark.parametrize("length", [0, 3, 100, 700, -1])
def test_a_file_that_is_cut_off_is_refused(length: int, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(9)}, tmp_path / "file.pt")
    data = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "file.pt").write_bytes(data[:length])
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        read_lazily(tmp_path / "file.pt")


def test_a_storage_that_is_smaller_than_it_says_is_refused(tmp_path: Path) -> None:
    import zipfile

    torch.save({"a": torch.ones(900)}, tmp_path / "file.pt")
    with zipfile.ZipFile(tmp_path / "file.pt") as old, zipfile.ZipFile(tmp_path / "cut.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:400] if name.endswith("data/0") else old.read(name))
    with pytest.raises(CheckpointError, match="holds fewer values than it says"):
        read_lazily(tmp_path / "cut.pt")


def test_older_forms_are_told_apart(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "new")
    torch.save([1], tmp_path / "old", _use_new_zipfile_serialization=False)
    assert is_lazy(tmp_path / "new")
    assert not is_lazy(tmp_path / "old")
    with pytest.raises(CheckpointError, match="older form"):
        read_lazily(tmp_path / "old")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone.pt does not exist"):
        read_lazily(tmp_path / "gone.pt")


def test_no_more_values_are_handed_out_than_there_are() -> None:
    flat = InFiles(torch.Size([4]), torch.float32, (stored.Run(Path("file"), 0, 4),))
    assert flat.flat(1, 2) == (stored.Run(Path("file"), 4, 2),)
    for start, count in ((-1, 2), (3, 2), (5, 0)):
        with pytest.raises(CheckpointError, match="fewer values"):
            flat.flat(start, count)
