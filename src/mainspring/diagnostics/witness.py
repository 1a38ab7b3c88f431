"""What is noted of one micro-batch that runs again: where values that are not finite first appear."""

from __future__ import annotations

from torch import Tensor, nn

from mainspring.diagnostics.report import Divergence, Phase
from mainspring.diagnostics.taps import Call
from mainspring.diagnostics.values import first_bad, is_bad, largest, largest_of, row_of, tensors


class Witness:
    """The listener of one micro-batch.

    Args:
        rows: Samples in it; None where that is unknown.

    Attributes:
        forward: Modules whose inputs were finite and whose outputs were not, in the order in which they ended. Masks,
            which have -inf and no gradient, are left out.
        absorbed: Whether a module inside made something finite of -inf, as attention does of masked scores.
        fed: Names of modules whose inputs were not finite.
        backward: The first gradient that was not finite.
    """

    def __init__(self, rows: int | None) -> None:
        self.rows = rows
        self.forward: list[Divergence] = []
        self.absorbed = False
        self.fed: set[str] = set()
        self.backward: Divergence | None = None
        # Every tensor that a module returned, kept alive, and the outermost call that returned it.
        self._returned: dict[int, tuple[Tensor, Call]] = {}
        self._came_in: dict[str, float] = {}  # to the backward of a module: the largest gradient of its outputs

    def forget(self) -> None:
        """Let the tensors go."""
        self._returned.clear()

    # ---- what the taps tell ----

    def entered(self, call: Call) -> None:
        """Judge the inputs now: the module may change them in place."""
        inputs = call.inputs()
        call.notes["finite"] = not any(map(is_bad, inputs.values()))
        call.notes["abs_max"] = largest_of(inputs)
        if not call.notes["finite"]:
            self.fed.add(call.name)

    def left(self, call: Call) -> None:
        """Judge the outputs."""
        outputs = dict(tensors(call.output, "output"))
        call.notes["returned"] = {place: id(tensor) for place, tensor in outputs.items()}
        for tensor in outputs.values():
            self._returned[id(tensor)] = (tensor, call)
        wrong = {place: tensor for place, tensor in outputs.items() if is_bad(tensor)}
        if not wrong:
            self.absorbed = self.absorbed or bool(call.name and not call.notes["finite"])
        elif call.notes["finite"] and not all(map(_is_mask, wrong.values())) and not self._has_culprit(call):
            self._blame(call, self._blamed(call, outputs, wrong))

    def flowed(self, call: Call, place: str, gradient: Tensor) -> None:
        """Judge the gradient of an input or output."""
        if self.backward is not None:
            return
        if is_bad(gradient):
            self.backward = (self._inside if place.startswith("input") else self._outside)(call, place, gradient)
        elif not place.startswith("input"):
            self._came_in[call.name] = max(self._came_in.get(call.name, 0.0), largest(gradient) or 0.0)

    def reached(self, module: nn.Module, name: str, place: str, gradient: Tensor) -> None:
        """Judge the gradient of a parameter."""
        if self.backward is None and is_bad(gradient):
            self.backward = self._gradient(name, type(module).__name__, f"gradient of {place}", gradient, by_rows=False)

    # ---- who is to blame ----

    def _blame(self, call: Call, report: Divergence) -> None:
        self.forward.append(report)
        outer = call.parent
        while outer is not None:
            outer.notes.setdefault("inside", []).append(report.value)
            outer = outer.parent

    def _has_culprit(self, call: Call) -> bool:
        """Whether a module inside is to blame already; not for -inf, if that came to nothing."""
        return any(value != "-inf" or not self.absorbed for value in call.notes.get("inside", ()))

    def _blamed(self, call: Call, outputs: dict[str, Tensor], wrong: dict[str, Tensor]) -> Divergence:
        """The report of a module that made something wrong out of something right."""
        place, tensor = next(iter(wrong.items()))
        value, index = first_bad(tensor)
        only_loss = call.name == "" and all(one.dim() == 0 for one in wrong.values())
        if only_loss and len(outputs) > len(wrong):  # what it was computed from says more than the batch
            call.notes["abs_max"] = largest_of({key: one for key, one in outputs.items() if key not in wrong})
        return Divergence(
            Phase.LOSS if only_loss else Phase.FORWARD,
            call.name,
            call.module_class,
            place,
            value,
            row=row_of(tensor, index, self.rows),
            abs_max=call.notes["abs_max"],
        )

    def _inside(self, call: Call, place: str, gradient: Tensor) -> Divergence:
        """The gradients of its outputs were finite, and that of an input is not: the module's backward made it."""
        return self._gradient(call.name, call.module_class, f"gradient of {place}", gradient)

    def _outside(self, call: Call, place: str, gradient: Tensor) -> Divergence:
        """What was computed from an output, outside of the modules inside: the caller's own code, or the loss's."""
        _, call = self._returned[call.notes["returned"][place]]
        caller = call.parent
        if caller is None:
            return self._gradient("", "", f"gradient of the {place} of {call.name or 'the model'}", gradient)
        what = f"gradient of what it made of the {place} of {call.name}"
        return self._gradient(caller.name, caller.module_class, what, gradient)

    def _gradient(
        self, name: str, module_class: str, what: str, gradient: Tensor, *, by_rows: bool = True
    ) -> Divergence:
        value, index = first_bad(gradient)
        row = row_of(gradient, index, self.rows) if by_rows else None
        return Divergence(Phase.BACKWARD, name, module_class, what, value, row=row, abs_max=self._came_in.get(name))


def _is_mask(tensor: Tensor) -> bool:
    return not tensor.requires_grad and first_bad(tensor)[0] == "-inf"
