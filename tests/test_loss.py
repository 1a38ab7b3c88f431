"""The loss taken from outputs, label smoothing equal to the reference's, and the count of labels."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LabelSmoother as ReferenceSmoother

from mainspring.loss import LabelSmoother, WatchedCount, count_items, logits_of, loss_of

LOSS = torch.tensor(1.5)
LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "outputs",
    [
        {"logits": LOGITS, "loss": LOSS},
        SequenceClassifierOutput(loss=LOSS, logits=LOGITS),
        (LOSS, LOGITS),
        [LOSS],
        LOSS,
    ],
    ids=["mapping", "model output", "tuple", "list", "tensor"],
)
def test_loss_is_found_in_every_form_of_output(outputs: Any) -> None:
    assert loss_of(outputs) is LOSS


@pytest.mark.parametrize("outputs", [{"logits": LOGITS, "aux": LOSS}, {"logits": LOGITS, "aux": LOSS, "loss": None}])
def test_a_mapping_without_loss_lists_its_keys(outputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no loss, only logits, aux.*labels"):
        loss_of(outputs)


def test_a_model_output_without_labels_lists_its_keys() -> None:
    with pytest.raises(ValueError, match="only logits"):
        loss_of(SequenceClassifierOutput(logits=LOGITS))


@pytest.mark.parametrize("outputs", [(), ("text",), None, LOGITS, "text"])
def test_what_holds_no_loss_is_refused(outputs: Any) -> None:
    with pytest.raises(TypeError, match="starts with the loss"):
        loss_of(outputs)


def test_missing_logits_are_named() -> None:
    with pytest.raises(ValueError, match="no logits, only hidden: label smoothing"):
        logits_of({"hidden": LOGITS})


# Label smoothing --------------------------------------------------------------------------------------------------


def batch(dtype: torch.dtype, classes: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(4, 7, classes, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (4, 7), generator=generator)
    labels[0, 2:] = -100
    labels[3] = -100
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("items", [None, 5, torch.tensor(23)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_smoothing_equals_the_reference_bit_for_bit(
    dtype: torch.dtype, shift: bool, items: torch.Tensor | int | None, epsilon: float
) -> None:
    results = []
    for smoother in (LabelSmoother(epsilon=epsilon), ReferenceSmoother(epsilon=epsilon)):
        logits, labels = batch(dtype)
        logits.requires_grad_(True)
        loss = smoother({"logits": logits}, labels, shift_labels=shift, num_items_in_batch=items)
        loss.backward()
        results.append((loss.detach(), logits.grad))
    (ours, our_grad), (theirs, their_grad) = results
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    assert our_grad is not None
    assert their_grad is not None
    assert torch.equal(our_grad, their_grad)


@pytest.mark.parametrize("shape", [(4, 7), (4, 7, 1)])
def test_smoothing_takes_labels_with_and_without_a_last_dimension_and_tuples(shape: tuple[int, ...]) -> None:
    logits, labels = batch(torch.float32)
    expected = ReferenceSmoother(epsilon=0.2)({"logits": logits}, labels.clone())
    assert torch.equal(LabelSmoother(0.2)((logits, "rest"), labels.reshape(shape)), expected)


def test_smoothing_is_cross_entropy_with_smoothed_targets() -> None:
    logits, labels = batch(torch.float32)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert torch.allclose(LabelSmoother(0.1)({"logits": logits}, labels), expected)


def test_smoothing_leaves_the_labels_as_they_were_and_knows_other_ignored_values() -> None:
    logits, labels = batch(torch.float32)
    kept = labels.clone()
    with_default = LabelSmoother(0.1)({"logits": logits}, labels)
    assert torch.equal(labels, kept)
    other = torch.where(labels == -100, 10_000, labels)
    assert torch.equal(LabelSmoother(0.1, ignore_index=10_000)({"logits": logits}, other), with_default)


# Counting ---------------------------------------------------------------------------------------------------------


def test_count_adds_up_labels_that_are_not_ignored() -> None:
    batches = [{"labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}, {"labels": torch.tensor([[-100, 5, 6]])}]
    counted = count_items(batches, shifts_labels=False)
    assert counted is not None
    assert (counted.item(), counted.dtype, counted.dim()) == (5, torch.int64, 0)


def test_a_shifting_loss_does_not_count_first_labels() -> None:
    batches = [{"labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}, {"labels": torch.tensor([[-100, 5, 6]])}]
    counted = count_items(batches, shifts_labels=True)
    assert counted is not None
    assert counted.item() == 3


@pytest.mark.parametrize("shifts", [False, True])
def test_given_shifted_labels_are_counted_whole(shifts: bool) -> None:
    batches = [{"shift_labels": torch.tensor([[1, 2, -100]]), "labels": torch.tensor([[1, 1, 1]])}]
    counted = count_items(batches, shifts_labels=shifts)
    assert counted is not None
    assert counted.item() == 2


@pytest.mark.parametrize(
    "batches",
    [
        [],
        [{"input_ids": torch.ones(2)}],
        [{"labels": torch.ones(2)}, {"input_ids": torch.ones(2)}],
        [{"labels": [{"boxes": torch.ones(2, 4)}]}],
        [(torch.ones(2), torch.ones(2))],
    ],
    ids=["none", "no labels", "one without", "detection", "tuple"],
)
def test_what_cannot_be_counted_gives_none(batches: list[Any]) -> None:
    assert count_items(batches, shifts_labels=False) is None


def test_labels_of_each_row_alone_and_of_regression_are_counted() -> None:
    counted = count_items([OrderedDict(labels=torch.tensor([0.5, -100.0, 2.0]))], shifts_labels=False)
    assert counted is not None
    assert counted.item() == 2
    scalar = count_items([{"labels": torch.tensor(3)}], shifts_labels=True)
    assert scalar is not None
    assert scalar.item() == 1


def test_counting_reads_nothing_back_from_the_device() -> None:
    """Tensors on the meta device have no values: reading one, as a synchronisation does, raises."""
    counted = count_items([{"labels": torch.empty(2, 3, dtype=torch.long, device="meta")}] * 3, shifts_labels=True)
    assert counted is not None
    assert counted.device.type == "meta"


# A number of items that notices whether it is used -------------------------------------------------------------------


def test_a_watched_count_computes_as_the_number_it_is() -> None:
    watched = WatchedCount.of(torch.tensor(4))
    result = torch.tensor(8.0) / watched
    assert type(result) is torch.Tensor
    assert result.item() == 2.0
    assert watched.was_used


@pytest.mark.parametrize(
    "look",
    [
        lambda count: count.device,
        lambda count: count.to("cpu"),
        lambda count: count.to(torch.float32),
        lambda count: count.detach(),
        lambda count: torch.is_tensor(count),
        lambda count: count.dim(),
        lambda count: count > 0,
        lambda count: bool(count),
        lambda count: torch.isnan(count),
    ],
)
def test_looking_at_a_count_or_moving_it_is_no_use(look: Any) -> None:
    watched = WatchedCount.of(torch.tensor(4))
    look(watched)
    assert not watched.was_used


def test_the_use_of_a_moved_count_is_noticed() -> None:
    watched = WatchedCount.of(torch.tensor(4))
    _ = torch.tensor(8.0) / watched.to(torch.float32)
    assert watched.was_used


@pytest.mark.parametrize(
    "use", [lambda count: count.item(), lambda count: torch.ones(1).div(count), lambda count: count.clamp(min=1)]
)
def test_any_computation_is_a_use(use: Any) -> None:
    watched = WatchedCount.of(torch.tensor(4))
    use(watched)
    assert watched.was_used
