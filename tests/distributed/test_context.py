"""Context parallelism on two GPUs: the numbers of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.divided_models import numbers, trainer
from tests.distributed.launch import torchrun
from tests.distributed.worker_context import RUN

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="ring attention needs two GPUs"),
]


def test_two_processes_that_share_sequences_train_as_one(tmp_path: Path) -> None:
    """Losses and norms of the gradients, up to what bf16 rounds."""
    torchrun("tests.distributed.worker_context", str(tmp_path))
    alone = trainer(RUN, tmp_path / "alone", alone=True)
    alone.train()
    for rank in range(2):
        facts = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert (facts["sizes"], facts["data"]) == (2, 1)
        for here, there in zip(numbers(alone), facts["logs"], strict=True):
            assert there == pytest.approx(here, rel=RUN.tolerance)
