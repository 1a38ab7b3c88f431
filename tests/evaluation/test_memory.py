"""What a process grows by while 128 MB of logits go through an evaluation. Bounds are far from what is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation import memory_worker

ROOT = Path(__file__).resolve().parents[2]
LOGITS_MIB = memory_worker.ROWS * memory_worker.CLASSES * 4 / 2**20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux"),
]


def growth(how: str, folder: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.memory_worker", how, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["streaming", "loss"])
def test_nothing_grows_where_nothing_is_kept(how: str, tmp_path: Path) -> None:
    assert growth(how, tmp_path) < LOGITS_MIB / 4


@pytest.mark.parametrize("how", ["file", "npy", "parquet"])
def test_files_take_what_would_not_fit(how: str, tmp_path: Path) -> None:
    if how == "parquet":
        pytest.importorskip("pyarrow")
    assert growth(how, tmp_path) < 0.8 * LOGITS_MIB


def test_what_is_kept_in_memory_is_there_once(tmp_path: Path) -> None:
    """Neither twice, as joining would have it, nor less: else the other tests would measure nothing."""
    assert 0.9 * LOGITS_MIB < growth("all", tmp_path) < 1.6 * LOGITS_MIB
