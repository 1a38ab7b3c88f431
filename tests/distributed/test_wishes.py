"""What a callback of one rank asks for, all ranks do; what one rank measures, all go by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.worker_wishes import AT, EVENTS, WISHES, collect, wished
from tests.helpers import ranks
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own engines"),
]

DOES = {
    "should_epoch_stop": "on_epoch_end",
    "should_save": "on_save",
    "should_evaluate": "on_evaluate",
    "should_log": "on_log",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks saw."""
    folder = tmp_path_factory.mktemp("wishes")
    ended = ranks.run(folder / "printed", collect, folder, timeout=240)
    assert [one.status for one in ended] == [0, 0], ended[0].text[-3000:] + ended[1].text[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def seen(found: list[dict[str, Any]], event: str, flag: str, by: str) -> dict[str, Any]:
    """What happened in a run, the same on both ranks."""
    first, second = (rank[f"{event} {flag} {by}"] for rank in found)
    assert (first["kind"], first["world"]) == ("ddp", 2)
    assert first == second
    return first


of_each = pytest.mark.parametrize(("event", "flag"), [(event, flag) for event in EVENTS for flag in WISHES])


@of_each
def test_what_all_want_is_done_as_by_one_process(
    event: str, flag: str, found: list[dict[str, Any]], tmp_path: Path
) -> None:
    """In the very same update, with the same events."""
    together = seen(found, event, flag, "all")
    alone = wished(tmp_path, event, flag, "all", per_device_train_batch_size=8)
    assert (together["step"], together["noted"]) == (alone["step"], [list(one) for one in alone["noted"]])


@of_each
@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_wants_all_do_an_update_later(event: str, flag: str, rank: int, found: list[dict[str, Any]]) -> None:
    run = seen(found, event, flag, f"rank {rank}")
    if flag == "should_training_stop":
        assert run["step"] == AT + 1
    else:
        assert [DOES[flag], AT + 1] in run["noted"]
        assert run["step"] == (8 if flag == "should_epoch_stop" else 9)


def test_one_checkpoint_is_everybodys_best(found: list[dict[str, Any]]) -> None:
    first, second = (rank["best"] for rank in found)
    assert first == second
    assert first["best"] == "checkpoint-9"


def test_an_error_that_cannot_be_rebuilt_is_told_all_the_same(found: list[dict[str, Any]]) -> None:
    message = "metric: no such thing"
    assert [rank["failing"] for rank in found] == [
        ["CannotTravelError", message],
        ["RuntimeError", f"CannotTravelError: {message}"],
    ]
