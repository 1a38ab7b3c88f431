"""What is in a nest of values: its tensors by name, their magnitudes, and the first of their elements that is not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield what is in tuples, lists, mappings and dataclasses, with its place: `output[0]`, `output[logits]`.

    Args:
        value: The nest, or a single value.
        path: What the place of the whole is called.
    """
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        yield path, value
        return
    for key, inner in items:
        yield from leaves(inner, f"{path}[{key}]")


def tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among `leaves`."""
    return ((place, leaf) for place, leaf in leaves(value, path) if isinstance(leaf, Tensor))


@torch.no_grad()
def elements(tensor: Tensor) -> Tensor:
    """The tensor's elements in a form that can be compared; of a sparse one those that it stores."""
    plain = tensor.detach()
    if plain.layout == torch.sparse_coo:
        plain = plain.coalesce().values()
    elif plain.layout != torch.strided:
        plain = plain.values()
    if plain.dtype == torch.bool or plain.dtype.itemsize == 1:
        plain = plain.float() if plain.dtype.is_floating_point else plain.int()
    return plain


def is_bad(tensor: Tensor) -> bool:
    """Whether any element is NaN or infinite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return not bool(torch.isfinite(elements(tensor)).all())


@torch.no_grad()
def first_bad(tensor: Tensor) -> tuple[str, int]:
    """What the first element that is not finite is ("nan", "inf", "-inf"), and its place among all in memory's order.

    Of NaN and infinities, NaN and +inf come first: masks are made of -inf.
    """
    flat = elements(tensor).flatten()
    flat = torch.view_as_real(flat).sum(-1) if flat.is_complex() else flat
    wrong = torch.isnan(flat) | torch.isposinf(flat)
    wrong = wrong if bool(wrong.any()) else torch.isneginf(flat)
    index = int(wrong.int().argmax())
    return str(float(flat[index])), index


@torch.no_grad()
def largest(tensor: Tensor) -> float | None:
    """The largest magnitude among the finite elements; None where there is none."""
    magnitudes = elements(tensor).abs()
    finite = magnitudes[torch.isfinite(magnitudes)]
    return float(finite.max()) if finite.numel() else None


def largest_of(values: Mapping[str, Any]) -> float | None:
    """The largest finite magnitude in some tensors of numbers with a fraction."""
    found = [largest(value) for value in values.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return max((one for one in found if one is not None), default=None)


def row_of(tensor: Tensor, index: int, rows: int | None) -> int | None:
    """The sample to which an element belongs, where the first dimension counts samples, or samples times positions.

    Args:
        tensor: The tensor.
        index: The element's place among all.
        rows: Samples of the batch; None where that is unknown.
    """
    if not rows or tensor.dim() == 0 or tensor.layout != torch.strided or tensor.shape[0] % rows:
        return None
    of_row = tensor.numel() // rows
    return index // of_row if of_row else None
