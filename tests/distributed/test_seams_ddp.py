"""The seam table under two processes: every override is called and changes the result there, too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.seam_probes import PROBES, Probe
from tests.distributed.launch import PROCESSES, forked
from tests.helpers.sides import SUBJECT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process wrote down; one launch serves all tests."""
    out = tmp_path_factory.mktemp("seams")
    forked("tests.distributed.worker_seams", str(out))
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(PROCESSES)]


def _probe(probe: type[Probe]) -> Any:
    beyond = probe.first_generation and SUBJECT.is_reference
    reason = "the newest reference no longer calls this signature"
    return pytest.param(probe, id=probe.__name__, marks=[pytest.mark.skip(reason=reason)] if beyond else [])


@pytest.mark.parametrize("probe", [_probe(probe) for probe in PROBES])
def test_override_is_called_and_changes_the_result(probe: type[Probe], ranks: list[dict[str, Any]]) -> None:
    """On every process, and the result as the first process sees it differs from the plain Trainer's."""
    results = [rank[probe.__name__] for rank in ranks]
    assert [result["error"] for result in results] == [""] * PROCESSES
    assert set(probe.changes) <= set(results[0]["changed"])
    assert all(result["hits"] for result in results)
