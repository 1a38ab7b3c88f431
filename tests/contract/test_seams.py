"""A subclass that overrides a method changes what the Trainer does: in every method, in both generations' signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.seam_probes import PROBES, Probe
from tests.contract.seams import SETTINGS, Outcome, changed, run
from tests.helpers.sides import SUBJECT


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of each setting without a probe, run once."""
    known: dict[str, Outcome] = {}

    def outcome(setting: str) -> Outcome:
        if setting not in known:
            known[setting], _ = run(SUBJECT, None, SETTINGS[setting], tmp_path_factory.mktemp(setting))
        return known[setting]

    return outcome


def _probe(probe: type[Probe]) -> Any:
    beyond = probe.first_generation and SUBJECT.is_reference
    reason = "the newest reference no longer calls this signature"
    return pytest.param(probe, id=probe.__name__, marks=[pytest.mark.skip(reason=reason)] if beyond else [])


@pytest.mark.parametrize("probe", [_probe(probe) for probe in PROBES])
def test_override_is_called_and_changes_the_result(probe: type[Probe], plain: Any, tmp_path: Path) -> None:
    """The probe was hit, and the parts of the outcome that it touches differ from the plain Trainer's."""
    outcome, hits = run(SUBJECT, probe, SETTINGS[probe.setting], tmp_path)
    assert hits
    assert set(probe.changes) <= changed(plain(probe.setting), outcome)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_probe_that_does_nothing_changes_nothing(setting: str, plain: Any, tmp_path: Path) -> None:
    """Two plain runs are equal in every part: what the test above sees changing is the probe's doing."""
    outcome, _ = run(SUBJECT, None, SETTINGS[setting], tmp_path)
    assert changed(plain(setting), outcome) == set()


def test_every_setting_is_used() -> None:
    """A setting without a probe is left over."""
    assert {probe.setting for probe in PROBES} | {"train"} == set(SETTINGS)
