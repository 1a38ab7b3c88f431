"""The table of option sets whose numbers must equal the reference's. One row a feature; `off` takes it away."""

from __future__ import annotations

from tests.parity.cases import collators, inputs, optimisation, reporting, saving
from tests.parity.harness import Case

CASES: tuple[Case, ...] = (
    *optimisation.accumulation(),
    *optimisation.schedules(),
    *optimisation.duration(),
    *optimisation.optimisation(),
    *optimisation.precision(),
    *inputs.randomness(),
    *inputs.inputs(),
    *collators.collating(),
    *reporting.reporting(),
    *reporting.evaluation(),
    *saving.saving(),
)
