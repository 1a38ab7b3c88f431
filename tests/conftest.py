"""One thread and no network for every test: no result depends on the number of cores, and nothing is fetched.

Property tests try the same examples in every run, however long one takes.
"""

from __future__ import annotations

import gc
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


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_not_searched() -> None:
    """What lives when a module begins lives on: collections of garbage need not go through all of it each time.

    These are the tests themselves and whatever was imported, a million objects; a run may collect a dozen times.
    """
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that need minutes of a compiler first are asked for."""
    parser.addoption("--nvme", action="store_true", help="also run tests marked nvme, as `make test-nvme` does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip them otherwise, whatever -m says; several workers take files with long tests first, lest one begins at the end."""
    if not config.getoption("--nvme"):
        _skip_nvme(items)
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if {"slow", "distributed"} & {mark.name for mark in item.iter_markers()}}
        items.sort(key=lambda item: item.path not in long)


def _skip_nvme(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("nvme"):
            item.add_marker(pytest.mark.skip(reason="needs --nvme: make test-nvme"))


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
