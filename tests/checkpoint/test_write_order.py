"""What outlives a power cut: the order in which a save reaches the disk, seen from outside the process."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.checkpoints import PRETRAINED_FILES, write_checkpoint

ROOT = Path(__file__).parents[2]
WRITES = ("write", "pwrite64", "writev", "ftruncate")
RENAMES = ("rename", "renameat", "renameat2")
CALLS = (*WRITES, *RENAMES, "fsync", "fdatasync")


@dataclass(frozen=True)
class Call:
    """One system call: its name, the paths in its arguments, and the lines of the trace where it began and ended."""

    name: str
    paths: tuple[str, ...]
    began: int
    ended: int


def calls_in(trace: str) -> list[Call]:
    """Read what `strace -f -y` wrote: a call that others overtook is in two lines."""
    calls, open_calls = [], {}
    for number, line in enumerate(trace.splitlines()):
        process, text = line.split(maxsplit=1)
        if resumed := re.match(r"<\.\.\. (\w+) resumed>", text):
            begun, began = open_calls.pop(process)
            calls.append(Call(resumed[1], _paths(begun), began, number))
        elif "<unfinished ...>" in text:
            open_calls[process] = (text, number)
        elif found := re.match(r"(\w+)\(.*\) += ", text):
            calls.append(Call(found[1], _paths(text), number, number))
    return calls


def _paths(text: str) -> tuple[str, ...]:
    name, arguments = text.split("(", 1)
    if name in RENAMES:
        return tuple(re.findall(r'"([^"]*)"', arguments))
    return tuple(re.findall(r"^\d+<([^>]*)>", arguments))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call]]:
    """A folder, and the calls of a save of `checkpoint-20` in it."""
    return traced_save(tmp_path_factory.mktemp("new"), lambda _: None)


def traced_save(root: Path, before: Callable[[Path], object]) -> tuple[Path, list[Call]]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    folder = root / "out"
    folder.mkdir()
    before(folder)
    command = ["strace", "-f", "-y", "--seccomp-bpf", "-s", "0", "-o", str(root / "trace"), "-e", ",".join(CALLS)]
    worker = [sys.executable, "-m", "tests.checkpoint.worker_saves", "once", str(folder)]
    subprocess.run([*command, *worker], cwd=ROOT, check=True, capture_output=True, timeout=300)
    inside = [call for call in calls_in((root / "trace").read_text()) if str(folder) in "".join(call.paths)]
    return folder, sorted(inside, key=lambda call: call.ended)


def flushes(calls: list[Call], path: str) -> list[Call]:
    return [call for call in calls if call.name == "fsync" and call.paths == (path,)]


pytestmark = [pytest.mark.faults, pytest.mark.slow]


def test_files_then_manifest_then_stage_then_name_then_parent(traced: tuple[Path, list[Call]]) -> None:
    folder, calls = traced
    target = str(folder / "checkpoint-20")
    (naming,) = [call for call in calls if call.name in RENAMES and call.paths[-1] == target]
    stage = naming.paths[0]
    files = [call for name in PRETRAINED_FILES for call in flushes(calls, f"{stage}/{name}")]
    assert len(files) == len(PRETRAINED_FILES)
    (manifest,) = flushes(calls, f"{stage}/manifest.json")
    (inner,) = flushes(calls, f"{stage}/adapter")
    (outer,) = flushes(calls, stage)
    (parent,) = flushes(calls, str(folder))
    sealing = [call for call in calls if call.name in WRITES and call.paths == (f"{stage}/manifest.json",)]
    writing = [call for call in calls if call.name in WRITES and call not in sealing]
    steps = [writing, files, sealing, [manifest], [inner, outer], [naming], [parent]]
    for earlier, later in itertools.pairwise(steps):
        assert earlier
        assert max(call.ended for call in earlier) < min(call.began for call in later)


def test_what_is_replaced_is_there_until_the_new_one_is_on_the_disk(tmp_path: Path) -> None:
    folder, calls = traced_save(tmp_path, lambda root: write_checkpoint(root, 20, run_id="the former"))
    target = str(folder / "checkpoint-20")
    (naming,) = [call for call in calls if call.name in RENAMES and call.paths[-1] == target]
    (leaving,) = [call for call in calls if call.name in RENAMES and call.paths[0] == target]
    flushed = [call for call in calls if call.name == "fsync" and call.paths[0].startswith(naming.paths[0])]
    assert len(flushed) == len(PRETRAINED_FILES) + 3  # the manifest and two folders
    assert max(call.ended for call in flushed) < leaving.began
    assert leaving.ended < naming.began
