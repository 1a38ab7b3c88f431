"""Each case of the table gives the reference's numbers, and would notice if its feature were missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.sides import REFERENCE, SUBJECT
from tests.parity.cases import CASES
from tests.parity.harness import Case, differences, run

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_numbers_equal_the_references(case: Case, tmp_path: Path) -> None:
    """Logs, state, weights, checkpoints and random stream agree; with its feature switched off they do not."""
    expected = run(REFERENCE, case, tmp_path / "reference")
    actual = run(SUBJECT, case, tmp_path / "subject")
    assert differences(expected, actual, case.tolerance) == []
    if case.off:
        other = run(REFERENCE, case.without_its_feature(), tmp_path / "off")
        assert differences(expected, other, case.tolerance), "the case does not depend on the feature that it is about"
