"""The loss of a linear layer in pieces: value and gradients are those of the whole, and nothing large is ever there."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mainspring.chunked_loss import kernels
from mainspring.chunked_loss.gradients import ChunkedCrossEntropy, How

ROWS, WIDTH, CLASSES = 150, 32, 500


def layer(bias: bool = True, dtype: torch.dtype = torch.float32, frozen: bool = False) -> list[Any]:
    """Hidden states, weights, bias and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(CLASSES, WIDTH, generator=generator).to(dtype).requires_grad_(not frozen)
    offset = torch.randn(CLASSES, generator=generator).to(dtype).requires_grad_(not frozen) if bias else None
    targets = torch.randint(CLASSES, (ROWS,), generator=generator)
    targets[::7] = -100
    return [hidden, weight, offset, targets]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None = None) -> Tensor:
    logits = functional.linear(hidden, weight, bias).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, targets, reduction="sum")


def differentiated(loss: Tensor, tensors: list[Any]) -> list[Tensor]:
    wanted = [one for one in tensors[:3] if one is not None and one.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss * 0.25, wanted)]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def chunked(tensors: list[Any], rows: int = 64, softcap: float | None = None, dtype: Any = torch.float32) -> Tensor:
    loss: Tensor = ChunkedCrossEntropy.apply(*tensors, How(rows, dtype, softcap))  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("rows", [1, 64, ROWS, 1000])
def test_loss_and_gradients_are_those_of_the_whole(rows: int, bias: bool, softcap: float | None) -> None:
    tensors = layer(bias)
    expected = differentiated(plain(*tensors, softcap=softcap), tensors)
    found = differentiated(chunked(tensors, rows, softcap), tensors)
    assert len(found) == len(expected) == 3 + bias
    assert max(map(error, found, expected)) < 1e-6


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_double_precision_is_kept(softcap: float | None) -> None:
    tensors = [*(one.detach().double().requires_grad_() for one in layer()[:3]), layer()[3]]
    hidden, weight, bias, targets = tensors
    logits = functional.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = differentiated(functional.cross_entropy(logits, targets, reduction="sum"), tensors)
    found = differentiated(chunked(tensors, 64, softcap, torch.float64), tensors)
    assert all(one.dtype == torch.float64 for one in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_layer_that_is_not_trained_gets_no_gradient() -> None:
    tensors = layer(frozen=True)
    loss = chunked(tensors)
    assert loss.grad_fn is not None
    assert loss.grad_fn.gradients.weight is loss.grad_fn.gradients.bias is None  # type: ignore[attr-defined]
    expected = differentiated(plain(*tensors), tensors)
    assert max(map(error, differentiated(loss, tensors), expected)) < 1e-6


def test_half_precision_is_added_up_in_single() -> None:
    tensors = layer(dtype=torch.bfloat16)
    exact = [one.detach().float().requires_grad_() for one in tensors[:3]]
    expected = differentiated(plain(*exact, tensors[3]), exact)
    found = differentiated(kernels.by_chunks(*tensors, softcap=None), tensors)
    assert found[0].dtype == torch.float32
    assert [one.dtype for one in found[1:]] == [torch.bfloat16] * 3
    assert error(found[0], expected[0]) < 2e-4  # rounded in bfloat16, it would be off by 4e-3
    whole = differentiated(plain(*tensors), tensors)
    for one, other, exactly in zip(found[1:], whole[1:], expected[1:], strict=True):
        assert error(one, exactly) < 1.05 * error(other, exactly)


def test_a_second_backward_pass_is_refused() -> None:
    tensors = layer()
    loss = chunked(tensors)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given away by its first backward pass"):
        loss.backward()


def test_nothing_is_kept_where_nothing_is_differentiated() -> None:
    tensors = layer()
    with torch.no_grad():
        loss = kernels.by_chunks(*tensors, softcap=None)
    assert not loss.requires_grad
    assert error(loss, plain(*tensors).detach()) < 1e-6


# ---- which implementation ----


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the implementations that are used from here on."""
    seen: list[str] = []
    for name in ("by_torch", "by_liger", "by_chunks"):
        real = getattr(kernels, name)

        def note(*args: Any, name: str = name, real: Any = real) -> Any:
            seen.append(name)
            return real(*args)

        monkeypatch.setattr(kernels, name, note)
    return seen


HAS_TORCHS = hasattr(functional, "linear_cross_entropy")


@pytest.mark.skipif(not HAS_TORCHS, reason="torch has no linear_cross_entropy before 2.13")
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_torchs_function_computes_single_precision(called: list[str], bias: bool) -> None:
    tensors = layer(bias)
    found = differentiated(kernels.summed_loss(*tensors), tensors)
    assert called == ["by_torch"]
    assert max(map(error, found, differentiated(plain(*tensors), tensors))) < 1e-6


def test_older_versions_of_torch_have_it_in_chunks(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(functional, "linear_cross_entropy", raising=False)
    tensors = layer()
    found = differentiated(kernels.summed_loss(*tensors), tensors)
    assert called == ["by_chunks"]
    assert max(map(error, found, differentiated(plain(*tensors), tensors))) < 1e-6


@pytest.mark.parametrize("case", ["bfloat16", "autocast", "softcap"])
def test_what_torchs_function_rounds_or_lacks_is_computed_in_chunks(called: list[str], case: str) -> None:
    tensors = layer(dtype=torch.bfloat16 if case == "bfloat16" else torch.float32)
    softcap = 5.0 if case == "softcap" else None
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        loss = kernels.summed_loss(*tensors, softcap=softcap)
        expected = plain(*tensors, softcap=softcap)
    assert called == ["by_chunks"]
    found = differentiated(loss, tensors)
    assert [one.dtype for one in found[1:]] == [one.dtype for one in tensors[:3]]
    assert max(map(error, found, differentiated(expected, tensors))) < 1e-2


def test_ligers_kernel_is_asked_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which runs on GPUs only."""
    stand_in, asked = ModuleType("liger_kernel.transformers.functional"), {}

    def fused(hidden: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Tensor:
        asked.update(options)
        return plain(hidden, weight, options["bias"], target)

    stand_in.liger_fused_linear_cross_entropy = fused  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    tensors = layer()
    assert error(kernels.by_liger(*tensors, softcap=None).detach(), plain(*tensors).detach()) < 1e-6
    assert (asked["reduction"], asked["ignore_index"], asked["accum_dtype"]) == ("sum", -100, torch.float32)
