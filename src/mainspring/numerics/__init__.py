"""Numbers that go wrong: losses and gradients that are not finite, and losses that jump.

* `counts`: how many updates since the last log were such; nothing is read from the device before a log.
* `spikes`: the running mean and deviation of the loss, and what lies far above.
* `decision`: whether an update is made, left out, gone back from, or ends the run; alike on all processes.
* `buffers`: what a forward pass changes in a model, put back where its update is left out.
* `snapshot`: a copy of all that is trained, some updates ago.
* `guard`: decides on each update of a run, and takes back those that are not made.
* `watch`: what goes along with a run: the counts, and the guard where one is asked for.
* `events`: what is told and written down of an update that was not made.
* `parameters`: models that cannot be trained from the start.
"""

from mainspring.numerics.counts import Counted, UpdateCounts
from mainspring.numerics.decision import Action, Decision
from mainspring.numerics.events import EVENTS_NAME, Event, Found, describe, explained, gone_back, write_event
from mainspring.numerics.guard import Counters, Guard, refuse_run
from mainspring.numerics.parameters import nonfinite_parameters, refuse_nonfinite, refuse_untrainable
from mainspring.numerics.snapshot import Subject
from mainspring.numerics.watch import Numerics

__all__ = [
    "EVENTS_NAME",
    "Action",
    "Counted",
    "Counters",
    "Decision",
    "Event",
    "Found",
    "Guard",
    "Numerics",
    "Subject",
    "UpdateCounts",
    "describe",
    "explained",
    "gone_back",
    "nonfinite_parameters",
    "refuse_nonfinite",
    "refuse_run",
    "refuse_untrainable",
    "write_event",
]
