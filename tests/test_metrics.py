"""The loss window, the metrics people read, and the arrays that evaluation collects; against the reference."""

from __future__ import annotations

import functools
import json
import time
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import trainer_pt_utils, trainer_utils

from mainspring import metrics
from mainspring.metrics import EvalLoopContainer, EvalPrediction, LossWindow

Pair = namedtuple("Pair", "left right")


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (np.ndarray, torch.Tensor)):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tolist() == theirs.tolist()
    else:
        assert ours == theirs


class TestLossWindow:
    def test_sums_in_float32_like_repeated_addition(self) -> None:
        torch.manual_seed(0)
        window, total = LossWindow("cpu", keep_finite=True), torch.tensor(0.0)
        for number, loss in enumerate(torch.rand(500)):
            window.add(loss, number)
            total += loss
        assert window.total.item() == total.item()
        assert window.total.dtype == torch.float32

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_precisions_are_added_in_float32(self, dtype: torch.dtype) -> None:
        window = LossWindow("cpu", keep_finite=True)
        for _ in range(3):
            window.add(torch.tensor(0.1, dtype=dtype), 0)
        expected = torch.tensor(0.0)
        for _ in range(3):
            expected += torch.tensor(0.1, dtype=dtype)
        assert window.total.dtype == torch.float32
        assert window.total.item() == expected.item()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("on_device", [True, False])
    def test_a_loss_that_is_not_finite_counts_as_the_mean_so_far(self, bad: float, on_device: bool) -> None:
        window = LossWindow("cpu", keep_finite=True)
        if on_device:  # the path of accelerators, whose arithmetic the CPU can run too
            window._filters_on_host, window._filters_on_device = False, True
        for updates, loss in enumerate([0.3, 0.5, bad, 0.7]):
            window.add(torch.tensor(loss), updates)
        expected = torch.tensor(0.3) + torch.tensor(0.5)
        expected += expected / 3
        expected += torch.tensor(0.7)
        assert window.total.item() == expected.item()

    def test_without_the_filter_it_shows(self) -> None:
        window = LossWindow("cpu", keep_finite=False)
        window.add(torch.tensor(float("nan")), 0)
        assert torch.isnan(window.total)

    def test_drain_empties_in_place_even_a_nan(self) -> None:
        window = LossWindow("cpu", keep_finite=False)
        total = window.total
        window.add(torch.tensor(float("nan")), 0)
        window.drain(torch.Tensor.item)
        assert total is window.total
        assert total.item() == 0
        window.add(torch.tensor(2.0), 0)
        assert window.drain(lambda tensor: tensor.item() / 4) == 0.5

    def test_keeps_no_graph(self) -> None:
        window = LossWindow("cpu", keep_finite=True)
        window.add(torch.ones(1, requires_grad=True) * 2, 0)
        assert not window.total.requires_grad
        assert window.total.shape == ()
        assert window.total.item() == 2

    def test_a_loss_elsewhere_is_refused(self) -> None:
        with pytest.raises(ValueError, match="meta.*cpu"):
            LossWindow("cpu", keep_finite=True).add(torch.zeros((), device="meta"), 0)

    def test_several_values_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(2,\)"):
            LossWindow("cpu", keep_finite=True).add(torch.ones(2), 0)


METRICS = {
    "epoch": 3.0,
    "init_mem_cpu_alloc_delta": 123456789,
    "before_init_mem_gpu": 5,
    "train_runtime": 3725.12945,
    "eval_runtime": 0.1299,
    "test_runtime": 100000.5,
    "total_flos": 123456789012.0,
    "train_loss": 0.123456789,
    "train_samples_per_second": 12.345678,
    "n": 7,
    "name": "text",
}


class TestSpeedAndTables:
    @pytest.mark.parametrize(
        "counts", [{}, {"num_samples": 1000}, {"num_samples": 7, "num_steps": 3, "num_tokens": 99999}, {"num_steps": 0}]
    )
    @pytest.mark.parametrize("elapsed", [0.0, 0.123456789, 77.7777777])
    def test_speed_equals_the_reference(
        self, monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], elapsed: float
    ) -> None:
        monkeypatch.setattr(time, "time", lambda: 1000.0 + elapsed)
        assert metrics.speed_metrics("eval", 1000.0, **counts) == trainer_utils.speed_metrics("eval", 1000.0, **counts)

    def test_format_equals_the_reference(self) -> None:
        before = dict(METRICS)
        assert metrics.metrics_format(METRICS) == trainer_pt_utils.metrics_format(dict(METRICS))
        assert before == METRICS

    def test_table_equals_the_reference(self, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = SimpleNamespace(is_world_process_zero=lambda: True, metrics_format=trainer_pt_utils.metrics_format)
        trainer_pt_utils.log_metrics(trainer, "train", dict(METRICS))
        theirs = capsys.readouterr().out
        metrics.log_metrics("train", METRICS)
        assert capsys.readouterr().out == theirs
        lines: list[str] = []
        metrics.log_metrics("train", METRICS, write=lines.append)
        assert "\n".join(lines) + "\n" == theirs

    def test_empty_table(self) -> None:
        lines: list[str] = []
        metrics.log_metrics("eval", {}, write=lines.append)
        assert lines == ["***** eval metrics *****"]

    def test_files_equal_the_reference(self, tmp_path: Any) -> None:
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        theirs.mkdir()
        trainer = SimpleNamespace(is_world_process_zero=lambda: True, args=SimpleNamespace(output_dir=str(theirs)))
        for split, values in [("train", {"b": 1, "a": 2.5}), ("eval", {"c": 1, "a": 3})]:
            metrics.save_metrics(ours, split, values)
            trainer_pt_utils.save_metrics(trainer, split, values)
        metrics.save_metrics(ours, "test", {"z": 1}, combined=False)
        trainer_pt_utils.save_metrics(trainer, "test", {"z": 1}, combined=False)
        files = sorted(path.name for path in theirs.iterdir())
        assert sorted(path.name for path in ours.iterdir()) == files
        assert [(ours / name).read_text() for name in files] == [(theirs / name).read_text() for name in files]

    def test_numbers_of_numpy_and_torch_can_be_saved(self, tmp_path: Any) -> None:
        metrics.save_metrics(tmp_path, "eval", {"a": np.float32(0.5), "b": torch.tensor(2)})
        assert json.loads((tmp_path / "eval_results.json").read_text()) == {"a": 0.5, "b": 2}

    @pytest.mark.parametrize(
        "values",
        [
            {"eval_loss": 0.3, "epoch": 2, "eval_runtime": 9, "eval_steps_per_second": 3},
            {"eval_loss": 0.3, "eval_accuracy": 0.5, "eval_f1": 0.25, "epoch": 2, "eval_runtime": 9},
        ],
    )
    def test_objective_equals_the_reference(self, values: dict[str, float]) -> None:
        assert metrics.default_compute_objective(values) == trainer_utils.default_compute_objective(values)


class TestResults:
    @pytest.mark.parametrize("name", ["EvalLoopOutput", "PredictionOutput", "TrainOutput", "BestRun"])
    def test_fields_are_the_references(self, name: str) -> None:
        ours, theirs = getattr(metrics, name), getattr(trainer_utils, name)
        assert (ours._fields, ours._field_defaults) == (theirs._fields, theirs._field_defaults)

    def test_prediction_unpacks_into_what_is_there(self) -> None:
        predictions, labels = EvalPrediction("p", "l")
        assert (predictions, labels) == ("p", "l")
        assert list(EvalPrediction("p", "l", inputs="i")) == ["p", "l", "i"]
        assert list(EvalPrediction("p", "l", losses="s")) == ["p", "l", "s"]
        everything = EvalPrediction("p", "l", "i", "s")
        assert [everything[index] for index in range(4)] == ["p", "l", "i", "s"]
        assert (everything.predictions, everything.label_ids, everything.inputs, everything.losses) == tuple(everything)

    @pytest.mark.parametrize("index", [-1, 2])
    def test_prediction_has_no_other_elements(self, index: int) -> None:
        with pytest.raises(IndexError):
            EvalPrediction("p", "l")[index]


def tree(rows: int, columns: int, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "logits": torch.rand(rows, columns, 3),
        "ids": [torch.randint(9, (rows, columns)), torch.rand(rows)],
        "pair": (torch.rand(rows, 2).to(torch.bfloat16), OrderedDict(mask=torch.ones(rows, columns, dtype=torch.bool))),
    }


class TestTrees:
    @pytest.mark.parametrize("columns", [4, 7, 2])
    def test_concat_equals_the_reference(self, columns: int) -> None:
        first, second = tree(2, 4), tree(3, columns, seed=1)
        ours, theirs = (m.nested_concat(first, second, padding_index=7) for m in (metrics, trainer_pt_utils))
        assert_same(ours, theirs)
        first, second = (trainer_pt_utils.nested_numpify(each) for each in (first, second))
        ours, theirs = (m.nested_concat(first, second) for m in (metrics, trainer_pt_utils))
        assert_same(ours, theirs)

    def test_scalars_become_rows(self) -> None:
        ours, theirs = (m.nested_concat(torch.tensor(1.0), torch.tensor(2.0)) for m in (metrics, trainer_pt_utils))
        assert_same(ours, theirs)
        ours, theirs = (m.nested_concat(np.array(1), np.array(2)) for m in (metrics, trainer_pt_utils))
        assert_same(ours, theirs)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ((torch.ones(1),), [torch.ones(1)]),
            ([torch.ones(1)], [torch.ones(1), torch.ones(1)]),
            ({"a": torch.ones(1)}, {"b": torch.ones(1)}),
            (torch.ones(1), np.ones(1)),
            (torch.ones(1), None),
            (None, None),
        ],
    )
    def test_different_structures_are_refused(self, first: Any, second: Any) -> None:
        with pytest.raises(TypeError, match="cannot join"):
            metrics.nested_concat(first, second)

    @pytest.mark.parametrize("other", [(2, 3, 5), (2, 3)])
    @pytest.mark.parametrize("make", [torch.ones, np.ones])
    def test_sizes_that_padding_cannot_even_out_are_refused(self, other: tuple[int, ...], make: Callable) -> None:
        with pytest.raises(ValueError, match="cannot join outputs of shapes"):
            metrics.nested_concat(make((2, 4, 1)), make(other))

    def test_numpify_detach_truncate_equal_the_reference(self) -> None:
        data = tree(4, 3)
        assert_same(metrics.nested_numpify(data), trainer_pt_utils.nested_numpify(data))
        assert_same(metrics.nested_truncate(data, 2), trainer_pt_utils.nested_truncate(data, 2))
        with_graph = {"x": (torch.ones(2, requires_grad=True) * 2, "text")}
        detached = metrics.nested_detach(with_graph)
        assert not detached["x"][0].requires_grad
        assert detached["x"][1] == "text"

    def test_named_tuples_keep_their_type(self) -> None:
        pair = Pair(torch.ones(1), torch.zeros(1))
        joined = metrics.nested_concat(pair, pair)
        assert isinstance(joined, Pair)
        assert joined.left.tolist() == [1, 1]

    def test_numpify_names_what_it_cannot_take(self) -> None:
        with pytest.raises(TypeError, match=r"str.*ignore_keys"):
            metrics.nested_numpify({"x": "text"})

    @pytest.mark.parametrize(
        "data",
        [
            torch.ones(3, 2),
            np.ones((4, 1)),
            torch.tensor(1.0),
            ["a", {"x": None, "y": (torch.tensor(1), torch.ones(5))}],
            {"x": "text"},
            [],
            None,
        ],
    )
    def test_batch_size_equals_the_reference(self, data: Any) -> None:
        assert metrics.find_batch_size(data) == trainer_pt_utils.find_batch_size(data)

    def test_python_numbers_equal_the_reference(self) -> None:
        data = {"a": [np.float32(1.5), (torch.tensor([2]),)], "b": "text", "c": torch.ones(2)}
        assert_same(metrics.denumpify_detensorize(data), trainer_utils.denumpify_detensorize(data))


class TestContainer:
    @given(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.booleans()), min_size=1, max_size=7),
        st.booleans(),
    )
    @settings(deadline=None, max_examples=50)
    def test_equals_the_reference(self, batches: list[tuple[int, int, bool]], concat: bool) -> None:
        ours = EvalLoopContainer(concat, padding_index=-7)
        theirs = trainer_pt_utils.EvalLoopContainer(concat, padding_index=-7)
        for seed, (rows, columns, to_host) in enumerate(batches):
            for container in (ours, theirs):
                container.add(tree(rows, columns, seed))
                if to_host:
                    container.to_cpu_and_numpy()
        assert_same(ours.get_arrays(), theirs.get_arrays())
        assert_same(ours.get_arrays(), theirs.get_arrays())
        for container in (ours, theirs):
            container.add(tree(2, 3))
        assert_same(ours.get_arrays(), theirs.get_arrays())

    def test_parts_can_be_looked_at(self) -> None:
        container = EvalLoopContainer()
        assert container.tensors is container.arrays is container.get_arrays() is None
        container.add(torch.ones(2, 1))
        container.add(torch.ones(1, 2))
        assert container.tensors.tolist() == [[1, -100], [1, -100], [1, 1]]
        assert container.arrays is None
        container.to_cpu_and_numpy()
        assert container.tensors is None
        assert container.arrays.tolist() == [[1, -100], [1, -100], [1, 1]]

    def test_each_row_is_copied_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        copied = []
        join = metrics.joined_arrays
        monkeypatch.setattr(metrics, "joined_arrays", lambda parts, pad: copied.append(len(parts)) or join(parts, pad))
        container = EvalLoopContainer()
        for _ in range(50):
            container.add(torch.ones(2, 3))
            container.to_cpu_and_numpy()
        assert container.get_arrays().shape == (100, 3)
        assert container.get_arrays().shape == (100, 3)
        assert copied == [50]

    def test_a_view_does_not_keep_its_base(self) -> None:
        container = EvalLoopContainer()
        logits = torch.rand(4, 1000, 10)
        container.add(logits[:, -1])
        kept = container._device_batches[0]
        assert kept.untyped_storage().nbytes() == kept.nbytes
        assert torch.equal(kept, logits[:, -1])

    def test_an_unpadded_batch_keeps_no_graph(self) -> None:
        container = EvalLoopContainer()
        container.add(torch.ones(2, requires_grad=True) * 1)
        assert not container.tensors.requires_grad

    def test_a_batch_of_another_structure_is_refused_at_once(self) -> None:
        for to_host in (False, True):
            container = EvalLoopContainer()
            container.add({"a": torch.ones(1), "b": (torch.ones(1),)})
            if to_host:
                container.to_cpu_and_numpy()
            with pytest.raises(TypeError, match="the parts differ"):
                container.add({"a": torch.ones(1)})
            with pytest.raises(TypeError, match="the parts differ"):
                container.add({"a": torch.ones(1), "b": (torch.ones(1), torch.ones(1))})

    def test_small_integers_can_be_padded(self) -> None:
        container = EvalLoopContainer()
        container.add(torch.ones(1, 1, dtype=torch.uint8))
        container.add(torch.ones(1, 2, dtype=torch.uint8))
        assert container.get_arrays().tolist() == [[1, 156], [1, 1]]


class TestQuestions:
    def test_length(self) -> None:
        class Raises:
            def __init__(self, error: type[Exception]) -> None:
                self.error = error

            def __len__(self) -> int:
                raise self.error

        assert metrics.has_length([])
        assert not metrics.has_length(iter([]))
        assert not metrics.has_length(Raises(AttributeError))
        assert not metrics.has_length(Raises(NotImplementedError))
        with pytest.raises(OSError):
            metrics.has_length(Raises(OSError))

    def test_number_of_arguments(self) -> None:
        def function(a: int, b: int, *, c: int) -> None: ...

        for each in (
            function,
            functools.partial(function, 1),
            functools.partial(function, 1, c=2),
            TestQuestions().run,
        ):
            assert metrics.number_of_arguments(each) == trainer_utils.number_of_arguments(each)

    def test_number_of_arguments_of_a_partial_with_open_ended_arguments(self) -> None:
        def function(*args: int, last: int = 0) -> None: ...

        assert metrics.number_of_arguments(function) == 2
        assert metrics.number_of_arguments(functools.partial(function, 1, 2, last=3)) == 1

    def run(self, a: int) -> None: ...
