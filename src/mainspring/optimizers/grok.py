"""GrokAdamW: AdamW that amplifies the slow part of the gradients."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, read_options


@contextlib.contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """Importing grokadamw sets up logging for the whole process, which is for programs to decide."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


with _logging_as_it_is():
    from grokadamw import GrokAdamW


def grokadamw(request: OptimizerRequest) -> OptimizerSpec:
    """`grokadamw.GrokAdamW`, after Lee et al., *Grokfast*, https://arxiv.org/abs/2405.20233."""
    given = read_options(
        request, alpha_init=float, lamb=float, gamma=float, grokking_signal_decay_rate=float, gradient_clipping=float
    )
    own = {"alpha_init": 0.98, "lamb": 2.0, "gamma": 0.1, "grokking_signal_decay_rate": 0.1, "gradient_clipping": 1.0}
    return GrokAdamW, {**request.adam_where_complete, **own, **given}
