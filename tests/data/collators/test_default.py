"""Stacking samples, against the reference."""

from __future__ import annotations

import copy
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mainspring.data.collators import (
    DataCollatorMixin,
    DefaultDataCollator,
    default_data_collator,
    numpy_default_data_collator,
    torch_default_data_collator,
)
from tests.data.collators.oracle import assert_same

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "integer labels": [{"label": 1, "x": [1, 2]}, {"label": 0, "x": [3, 4]}],
    "float labels": [{"label": 1.5, "x": [1.0, 2]}, {"label": 0.0, "x": [3, 4]}],
    "integer label first": [{"label": 1, "x": [1, 2]}, {"label": 1.5, "x": [1.5, 2]}],
    "numpy labels": [{"label": np.int64(1), "x": np.ones(2)}, {"label": np.int64(2), "x": np.zeros(2)}],
    "numpy float labels": [{"label": np.float32(1), "x": np.ones(2, "f4")}] * 2,
    "multi-label": [{"label": [0, 1, 1], "x": 1}, {"label": [1, 0, 1], "x": 2}],
    "truth values": [{"label": True, "x": True}, {"label": False, "x": False}],
    "label ids": [{"label_ids": [1, 2]}, {"label_ids": [3, -100]}],
    "float label ids": [{"label_ids": [1.0, 2]}, {"label_ids": [3, 4]}],
    "tuple label ids": [{"label_ids": (1, 2)}] * 2,
    "array label ids": [{"label_ids": np.array([1.0, 2.0])}] * 2,
    "integer array label ids": [{"label_ids": np.array([1, 2])}] * 2,
    "label wins": [{"label": 1, "label_ids": [2, 3]}],
    "labels stay": [{"labels": 1, "x": 2}],
    "text and None are left out": [{"x": 1, "text": "a", "nothing": None, "label": None, "label_ids": None}] * 2,
    "extra entries later are left out": [{"x": 1}, {"x": 2, "y": 3}],
    "nested lists": [{"x": [[1, 2], [3, 4]]}] * 2,
    "long lists": [{"x": list(range(300))}] * 4,
    "integers of 64 bits": [{"x": 2**62}, {"x": -(2**62)}],
    "mixed numbers": [{"x": 1}, {"x": 0.5}],
    "truth and number": [{"x": [True, 2]}],
    "empty rows": [{"x": []}] * 2,
    "numpy scalars": [{"x": np.float32(1)}, {"x": np.float32(2)}],
    "half": [{"x": np.ones(2, np.float16)}] * 2,
    "lists of arrays": [{"x": [np.ones(2), np.ones(2)]}] * 2,
}
TENSORS: dict[str, list[dict[str, Any]]] = {
    "tensors": [{"label": torch.tensor(1), "x": torch.ones(2)}, {"label": torch.tensor(0), "x": torch.zeros(2)}],
    "float tensors": [{"label": torch.tensor(1.5, dtype=torch.float64), "x": torch.ones(2, 3)}] * 2,
    "truth tensor": [{"label": torch.tensor(True)}] * 2,
    "tensor label ids": [{"label_ids": torch.tensor([1, 2])}, {"label_ids": torch.tensor([3, 4])}],
    "tensor and number": [{"label": torch.tensor(1)}, {"label": 2}],
}


@pytest.mark.parametrize("samples", (SAMPLES | TENSORS).values(), ids=(SAMPLES | TENSORS).keys())
def test_torch_equals_the_reference(samples: list[dict[str, Any]]) -> None:
    assert_same(default_data_collator(samples), transformers.default_data_collator(samples))


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES.keys())
def test_numpy_equals_the_reference(samples: list[dict[str, Any]]) -> None:
    assert_same(default_data_collator(samples, "np"), transformers.default_data_collator(samples, "np"))


def test_numpy_from_tensors_keeps_whole_labels_whole() -> None:
    batch = default_data_collator(TENSORS["tensors"], "np")
    assert batch["labels"].dtype == np.int64
    assert batch["x"].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_default_dtype_is_respected() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert default_data_collator([{"x": [0.1]}])["x"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_objects_and_other_mappings() -> None:
    for samples in ([SimpleNamespace(x=1, label=2)] * 2, [UserDict(x=1, label=2)] * 2):
        batch = default_data_collator(samples)
        assert (batch["labels"].tolist(), batch["x"].tolist()) == ([2, 2], [1, 1])


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("samples", (SAMPLES | TENSORS).values(), ids=(SAMPLES | TENSORS).keys())
def test_samples_are_not_changed(samples: list[dict[str, Any]], framework: str) -> None:
    before = copy.deepcopy(samples)
    batch = default_data_collator(samples, framework)
    for value in batch.values():
        value[...] = 0
    assert repr(samples) == repr(before)


def test_class() -> None:
    assert default_data_collator([{"x": 1}], "np")["x"] == DefaultDataCollator("np")([{"x": 1}])["x"]
    assert isinstance(DefaultDataCollator()([{"x": 1}])["x"], torch.Tensor)
    assert isinstance(DefaultDataCollator("np")([{"x": 1}], return_tensors="pt")["x"], torch.Tensor)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"x": [1, 2]}, {"x": [1]}], "'x' cannot be stacked.*DataCollatorWithPadding"),
        ([{"x": torch.ones(2)}, {"x": torch.ones(3)}], "'x' cannot be stacked"),
        ([{"x": np.ones(2)}, {"x": np.ones(3)}], "'x' cannot be stacked"),
        ([{"x": 1, "y": 2}, {"x": 1}], "sample 1 of the batch has no 'y'"),
        ([{"label": 1}, {}], "sample 1 of the batch has no 'label'"),
        ([{"label": 1}, {"label": None}], "'label' cannot be stacked"),
        ([{"label": "3"}], "not text"),
        ([], "no samples"),
    ],
)
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_what_cannot_be_stacked_is_named(samples: list[Any], message: str, framework: str) -> None:
    with pytest.raises(ValueError, match=message):
        default_data_collator(samples, framework)


def test_tuples_are_refused() -> None:
    with pytest.raises(TypeError, match="data_collator"):
        default_data_collator([(1, 2)])


def test_unknown_framework() -> None:
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        default_data_collator([{"x": 1}], "tf")


def test_a_function_for_each_framework() -> None:
    assert_same(torch_default_data_collator([{"x": 1}]), default_data_collator([{"x": 1}]))
    assert_same(numpy_default_data_collator([{"x": 1}]), default_data_collator([{"x": 1}], "np"))


def test_the_mixin_dispatches() -> None:
    class Own(DataCollatorMixin):
        return_tensors = "np"

        def torch_call(self, features: list[Any]) -> str:
            return "torch"

        def numpy_call(self, features: list[Any]) -> str:
            return "numpy"

    assert Own()([]) == "numpy"
    assert Own()([], return_tensors="pt") == "torch"
    with pytest.raises(ValueError, match="'jax'"):
        Own()([], return_tensors="jax")
