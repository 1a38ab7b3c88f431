"""Two processes over gloo: every `ddp_*` option does what it says, and what compresses gradients survives a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_ddp_options import CASES, TIMEOUT, UPDATES
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own engine"),
]

Find = Callable[..., Any]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """`find(case, rank=0)`: what a process found in a case. One launch for all tests."""
    out: Path = tmp_path_factory.mktemp("ddp_options")
    forked("tests.distributed.worker_ddp_options", str(out))

    def load(case: str, rank: int = 0) -> Any:
        return torch.load(out / f"{case}-rank{rank}.pt", weights_only=False)

    return load


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


TRAINED = [case.__name__ for case in CASES if case.__name__ != "unused_is_not_looked_for"]


@pytest.mark.parametrize("case", TRAINED)
def test_the_processes_train_one_model(case: str, find: Find) -> None:
    first, second = (find(case, rank) for rank in range(PROCESSES))
    for found in (first, second):
        assert (found["world"], found["wrapper"]) == (PROCESSES, "DistributedDataParallel")
    assert _equal(first["weights"], second["weights"])


def test_the_group_is_the_one_that_was_asked_for(find: Find) -> None:
    assert (find("plain")["backend"], find("plain")["timeout"]) == ("gloo", TIMEOUT)


def test_defaults_are_torchs_but_for_unused_parameters(find: Find) -> None:
    found = find("plain")
    assert found["find_unused_parameters"] is True
    assert found["broadcast_buffers"] is True
    assert found["static_graph"] is False
    assert found["gradient_as_bucket_view"] is False
    assert found["bucket_bytes_cap"] == 25 * 1024 * 1024
    assert found["hooks"] == []


def test_unused_parameters_are_found_unless_told_not_to_look(find: Find) -> None:
    assert len(find("unused_is_found")["weights"]) == len(find("plain")["weights"])
    assert "parameters that were not used in producing loss" in find("unused_is_not_looked_for")["error"]


def test_a_static_graph_needs_no_search(find: Find) -> None:
    found = find("static_graph")
    assert (found["static_graph"], found["find_unused_parameters"]) == (True, False)
    assert not [text for text in found["warnings"] if "static_graph" in text]
    assert _equal(found["weights"], find("unused_is_found")["weights"])


def test_a_static_graph_may_be_accumulated_in(find: Find) -> None:
    """From the first micro-batch on, of which torch wants the sum."""
    found, plain = find("accumulated_static"), find("accumulated")
    assert found["static_graph"] is True
    torch.testing.assert_close(found["weights"], plain["weights"])
    torch.testing.assert_close(found["rounded"], plain["weights"], atol=2e-3, rtol=2e-3)


def test_buckets_have_the_size_that_was_asked_for(find: Find) -> None:
    assert find("buckets")["bucket_bytes_cap"] == 3 * 1024 * 1024


def test_buffers_are_the_first_processs_unless_told_otherwise(find: Find) -> None:
    """A buffer sums each process's inputs; it is sent round at the start of a forward pass, the last batch comes after."""
    own = [find("own_buffers", rank)["seen"] for rank in range(PROCESSES)]
    shared = [find("plain", rank)["seen"] for rank in range(PROCESSES)]
    assert find("own_buffers")["broadcast_buffers"] is False
    assert torch.equal(own[0], shared[0])
    assert not torch.equal(own[1], shared[1])


def test_the_first_processs_buffers_are_evaluated_as_they_are_saved(find: Find) -> None:
    ended, evaluated = (
        [find("evaluated_buffers", rank)[when] for rank in range(PROCESSES)] for when in ("seen", "evaluated")
    )
    assert not torch.equal(ended[0], ended[1])
    assert torch.equal(evaluated[0], ended[0])
    assert torch.equal(evaluated[1], ended[0])


def test_the_first_processs_weights_are_everybodys_start(find: Find) -> None:
    assert _equal(find("other_start")["weights"], find("plain")["weights"])


def test_a_compiled_model_trains_to_the_same_weights(find: Find) -> None:
    found = find("compiled")
    assert found["inside"] == "OptimizedModule"
    torch.testing.assert_close(found["weights"], find("plain")["weights"])


@pytest.mark.parametrize("case", ["without_logits", "compiled_without_logits"])
def test_a_loss_without_logits_is_the_same(case: str, find: Find) -> None:
    found, plain = find(case), find("with_logits")
    assert found["inside"] == ("OptimizedModule" if case.startswith("compiled") else "GPT2LMHeadModel")
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert found["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("case", "hook", "dtype", "tolerance"),
    [("half", "fp16_compress_hook", torch.float16, 2e-3), ("bfloat16", "_bfloat16", torch.bfloat16, 2e-2)],
)
def test_gradients_travel_rounded(case: str, hook: str, dtype: torch.dtype, tolerance: float, find: Find) -> None:
    found, plain = find(case), find("plain")
    assert found["hooks"] == [hook]
    assert all(torch.equal(gradient, gradient.to(dtype).float()) for gradient in found["gradients"])
    assert not all(torch.equal(gradient, gradient.to(dtype).float()) for gradient in plain["gradients"])
    torch.testing.assert_close(found["weights"], plain["weights"], atol=tolerance, rtol=tolerance)


def test_accelerates_keywords_are_heeded(find: Find) -> None:
    found = find("keywords")
    assert found["gradient_as_bucket_view"] is True
    assert found["bucket_bytes_cap"] == 2 * 1024 * 1024
    assert found["hooks"] == ["fp16_compress_hook"]
    assert (
        "ddp_comm_hook='bf16': the accelerator's DistributedDataParallelKwargs have a comm_hook too" in found["error"]
    )


def test_low_ranks_are_learned_from(find: Find) -> None:
    found = find("low_rank")
    assert found["hooks"] == ["_low_rank"]
    # The layer between has the only gradients that are large enough to be compressed: to matrices of rank 1.
    ranks = [
        torch.linalg.matrix_rank(gradient, rtol=1e-4).item() for gradient in found["gradients"] if gradient.dim() == 2
    ]
    assert ranks[1] == 1
    assert not _equal(found["weights"], find("plain")["weights"])


def test_what_rounding_lost_is_in_the_checkpoint(find: Find) -> None:
    """Stopped and resumed, to the same bits on every process."""
    for rank in range(PROCESSES):
        found = find("low_rank", rank)
        assert found["files"] == ["comm_hook_0.pt", "comm_hook_1.pt"]
        assert found["sums"] == UPDATES
        assert (found["buckets"], found["waiting"]) == (1, 0)
        assert _equal(found["resumed"], found["weights"])


def test_memory_waits_for_the_buckets_it_belongs_to(find: Find) -> None:
    """The first sums after a resume are of other buckets, and travel whole; then every bucket has its memory again."""
    for rank in range(PROCESSES):
        found = find("low_rank_of_rebuilt_buckets", rank)
        assert found["buckets"] > 1
        assert found["waiting"] == 0
        assert not [text for text in found["messages"] if "forgotten" in text or "afresh" in text]
        torch.testing.assert_close(found["resumed"], found["weights"], atol=1e-4, rtol=1e-3)
