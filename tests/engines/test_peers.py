"""What two readings of the lines that the ranks write come to in words."""

from __future__ import annotations

import pytest

from mainspring.engines.peers import Line, _in_words

SILENT = Line("1", "in", "training, update 7")
LOST = Line("2", "lost", "training, update 8")


def moving(beat: int, phase: str = "training, update 8") -> Line:
    return Line(str(beat), "in", phase)


def test_who_stopped_writing_is_not_heard_of() -> None:
    told = _in_words({1: SILENT, 2: moving(1)}, {1: SILENT, 2: moving(2)})
    assert told == "rank 1 is not heard of any more (the last time it was in training, update 7)"


def test_an_error_of_ones_own_is_named() -> None:
    left = Line("9", "left", "ValueError: no such file (in evaluation after update 2)")
    told = _in_words({3: moving(1), 4: LOST}, {3: left, 4: LOST})
    assert told == "rank 3 left with ValueError: no such file (in evaluation after update 2)"


def test_who_has_ended_is_the_cause_for_those_who_have_not() -> None:
    assert _in_words({0: moving(1)}, {0: Line("5", "ended", "train()")}) == "rank 0 has ended train()"


def test_who_never_came_is_said() -> None:
    assert _in_words({1: None}, {1: None}) == "rank 1 has never been heard of"


def test_without_a_cause_it_says_where_all_are() -> None:
    """As where one rank evaluates while the others train."""
    elsewhere = "evaluation after update 8"
    told = _in_words({1: moving(1), 2: LOST}, {1: moving(2, elsewhere), 2: LOST})
    assert told == "rank 2 lost the others, too, in training, update 8; rank 1 is in evaluation after update 8"


@pytest.mark.parametrize(("ranks", "more"), [(8, ""), (9, "; and so on for 1 more"), (512, "; and so on for 504 more")])
def test_a_large_job_is_cut_short(ranks: int, more: str) -> None:
    lines: dict[int, Line | None] = dict.fromkeys(range(1, ranks + 1), SILENT)
    told = _in_words(lines, lines)
    assert told.count("is not heard of any more") == 8
    assert told.endswith(f"rank 8 is not heard of any more (the last time it was in training, update 7){more}")
