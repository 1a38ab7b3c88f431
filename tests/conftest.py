"""One thread and no network for every test: no result depends on the number of cores, and nothing is fetched.

Property tests try the same examples in every run, however long one takes.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

# A shell that starts the suite in the background leaves Ctrl-C ignored in it, and a run leaves alone what is ignored: the
# tests that send one would train on.
signal.signal(signal.SIGINT, signal.default_int_handler)

for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}.items():
    os.environ.setdefault(_name, _value)

import pytest  # noqa: E402 - the variables above must be set before anything imports torch
from hypothesis import HealthCheck, settings  # noqa: E402

# A machine with much else to do may take long over an example, or over drawing one: that says nothing of the code.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """A run sets the level of the whole library: it ends with its test."""
    library = logging.getLogger("mainspring")
    before = library.level or logging.WARNING
    yield
    library.setLevel(before)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums over one thread have one order: two runs of the same kernels agree bit for bit."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
