"""Who reads weights in pieces as if they were whole gets pieces, or empty ones, and is told so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from torch import nn

from mainspring.engines.deepspeed.layers import divides_layers
from mainspring.engines.loaded import is_divided_by_zero
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

_expected: ContextVar[bool] = ContextVar("_expected", default=False)


@contextlib.contextmanager
def only_pieces() -> Iterator[None]:
    """Who reads in the body does not want whole weights."""
    before = _expected.set(True)
    try:
        yield
    finally:
        _expected.reset(before)


class Reading:
    """Watches `state_dict` of one model, which `save_pretrained` asks too.

    Args:
        model: The model.
        engine: The `DeepSpeedEngine` that it was set up with, which reads pieces.
    """

    def __init__(self, model: nn.Module, engine: Any) -> None:
        self._told = False
        # torch puts a mark on the hook, which a method would not take
        self._hook = model.register_state_dict_post_hook(lambda *given: self._after_reading(*given))
        own = engine.module_state_dict

        def module_state_dict(*args: Any, **kwargs: Any) -> Any:
            with only_pieces():
                return own(*args, **kwargs)

        engine.module_state_dict = module_state_dict

    def _after_reading(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        in_parts = divides_layers(module)
        if _expected.get() or self._told or not (in_parts or is_divided_by_zero(module)):
            return
        if any(isinstance(value, nn.Parameter) for value in state.values()):
            return  # the parameters themselves were asked for
        self._told = True
        given = "this process's" if in_parts else "empty ones"
        logger.warning(_IN_PIECES, type(module).__name__, given)

    def forget(self) -> None:
        """Watch it no longer."""
        self._hook.remove()


_IN_PIECES = (
    "the weights of this %s lie in pieces: state_dict() gave %s, and save_pretrained() writes no others; "
    "trainer.save_model(folder) saves them, and trainer.accelerator.get_state_dict(trainer.model), which all processes call, "
    "gathers them"
)
