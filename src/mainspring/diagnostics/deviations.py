"""What is measured of a loss whose batch is split: a table for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplitDeviation:
    """How the gradient of a batch changes when it is split in one way.

    Attributes:
        name: "halves", "singles", "uneven".
        sizes: Samples in each micro-batch.
        deviation: The largest relative deviation of a parameter's gradient from that of the batch as a whole.
        parameter: The parameter that has it.
        scale: By how much the gradient is longer or shorter along its own direction; 1 where it is right.
    """

    name: str
    sizes: tuple[int, ...]
    deviation: float
    parameter: str
    scale: float


@dataclass(frozen=True)
class Invariance:
    """What `grad_invariance` has measured.

    Attributes:
        splits: One entry for each way of splitting.
        tolerance: Up to which deviation they count as equal.
        notes: What the measurement leaves out.
    """

    splits: tuple[SplitDeviation, ...]
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every split gives the same gradient."""
        return all(split.deviation <= self.tolerance for split in self.splits)

    def __str__(self) -> str:
        """A table, and what follows from it."""
        lines = [f"{'split':10} {'deviation':>10} {'length':>8}  worst parameter"]
        for split in self.splits:
            mark = "" if split.deviation <= self.tolerance else "  <- differs"
            sizes = "+".join(map(str, split.sizes[:6])) + ("+..." if len(split.sizes) > 6 else "")
            lines.append(
                f"{split.name:10} {split.deviation:10.2e} {split.scale:7.3f}x  {split.parameter} ({sizes}){mark}"
            )
        lines.append(
            f"the gradient does not depend on the split, up to {self.tolerance:g}"
            if self.ok
            else "the gradient depends on how a batch is split: so it will on gradient_accumulation_steps. A loss that is "
            "given num_items_in_batch should be a sum over items, divided by it; a mean over the micro-batch should "
            "leave it alone (in a subclass: loss_is_scaled_for_ga=False)"
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
