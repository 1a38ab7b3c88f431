"""What of the library's own cannot be beside DeepSpeed: its answers to the questions that are asked of every engine."""

from __future__ import annotations

from mainspring.arguments.deepspeed import DeepSpeedSettings
from mainspring.engines.processes import Processes


class Answers(Processes):
    """Why DeepSpeed's engine cannot do what others can.

    Attributes:
        settings: The configuration.
    """

    settings: DeepSpeedSettings

    def why_no_averages(self) -> str | None:
        """Stage 3 leaves nothing of a parameter where it was."""
        return self._in_pieces("there is nothing to average")

    def why_not_watched(self) -> str | None:
        """Below stage 3 the modules are whole."""
        if self.options.compiles:
            return super().why_not_watched()
        return self._in_pieces("there is nothing to look at")

    def _in_pieces(self, so: str) -> str | None:
        return f"at stage 3 DeepSpeed keeps weights in pieces, and {so}" if self.settings.stage == 3 else None

    def why_no_snapshot(self) -> str | None:
        """At every stage there is more than weights and an optimizer to be put back."""
        return f"{_OF_ITS_OWN}, of which no copy is kept to go back to"

    def why_not_rehearsed(self) -> str | None:
        """As `why_no_snapshot`."""
        return f"{_OF_ITS_OWN}, which cannot be taken back"

    def why_not_again(self) -> str | None:
        """Its hooks gather and reduce within every pass."""
        return "DeepSpeed exchanges weights or gradients within each pass, and no process can run one alone"


_OF_ITS_OWN = "DeepSpeed keeps weights, states and counts in buffers of its own"
