"""Over two processes every form of metric says what it says in one, and predictions are those of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.sides import SUBJECT

pytest.importorskip("torchmetrics")

from tests.distributed import worker_evaluation_forms
from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_evaluation_forms import METRICS, SIZES

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own forms of metrics"),
]

Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("forms")
    forked("tests.distributed.worker_evaluation_forms", str(out), timeout=240)
    return out


@pytest.fixture(scope="module")
def shared(folder: Path) -> list[Found]:
    """What each rank found."""
    return [json.loads((folder / f"forms-rank{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process found."""
    out = tmp_path_factory.mktemp("alone")
    worker_evaluation_forms.main(out)
    found: Found = json.loads((out / "forms-rank0.json").read_text())
    return found


def without_clock(metrics: Found) -> Found:
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "second", "_time"))}


@pytest.mark.parametrize("compat", ["none", "5"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_are_those_of_one_process(
    metric: str, size: str, compat: str, shared: list[Found], alone: Found
) -> None:
    case = f"{metric}, {size}, {compat}"
    wanted = without_clock(alone[case])
    if compat == "5":
        del wanted["eval_loss"]  # there, what fills the last batch up counts in its mean
    for found in (without_clock(rank[case]) for rank in shared):
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("size", SIZES)
def test_predictions_are_those_of_one_process(size: str, shared: list[Found], alone: Found) -> None:
    for found in shared:
        assert np.allclose(found[f"predictions, {size}"], alone[f"predictions, {size}"])
        logits, names = found[f"objects, {size}"]
        assert np.allclose(logits, alone[f"objects, {size}"][0])
        assert names == [f"row {index}" for index in range(SIZES[size])]


@pytest.mark.parametrize("size", SIZES)
def test_files_are_written_once_and_metrics_come_all_the_same(
    size: str, folder: Path, shared: list[Found], alone: Found
) -> None:
    table = pytest.importorskip("pyarrow.parquet").read_table(folder / f"p {size}.parquet")
    wanted = np.asarray(alone[f"predictions, {size}"], dtype=np.float32)
    assert np.allclose(np.load(folder / f"p {size}.npy"), wanted)
    assert np.load(folder / f"p {size}.labels.npy").tolist() == table["labels"].to_pylist() == [*range(SIZES[size])]
    assert np.allclose(np.asarray(table["predictions"].to_pylist(), dtype=np.float32), wanted)
    for rank in shared:
        for suffix in ("npy", "parquet"):
            assert rank[f"{suffix}, {size}"]["test_rows"] == SIZES[size]
    assert not list(folder.glob("*.partial"))
