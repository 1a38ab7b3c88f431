"""Frames of magnitudes: those of the reference in the forward pass, our own in the backward pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring.debug_utils import DebugUnderflowOverflow, detect_overflow, get_abs_min_max
from tests.diagnostics.broken import HalfPrecision, Model, Root, Times, as_mapping, batches, handing_on, run


class Pair(nn.Module):
    """Returns a tensor, nothing and a pair."""

    def forward(self, x: Tensor, other: Any = None) -> Any:
        return x, None, (x + 1, "text")


class First(nn.Module):
    """Takes the first of several."""

    def forward(self, x: Any, count: int) -> Tensor:
        return x[0] * count


class Nest(nn.Module):
    """Positional arguments of every kind."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.pair, self.first, self.times = Pair(), First(), Times(factor)

    def forward(self, x: Tensor) -> Tensor:
        pair = self.pair(x, None)
        return self.times(self.first(pair, 2))


def deep(factor: float) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(25)]
    return nn.Sequential(*layers, nn.Sequential(nn.Linear(4, 4, bias=False), Times(factor), nn.ReLU()))


def embedded(factor: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), Nest(factor))


def with_infinite_weight(factor: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(model[1].weight, factor)
    return model


NUMBERS = [torch.linspace(-1, 1, 12).view(3, 4) * scale for scale in (0.0, 1e-6, 1.0)]
TOKENS = [torch.zeros(2, 3, dtype=torch.long), torch.arange(6).view(2, 3)]

BROKEN: dict[str, tuple[Callable[[float], nn.Module], list[Tensor], float]] = {
    "in the first batch": (deep, NUMBERS, 3e38 * 10),
    "never": (deep, NUMBERS, 1.0),
    "nested values": (embedded, TOKENS, 3e38 * 10),
    "in the weights": (with_infinite_weight, NUMBERS, float("inf")),
    "when values grow": (deep, [*NUMBERS, torch.full((3, 4), 1e30)], 3e38),
}


def printed(cls: Any, model: nn.Module, inputs: list[Tensor], capsys: Any, **options: Any) -> tuple[str, bool]:
    """What is printed, and whether it ended with an error."""
    cls(model, **options)
    try:
        with torch.no_grad():
            for one in inputs:
                model(one)
    except ValueError:
        return capsys.readouterr().out, True
    return capsys.readouterr().out, False


@pytest.mark.parity
@pytest.mark.parametrize("options", [{}, {"max_frames_to_save": 2}, {"max_frames_to_save": 100}], ids=str)
@pytest.mark.parametrize("name", BROKEN)
def test_the_report_is_the_references(name: str, options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.debug_utils import DebugUnderflowOverflow as Reference

    build, inputs, factor = BROKEN[name]
    theirs, theirs_ended = printed(Reference, build(factor), inputs, capsys, **options)
    ours, ours_ended = printed(DebugUnderflowOverflow, build(factor), inputs, capsys, **options)
    assert ours_ended == theirs_ended == (name != "never")
    # What is in a nest that the reference does not look into stands in lines of its own here.
    assert ours == theirs
    assert ("has inf" in ours or "has nan" in ours) == ours_ended


@pytest.mark.parity
def test_traced_batches_are_printed_as_by_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.debug_utils import DebugUnderflowOverflow as Reference

    build, inputs, _ = BROKEN["never"]
    options: dict[str, Any] = {"trace_batch_nums": [1], "abort_after_batch_num": 1}
    theirs = printed(Reference, build(1.0), inputs, capsys, **options)
    ours = printed(DebugUnderflowOverflow, build(1.0), inputs, capsys, **options)
    assert ours == theirs
    assert "*** Starting batch number=1 ***" in ours[0]
    assert "batch number=0" not in ours[0]
    assert ours[1]


def test_a_run_is_ended_after_a_batch() -> None:
    model = Model()
    DebugUnderflowOverflow(model, abort_after_batch_num=1)
    first, second, _ = batches()
    model(**first)
    with pytest.raises(ValueError, match="abort_after_batch_num=1"):
        model(**second)


def test_the_error_names_the_module() -> None:
    model = Model(HalfPrecision())
    DebugUnderflowOverflow(model)
    (batch,) = batches(1)
    run(model, batch)
    batch["x"] *= 1e9
    model.stack[0].weight.data *= 1e4
    with pytest.raises(ValueError, match=r"in the forward pass of stack\.1 \(HalfPrecision\): output \(batch 1\)"):
        run(model, batch)


@pytest.mark.parametrize("pack", [as_mapping, None], ids=["mapping", "dataclass"])
def test_what_is_inside_an_output_is_looked_at(pack: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference takes it for one thing that is not a tensor."""
    model = Model() if pack is None else Model(pack=pack)
    DebugUnderflowOverflow(model)
    (batch,) = batches(1)
    batch["labels"][2] = float("inf")
    with pytest.raises(ValueError, match=r"the model itself \(Model\): output\[loss\] \(batch 0\)"):
        run(model, batch)
    last = capsys.readouterr().out.rpartition(" Model\n")[2]
    places = [line[18:] for line in last.strip().splitlines()]
    assert places == ["input[x]", "input[labels]", "output[loss]", "output[logits]", "output[hidden][0]"]


def test_gradients_have_frames(capsys: pytest.CaptureFixture[str]) -> None:
    model = handing_on(Model(Root()))
    DebugUnderflowOverflow(model)
    (batch,) = batches(1)
    batch["x"][2, 3] = 0.0
    with pytest.raises(ValueError, match=r"in the backward pass of stack\.1 \(Root\): gradient of input\[0\]"):
        run(model, batch)
    forward, backward = capsys.readouterr().out.split("backward frames:\n")
    assert "Detected inf/nan during batch_number=0" in forward
    assert forward.count("gradient") == 1  # what was found
    titles = re.findall(r"^ {18}(.*) \(backward\)$", backward, flags=re.MULTILINE)
    # What several modules hand on comes to each of them, the innermost first.
    assert titles == [" Model", "head Linear", "stack.1 Root", "stack Sequential", " Model", "stack.1 Root"]
    assert backward.rstrip().endswith("gradient of input[0]")


def test_gradients_are_those_of_an_undisturbed_run(capsys: pytest.CaptureFixture[str]) -> None:
    (batch,) = batches(1)
    plain, watched = Model(nn.ReLU(inplace=True)), Model(nn.ReLU(inplace=True))
    watch = DebugUnderflowOverflow(watched, trace_batch_nums=[0])
    assert run(plain, batch) == run(watched, batch)
    watch.remove()
    for (name, one), other in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad), name
    lines = capsys.readouterr().out.splitlines()
    assert get_abs_min_max(plain.head.weight.grad, "gradient of weight") in lines


def test_parameters_that_are_shared_and_modules_that_are_used_twice() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.append(model[0])
    watch = DebugUnderflowOverflow(model, max_frames_to_save=50)
    model(torch.ones(2, 4)).sum().backward()
    watch.remove()
    assert len(watch._forward) == 4


def test_the_hooks_go(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    DebugUnderflowOverflow(model).remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    (batch,) = batches(1)
    batch["x"][0] = float("nan")
    run(model, batch)
    assert capsys.readouterr().out == ""


def test_nothing_is_kept_of_a_batch_that_is_done() -> None:
    """A hook that held on to what it hangs on would keep the graph of every batch."""
    import gc
    import weakref

    model, kept = Model(Root()), []
    watch = DebugUnderflowOverflow(model)
    model.head.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    for batch in batches():
        model(**batch)
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3
    watch.remove()


def test_gradient_checkpointing(capsys: pytest.CaptureFixture[str]) -> None:
    class Recomputing(Model):
        def forward(self, x: Tensor, labels: Tensor) -> Any:
            hidden: Any = torch.utils.checkpoint.checkpoint(self.stack, torch.tanh(self.first(x)), use_reentrant=False)
            return {"loss": nn.functional.mse_loss(self.head(hidden).squeeze(-1), labels)}

    model, plain = Recomputing(), Model()
    watch = DebugUnderflowOverflow(model)
    for batch in batches(2):
        run(model, batch)
        run(plain, batch)
    watch.remove()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        (torch.tensor([-2.0, 0.5]), "5.00e-01 2.00e+00 it"),
        (torch.tensor([-3, 1]), "1.00e+00 3.00e+00 it"),
        (torch.tensor([True, False]), "0.00e+00 1.00e+00 it"),
        (torch.tensor([-2.0, 0.5]).to(torch.float8_e5m2), "5.00e-01 2.00e+00 it"),
        (torch.tensor([[0.0, 3.0]]).to_sparse(), "3.00e+00 3.00e+00 it"),
        (torch.empty(0), "            empty it"),
        (torch.tensor([float("nan"), 1.0]), "     nan      nan it"),
    ],
    ids=["float", "int", "bool", "float8", "sparse", "empty", "nan"],
)
def test_magnitudes(tensor: Tensor, line: str) -> None:
    assert get_abs_min_max(tensor, "it") == line


def test_overflow_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert not detect_overflow(torch.ones(3), "fine")
    assert detect_overflow(torch.tensor([float("inf"), float("nan")]), "wrong")
    assert capsys.readouterr().out == "wrong has nans\nwrong has infs\n"
