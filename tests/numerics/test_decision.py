"""What all processes together say of an update."""

from __future__ import annotations

import pytest
import torch

from mainspring.numerics.decision import Verdict


def test_losses_that_a_short_format_cannot_add_up_are_finite() -> None:
    losses = [torch.tensor(40_000.0, dtype=torch.float16)] * 2
    verdict = Verdict.of(losses, torch.tensor(1.0), False, lambda own: own, 1)
    assert verdict.is_finite
    assert verdict.loss == pytest.approx(80_000.0, rel=1e-3)
