"""Leaving out the columns that a model does not take."""

from __future__ import annotations

import copy
import logging

import pytest

from mainspring.data.collators import RemoveColumnsCollator


def test_keeps_the_columns_of_the_signature() -> None:
    samples = [{"x": 1, "text": "a"}, {"x": 2, "text": "b"}]
    before = copy.deepcopy(samples)
    assert RemoveColumnsCollator(list, ["x", "y"])(samples) == [{"x": 1}, {"x": 2}]
    assert samples == before


def test_other_samples_pass() -> None:
    samples = [(1, 2), "text"]
    assert RemoveColumnsCollator(list, ["x"])(samples) == samples


def test_tells_once_what_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test_columns")
    collate = RemoveColumnsCollator(list, ["x"], logger=logger, model_name="Net", description="evaluation")
    with caplog.at_level(logging.INFO, logger="test_columns"):
        collate([{"x": 1, "text": "a"}] * 3)
        collate([{"x": 1, "text": "a"}])
    assert len(caplog.records) == 1
    assert "evaluation set" in caplog.text
    assert "text" in caplog.text


def test_nothing_left_is_refused() -> None:
    collate = RemoveColumnsCollator(list, ["x"], model_name="Net")
    with pytest.raises(ValueError, match=r"remove_unused_columns=True.*text.*Net\.forward takes x"):
        collate([{"text": "a"}])
