"""Names that are still to come."""

from __future__ import annotations

import pytest

from mainspring.absent import not_available_yet


def test_a_name_to_come_is_told_from_an_unknown_one() -> None:
    refuse = not_available_yet("package.door", "Later", "later_too")
    for name in ("Later", "later_too"):
        with pytest.raises(ImportError, match=f"^{name} is not available yet in package.door$") as caught:
            refuse(name)
        assert caught.value.name == "package.door"
    with pytest.raises(AttributeError, match=r"'package\.door' has no attribute 'Latter'"):
        refuse("Latter")
