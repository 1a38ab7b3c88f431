from __future__ import annotations

import collections
import copyreg
import datetime as dt
import fractions
import io
import itertools
import logging
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import nn

from mainspring.checkpoint.opcodes import MalformedPickleError, Scan
from mainspring.checkpoint.pickles import dangerous_globals, refuse, scan_folder
from mainspring.errors import CheckpointError
from mainspring.seeding import capture_rng
from tests.checkpoint import payloads

Payload = Callable[[Path], bytes]


@pytest.fixture(autouse=True)
def _extension() -> Iterator[None]:
    copyreg.add_extension("os", "mkdir", payloads.EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", payloads.EXTENSION)


def states() -> dict[str, Any]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return {
        "optimizer.pt": optimizer.state_dict(),
        "scheduler.pt": scheduler.state_dict(),
        "scaler.pt": torch.amp.GradScaler("cpu").state_dict(),
        "rng_state.pth": capture_rng(distributed=False),
        "pytorch_model.bin": model.state_dict(),
        "parameters.pt": list(model.parameters()),
        "kinds.pt": {
            "half": torch.ones(2, dtype=torch.bfloat16),
            "sparse": torch.eye(3).to_sparse(),
            "odd": (torch.float16, torch.device("cpu"), torch.Size([2]), {1, 2}, 1j, b"bytes", bytearray(b"more")),
            "view": torch.arange(10)[2:5],
        },
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-3"
    (folder / "mine").mkdir(parents=True)
    for name, state in states().items():
        torch.save(state, folder / name)
        torch.save(state, folder / "mine" / name, _use_new_zipfile_serialization=False)
    save_file({"w": torch.ones(3)}, folder / "model.safetensors")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    (folder / "vocab.txt").write_text("class\ninstance\n(\nis\nread\nR\n.\n")
    (folder / "merges.txt").write_text("#version: 0.2\nI n\n")
    (folder / "empty.pt").write_bytes(b"")
    return folder


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---- what is refused ----


@pytest.mark.parametrize("payload", payloads.PAYLOADS)
@pytest.mark.parametrize("form", payloads.FORMS)
def test_what_would_execute_is_found_and_not_executed(
    tmp_path: Path, payload: Payload, form: Callable[[bytes, Path], None]
) -> None:
    canary, file = tmp_path / "executed", tmp_path / "optim_states.pt"
    pickled = payload(canary)
    form(pickled, file)
    assert dangerous_globals(file)
    with pytest.raises(
        CheckpointError, match=r"optim_states\.pt was refused, and nothing in it was executed: it holds "
    ):
        refuse(file)
    assert not canary.exists()
    payloads.load_without_care(pickled, file)
    assert canary.exists()  # or this test would show nothing


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (payloads.by_global, ["os.mkdir"]),
        (payloads.by_inst, ["os.mkdir"]),
        (payloads.by_name_of_python_2, ["builtins.eval"]),
        (payloads.by_memo, ["os.mkdir"]),
        (payloads.by_overwritten_memo, ["os.mkdir"]),
        (payloads.by_dotted_name, ["torch.os.mkdir"]),
        (payloads.by_torch_load, ["torch.storage._load_from_bytes"]),
        (payloads.by_partial, ["functools.partial", "os.mkdir", "a call of something that it computes"]),
        (payloads.by_computed_name, ["a name that it computes", "a call of something that it computes"]),
    ],
)
def test_what_was_found_is_named(tmp_path: Path, payload: Payload, found: list[str]) -> None:
    payloads.write_zip(payload(tmp_path / "executed"), tmp_path / "optimizer.pt")
    assert dangerous_globals(tmp_path / "optimizer.pt") == found


@pytest.mark.parametrize(
    "pickled",
    [
        b"cbuiltins\nset\n}b.",  # an attribute of a class or function, for everybody
        b"cbuiltins\nset\nNa.",
        b"\x80\x04\x80\x02ccollections\nOrderedDict\n.",  # the protocol changes, and with it how names are read
        b"\x80\x04ccollections\nOrdered\\x44ict\n.",  # pickletools undoes escapes that the unpickler does not
        b"\x80\x02U\x0bcollectionsU\x0bOrderedDict\x93.",  # the caller decides what these bytes are
        b"\x80\x02(ctorch\nFloatStorage\ntQ.",
        b"\x80\x02X\x06\x00\x00\x00modulecbuiltins\nset\n\x86Q.",
        b"P0\n.",
        b"\x80\x05\x97.",
        b"\x80\x06N.",
        b"R.",
        b"(R.",
        b"N1.",
        b"(o.",
        b"h\x07.",
        b"\x80\x02N",
        b"N.N.",
        b"hello",
    ],
)
def test_a_pickle_that_no_pickler_writes_is_refused(tmp_path: Path, pickled: bytes) -> None:
    (tmp_path / "optimizer.pt").write_bytes(pickled)
    assert dangerous_globals(tmp_path / "optimizer.pt")


def test_a_reference_to_what_is_no_storage_is_refused(tmp_path: Path) -> None:
    """Torch would hand back the class that it was given, as if it were an object."""
    payloads.write_legacy(b"\x80\x02(X\x06\x00\x00\x00modulecbuiltins\nset\nNNtQ.", tmp_path / "optimizer.pt")
    assert dangerous_globals(tmp_path / "optimizer.pt") == ["a reference that is not to a storage"]


def test_every_pickle_of_a_file_is_followed(tmp_path: Path) -> None:
    good = pickle.dumps(1, protocol=2)
    bad = payloads.by_global(tmp_path / "executed")
    payloads.write_legacy(pickle.dumps({}, protocol=2), tmp_path / "good.pt")
    legacy = (tmp_path / "good.pt").read_bytes()
    assert dangerous_globals(tmp_path / "good.pt") == []
    starts, rest = [0], io.BytesIO(legacy)
    while rest.tell() < len(legacy):
        pickle.load(rest)
        starts.append(rest.tell())
    assert len(starts) == 6
    for start, end in itertools.pairwise(starts[1:]):
        (tmp_path / "bad.pt").write_bytes(legacy[:start] + bad + legacy[end:])
        assert "os.mkdir" in dangerous_globals(tmp_path / "bad.pt")
    (tmp_path / "unknown").write_bytes(good + bad)
    assert dangerous_globals(tmp_path / "unknown") == ["os.mkdir"]


# ---- zip files that say one thing to one reader and another to the next ----


def a_zip(file: Path) -> bytes:
    payloads.write_zip(pickle.dumps({"a": 1}, protocol=2), file)
    assert dangerous_globals(file) == []
    return file.read_bytes()


def test_a_second_pickle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "optimizer.pt"
    for name in ("data.pkl", "DATA.PKL", "constants.pkl", "other/data.pkl"):
        writer = torch._C.PyTorchFileWriter(str(file))
        writer.write_record("data.pkl", b"N.", 2)
        writer.write_record("version", b"3\n", 2)
        writer.write_end_of_file()
        with zipfile.ZipFile(file, "a") as archive, _no_warnings():
            archive.writestr(f"optimizer/{name}", payloads.by_global(tmp_path / "executed"))
        assert dangerous_globals(file), name


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    """Torch reads such a file, though it never writes one; a small one can hold a very large pickle."""
    with zipfile.ZipFile(tmp_path / "optimizer.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("optimizer/data.pkl", b"N.")
    assert dangerous_globals(tmp_path / "optimizer.pt") == ["a pickle in another place or form than torch.save writes"]


def test_a_zip_inside_a_zip_is_refused(tmp_path: Path) -> None:
    inner = a_zip(tmp_path / "inner.pt")
    payloads.write_zip(inner, tmp_path / "optimizer.pt")
    assert dangerous_globals(tmp_path / "optimizer.pt")
    with zipfile.ZipFile(tmp_path / "scheduler.pt", "w") as archive:
        archive.write(tmp_path / "inner.pt", "inner/optimizer.pt")
    assert dangerous_globals(tmp_path / "scheduler.pt")


@pytest.mark.parametrize("end", [b"\0", b"PK\x05\x06" + 18 * b"\0", b"more"])
def test_anything_behind_a_zip_is_refused(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "optimizer.pt").write_bytes(a_zip(tmp_path / "optimizer.pt") + end)
    assert dangerous_globals(tmp_path / "optimizer.pt")


def test_a_zip_behind_another_is_refused(tmp_path: Path) -> None:
    """Some readers take the first, some the last."""
    good = a_zip(tmp_path / "optimizer.pt")
    payloads.write_zip(payloads.by_global(tmp_path / "executed"), tmp_path / "optimizer.pt")
    bad = (tmp_path / "optimizer.pt").read_bytes()
    for data in (good + bad, bad + good):
        (tmp_path / "optimizer.pt").write_bytes(data)
        assert dangerous_globals(tmp_path / "optimizer.pt")


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        (-22 + 10, "<H", 1),  # how many records, where the directory is, and how large, in the short form ...
        (-22 + 12, "<L", 46),
        (-22 + 16, "<L", 0),
        (-22 + 20, "<H", 5),  # ... the length of a comment, which nothing follows
        (-42 + 8, "<Q", 0),  # where the long form is
        (-98 + 48, "<Q", 0),  # where the directory is in the long form
    ],
)
def test_a_zip_that_contradicts_itself_is_refused(tmp_path: Path, place: int, field: str, value: int) -> None:
    data = bytearray(a_zip(tmp_path / "optimizer.pt"))
    struct.pack_into(field, data, len(data) + place, value)
    (tmp_path / "optimizer.pt").write_bytes(data)
    assert dangerous_globals(tmp_path / "optimizer.pt") == ["a zip directory that can be read in more than one way"]


def test_an_archive_that_looks_like_a_legacy_file_is_refused(tmp_path: Path) -> None:
    """Torch asks first whether a file is an archive; the name of its first record can be a row of pickles."""
    file, canary = tmp_path / "optimizer.pt", tmp_path / "executed"
    payloads.write_tar(payloads.by_global(canary), file)
    record = tarfile.TarInfo(
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + 4 * b"N.").decode("utf-8", "surrogateescape")
    )
    file.write_bytes(record.tobuf(tarfile.GNU_FORMAT, "utf-8") + file.read_bytes())
    assert dangerous_globals(file) == ["an archive of torch's oldest format"]
    assert not canary.exists()
    payloads.load_without_care(b"", file)
    assert canary.exists()


def test_every_cut_of_a_zip_is_refused(tmp_path: Path) -> None:
    whole = a_zip(tmp_path / "optimizer.pt")
    for keep in (*range(4, len(whole), 37), *range(len(whole) - 120, len(whole))):
        (tmp_path / "optimizer.pt").write_bytes(whole[:keep])
        assert dangerous_globals(tmp_path / "optimizer.pt"), keep


# ---- what is let through ----


def test_real_states_are_let_through(checkpoint: Path) -> None:
    assert scan_folder(checkpoint) == []


def test_large_states_are_let_through(tmp_path: Path) -> None:
    """More than fits into one batch of the pickler, and memo keys of four bytes."""
    torch.save({f"layer.{index}": torch.ones(1) for index in range(1200)}, tmp_path / "pytorch_model.bin")
    assert dangerous_globals(tmp_path / "pytorch_model.bin") == []


def test_what_the_user_allowed_is_let_through(tmp_path: Path) -> None:
    torch.save({"on": dt.date(2026, 1, 2)}, tmp_path / "scheduler.pt")
    assert dangerous_globals(tmp_path / "scheduler.pt") == ["datetime.date"]
    assert dangerous_globals(tmp_path / "scheduler.pt", {"datetime.date", "_codecs.encode"}) == []
    with torch.serialization.safe_globals([dt.date]):
        assert dangerous_globals(tmp_path / "scheduler.pt") == []


class Recorder(pickle.Unpickler):
    """Python's own opinion of what a pickle refers to."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.seen: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)  # which knows today's names of what Python 2 named
        self.seen.add(f"{found.__module__}.{found.__qualname__}")
        return found


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.dates(),
    st.fractions(),
    st.builds(collections.OrderedDict),
    st.sampled_from([collections.OrderedDict, fractions.Fraction, dt.date, dict]),
)
objects = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.text(), inner),
        st.dictionaries(st.text(), inner).map(collections.OrderedDict),
        st.sets(st.text()),
        inner.map(lambda one: [one, one]),
    ),
    max_leaves=30,
)


@given(objects, st.integers(0, 5))
def test_names_are_the_ones_that_the_unpickler_looks_up(obj: Any, protocol: int) -> None:
    pickled = pickle.dumps(obj, protocol)
    recorder = Recorder(pickled)
    recorder.load()
    scan = Scan(allowed=(), storages=False)
    scan.run(io.BytesIO(pickled))
    assert set(scan.dangers) == recorder.seen


@given(st.binary(max_size=60))
def test_random_bytes_end_in_an_answer(data: bytes) -> None:
    scan = Scan(allowed=(), storages=True)
    try:
        scan.run(io.BytesIO(data))
    except MalformedPickleError:
        assert not scan.finished


# ---- folders ----


@pytest.mark.parametrize("payload", [payloads.by_global, payloads.by_stack_global, payloads.by_inst])
@pytest.mark.parametrize(
    "name", ["vocab.txt", "tokenizer.json", "model.safetensors", "mine/x", "global_step3/a.pt", "a"]
)
def test_a_pickle_is_found_under_any_name(checkpoint: Path, name: str, payload: Payload) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(payload(checkpoint / "executed"))
    (reason,) = map(str, scan_folder(checkpoint))
    assert reason.startswith(f"{name} was refused, and nothing in it was executed: it holds ")


def test_a_pickle_without_an_end_is_found(checkpoint: Path) -> None:
    (checkpoint / "vocab.txt").write_bytes(payloads.before_its_end(checkpoint / "executed"))
    (reason,) = map(str, scan_folder(checkpoint))
    assert reason.startswith("vocab.txt was refused")


def test_a_pickle_behind_a_link_is_found(checkpoint: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "states.pt").write_bytes(payloads.by_global(tmp_path / "executed"))
    (checkpoint / "global_step3").symlink_to(outside)
    (outside / "back").symlink_to(outside)
    (reason,) = map(str, scan_folder(checkpoint))
    assert reason.startswith("global_step3/states.pt was refused")


def test_the_references_arguments_are_passed_over(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    (checkpoint / "training_args.bin").write_bytes(payloads.by_global(checkpoint / "executed"))
    caplog.set_level(logging.INFO, "mainspring")
    assert scan_folder(checkpoint) == []
    assert "training_args.bin is not looked into: it is never read" in caplog.text


# ---- distributed checkpoints of torch ----


@pytest.fixture
def distributed(tmp_path: Path) -> Path:
    folder = tmp_path / "pytorch_model_fsdp_0"
    state = {
        "w": torch.ones(3, 4),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "step": 3,
        "nested": {"list": [torch.ones(2), 5]},
        "groups": [{"lr": 0.1, "params": [0, 1]}],
    }
    with _no_warnings():
        dcp.save(state, checkpoint_id=folder)
    return folder


def test_a_distributed_checkpoint_is_let_through(distributed: Path) -> None:
    assert dangerous_globals(distributed / ".metadata") == []
    assert scan_folder(distributed.parent) == []


@pytest.mark.parametrize("payload", payloads.PAYLOADS)
def test_malicious_metadata_is_refused(distributed: Path, tmp_path: Path, payload: Payload) -> None:
    (distributed / ".metadata").write_bytes(payload(tmp_path / "executed"))
    (reason,) = map(str, scan_folder(tmp_path))
    assert reason.startswith("pytorch_model_fsdp_0/.metadata was refused")
    assert not (tmp_path / "executed").exists()


def test_metadata_may_not_refer_to_what_state_files_may(distributed: Path) -> None:
    (distributed / ".metadata").write_bytes(pickle.dumps(torch.ones(1)))
    assert any("torch._utils._rebuild_tensor_v2" in str(reason) for reason in scan_folder(distributed))


def test_metadata_of_another_make_is_refused(distributed: Path) -> None:
    (distributed / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    (reason,) = map(str, scan_folder(distributed))
    assert reason.startswith(".metadata was refused")


def rewrite(distributed: Path, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads((distributed / ".metadata").read_bytes())
    change(metadata)
    (distributed / ".metadata").write_bytes(pickle.dumps(metadata))


def entry(metadata: Any, name: str) -> Any:
    (place,) = [place for index, place in metadata.storage_data.items() if index.fqn == name]
    return place


def test_a_malicious_entry_of_a_shard_is_refused(distributed: Path, tmp_path: Path) -> None:
    """The metadata says where it stands, so it can stand in the middle of a tensor."""
    shard = distributed / "__0_0.distcp"
    payloads.write_zip(payloads.by_global(tmp_path / "executed"), tmp_path / "bad.pt")
    bad = (tmp_path / "bad.pt").read_bytes()
    offset = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + bad)

    def change(metadata: Any) -> None:
        entry(metadata, "step").offset, entry(metadata, "step").length = offset, len(bad)

    rewrite(distributed, change)
    (reason,) = map(str, scan_folder(distributed))
    assert reason.startswith("__0_0.distcp was refused, and nothing in it was executed: it holds ")


@pytest.mark.parametrize("change", [{"relative_path": "../other.pt"}, {"transform_descriptors": ["zstd"]}])
def test_an_entry_that_cannot_be_judged_is_refused(distributed: Path, change: dict[str, Any]) -> None:
    rewrite(distributed, lambda metadata: vars(entry(metadata, "step")).update(change))
    (reason,) = map(str, scan_folder(distributed))
    assert reason.startswith(".metadata was refused")
    assert "it holds an entry that is not to be had beside it as it is (step)" in reason
