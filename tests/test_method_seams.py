"""Overrides in either generation's signature are called with what they take."""

from __future__ import annotations

from typing import Any

import pytest

from mainspring.seams import adapt, takes

NEWEST = ("model", "inputs", "num_items_in_batch")


class Subject:
    def newest(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        return model, inputs, num_items_in_batch

    def older(self, model: Any, inputs: Any) -> Any:
        return model, inputs

    def own_names(self, net: Any, batch: Any) -> Any:
        return net, batch

    def chosen_by_name(self, inputs: Any, num_items_in_batch: Any) -> Any:
        return inputs, num_items_in_batch

    def anything(self, *args: Any) -> Any:
        return args

    def keywords(self, **kwargs: Any) -> Any:
        return kwargs

    def nothing(self) -> str:
        return "called"


def test_a_method_that_takes_everything_is_called_directly() -> None:
    subject = Subject()
    assert adapt(subject.newest, NEWEST) == subject.newest
    assert adapt(subject.anything, NEWEST)(1, 2, 3) == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("older", (1, 2)),
        ("own_names", (1, 2)),
        ("chosen_by_name", (2, 3)),
        ("keywords", {"model": 1, "inputs": 2, "num_items_in_batch": 3}),
        ("nothing", "called"),
    ],
)
def test_what_a_method_does_not_take_is_left_out(name: str, expected: Any) -> None:
    assert adapt(getattr(Subject(), name), NEWEST)(1, 2, 3) == expected


def test_a_keyword_is_taken_by_name_or_among_others() -> None:
    subject = Subject()
    assert takes(subject.newest, "num_items_in_batch")
    assert takes(subject.keywords, "num_items_in_batch")
    assert not takes(subject.older, "num_items_in_batch")
