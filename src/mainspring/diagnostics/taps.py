"""Hooks on every module and parameter of a model, which tell a listener what goes forward and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from mainspring.diagnostics.values import tensors

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(eq=False)
class Call:
    """One run of a module's forward.

    Attributes:
        module: The module.
        name: Its qualified name, empty for the model itself.
        parent: The call whose forward made this one; None: nobody's, or that is not known.
        args: Positional arguments, while it is under way.
        kwargs: Keyword arguments, likewise.
        output: What it returned, when it is told of.
        notes: What a listener writes down.
    """

    module: nn.Module
    name: str
    parent: Call | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def module_class(self) -> str:
        """Name of the module's class."""
        return type(self.module).__name__

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that went in, by place."""
        return dict([*tensors(self.args, "input"), *tensors(self.kwargs, "input")])


class Listener(Protocol):
    """What is told of everything that the model does."""

    def entered(self, call: Call) -> None:
        """A forward begins."""

    def left(self, call: Call) -> None:
        """A forward has ended."""

    def flowed(self, call: Call, place: str, gradient: Tensor) -> None:
        """The gradient of an input or output of a call is there."""

    def reached(self, module: nn.Module, name: str, place: str, gradient: Tensor) -> None:
        """The gradient of a module's own parameter is there."""


class Taps:
    """Sets the hooks, and takes them away.

    To tell what a module's own backward adds from what flows on beside it, each input that needs a gradient is
    handed on as a view of itself.

    Args:
        model: The model, unwrapped.
        listener: Who is told.
        gradients: Whether it is told of gradients too.
    """

    def __init__(self, model: nn.Module, listener: Listener, *, gradients: bool = True) -> None:
        self._model = model
        self._listener = listener
        self._gradients = gradients
        self._names = {module: name for name, module in model.named_modules()}
        self._under_way: list[Call] = []
        self._handles: list[RemovableHandle] = []
        for module in self._names:
            self._tap(module)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._under_way.clear()

    def _tap(self, module: nn.Module) -> None:
        self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        if self._gradients:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    self._handles.append(parameter.register_hook(self._tell_of_parameter(module, name)))

    def _tell_of_parameter(self, module: nn.Module, place: str) -> Any:
        name = self._names[module]
        return lambda gradient: self._listener.reached(module, name, place, gradient)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module is self._model:
            self._under_way.clear()  # an exception may have left something there
        parent = self._under_way[-1] if self._under_way else None
        call = Call(module, self._names[module], parent, args, kwargs)
        self._under_way.append(call)
        self._listener.entered(call)
        if self._gradients:
            call.args = self._aliased(call, args, "input")
            call.kwargs = {key: self._aliased(call, value, f"input[{key}]") for key, value in kwargs.items()}
        return call.args, call.kwargs

    def _aliased(self, call: Call, value: Any, place: str) -> Any:
        """The value with views in place of its tensors, in tuples too, each of which tells of its gradient."""
        if type(value) is tuple:
            return tuple(self._aliased(call, inner, f"{place}[{number}]") for number, inner in enumerate(value))
        if not (isinstance(value, Tensor) and value.requires_grad) or isinstance(value, nn.Parameter):
            return value
        alias = value.view_as(value)
        if alias.requires_grad:  # not where gradients are off
            self._listen(call, place, alias)
        return alias

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self._under_way.pop()
        while call.module is not module:  # left behind by an exception that the model caught
            call = self._under_way.pop()
        call.output = output
        if self._gradients:
            for place, tensor in tensors(output, "output"):
                if tensor.requires_grad:
                    self._listen(call, place, tensor)
        self._listener.left(call)
        # A hook holds on to its call, and the graph to its hooks: a call that held on to tensors would keep the graph.
        call.args, call.kwargs, call.output = (), {}, None

    def _listen(self, call: Call, place: str, tensor: Tensor) -> None:
        tensor.register_hook(lambda gradient: self._listener.flowed(call, place, gradient))
