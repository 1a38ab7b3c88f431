"""Columns that the model does not take."""

from __future__ import annotations

import logging

import pytest

from mainspring.data.columns import is_table, remove_unused_columns

datasets = pytest.importorskip("datasets")

TABLE = {"input_ids": [[1], [2]], "label": [0, 1], "text": ["a", "b"], "id": [5, 6]}


def test_unused_columns_go_and_the_log_names_them(caplog: pytest.LogCaptureFixture) -> None:
    table = datasets.Dataset.from_dict(TABLE)
    with caplog.at_level(logging.INFO, logger="mainspring.data.columns"):
        kept = remove_unused_columns(table, ["input_ids", "label", "labels"], "Net", "training")
    assert kept.column_names == ["input_ids", "label"]
    assert table.column_names == list(TABLE)
    assert "training set" in caplog.text
    assert "text, id" in caplog.text
    assert "Net.forward" in caplog.text


def test_a_table_without_unused_columns_stays_the_same_object() -> None:
    table = datasets.Dataset.from_dict({"x": [1]})
    assert remove_unused_columns(table, ["x"], "Net") is table


def test_a_format_survives() -> None:
    table = datasets.Dataset.from_dict(TABLE).with_format("torch")
    assert remove_unused_columns(table, ["input_ids"], "Net").format["type"] == "torch"


def test_nothing_left_is_refused() -> None:
    table = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(ValueError, match=r"remove_unused_columns.*text.*Net\.forward takes input_ids, labels"):
        remove_unused_columns(table, ["input_ids", "labels"], "Net")


def test_the_error_names_what_forward_takes_and_not_the_columns_that_collators_rename() -> None:
    table = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(ValueError, match=r"Net\.forward takes x, labels; rename"):
        remove_unused_columns(table, ["x", "labels", "label", "label_ids"], "Net")
    with pytest.raises(ValueError, match=r"Net\.forward takes no argument; rename"):
        remove_unused_columns(table, ["label", "label_ids"], "Net")


def test_other_data_is_left_to_the_collator() -> None:
    stream = datasets.Dataset.from_dict(TABLE).to_iterable_dataset()
    rows = [{"text": "a"}]
    assert remove_unused_columns(stream, ["input_ids"], "Net") is stream
    assert remove_unused_columns(rows, ["input_ids"], "Net") is rows
    assert not is_table(rows)
