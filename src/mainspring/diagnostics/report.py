"""What is found out about a value that is not finite."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Phase(str, enum.Enum):
    """Where in an update the first value that is not finite appeared."""

    PARAMETERS = "parameters"
    INPUTS = "inputs"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    NOT_FOUND = "not found"

    def __str__(self) -> str:
        return self.value


_WHERE = {
    Phase.PARAMETERS: "in the parameters, before the update",
    Phase.INPUTS: "in the batch",
    Phase.FORWARD: "in the forward pass",
    Phase.LOSS: "in the loss",
    Phase.BACKWARD: "in the backward pass",
}


@dataclass(frozen=True)
class Divergence:
    """Where the first value of an update that is not finite came from.

    Attributes:
        phase: Where it appeared.
        module: Qualified name of the module; empty for the model itself, and where none is to blame.
        module_class: Name of its class; empty where no module is to blame.
        tensor: Which tensor: "weight", "pixel_values", "output[0]", "gradient of input[0]".
        value: "nan", "inf" or "-inf"; empty where nothing was found.
        micro_batch: Number of the micro-batch within the update, from 0; None where it does not matter.
        row: Number of the sample within the micro-batch, from 0; None where it could not be told.
        abs_max: The largest finite magnitude of what went into the module: in the backward pass, of the gradients of
            its outputs. None where nothing did.
        why_not: Why nothing was found.
    """

    phase: Phase
    module: str = ""
    module_class: str = ""
    tensor: str = ""
    value: str = ""
    micro_batch: int | None = None
    row: int | None = None
    abs_max: float | None = None
    why_not: str = ""

    @classmethod
    def not_found(cls, why: str = "run again, every loss and gradient of the update is finite") -> Divergence:
        """The report that nothing could be named."""
        return cls(Phase.NOT_FOUND, why_not=why)

    @property
    def found(self) -> bool:
        """Whether the report names a place."""
        return self.phase is not Phase.NOT_FOUND

    def within(self, micro_batch: int, first_row: int) -> Divergence:
        """The report of a piece of a micro-batch, as one of that micro-batch.

        Args:
            micro_batch: Its number within the update.
            first_row: Where in it the piece begins.
        """
        return replace(self, micro_batch=micro_batch, row=None if self.row is None else first_row + self.row)

    def __str__(self) -> str:
        """A few lines for people."""
        if not self.found:
            return f"where it came from could not be found: {self.why_not}"
        lines = [f"the first value that is not finite appeared {_WHERE[self.phase]}: {self.value} in {self.tensor}"]
        if self.module_class:
            lines.append(f"  module: {self.module or 'the model itself'} ({self.module_class})")
        if self.micro_batch is not None:
            sample = "could not be told" if self.row is None else f"row {self.row}"
            lines.append(f"  sample: {sample} of micro-batch {self.micro_batch}")
        if self.abs_max is not None:
            lines.append(f"  largest magnitude that went in: {self.abs_max:.4g}")
        return "\n".join(lines)
