"""When a model is DeepSpeed's no longer: whole weights were put into it from outside."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mainspring.model import watch_filling

_ANEW = "make a new model and a new Trainer"


class Leaving:
    """Watches one model of one engine.

    `load_state_dict`, which DeepSpeed's own functions of recovery end with, finds no place for whole weights in a model of
    stage 3. Here it does: the model is gathered for good, and the engine is done with. Other stages take them in; but the
    optimizer steps copies of its own, which know nothing of them, and the first step would put those back.

    Args:
        model: The model.
        engine: The `DeepSpeedEngine` that it was set up with.
        has_copies: Whether its optimizer steps copies of the weights.
    """

    def __init__(self, model: nn.Module, engine: Any, has_copies: bool) -> None:
        self._model = model
        self._engine = engine
        self._has_copies = has_copies
        self._is_expected = False
        self._left = self._is_taken = False
        self._is_filled = False
        self._hook = model.register_load_state_dict_pre_hook(self._before_load)
        watch_filling(model, self._before_filling)
        _WATCHED[model] = weakref.ref(self)
        own = engine.load_module_state_dict

        def load_module_state_dict(*args: Any, **kwargs: Any) -> Any:
            with self.staying():
                return own(*args, **kwargs)

        engine.load_module_state_dict = load_module_state_dict

    @contextlib.contextmanager
    def staying(self) -> Iterator[None]:
        """The context in which a checkpoint is loaded, into all that the engine has of the weights."""
        before, self._is_expected = self._is_expected, True
        try:
            yield
        finally:
            self._is_expected = before
        self._is_filled = False

    def _before_load(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        named = dict(module.named_parameters(remove_duplicate=False))
        given = {name: value for name in named if (value := state.get(prefix + name)) is not None}
        if self._is_expected or not given:
            return
        divided = self._divided()
        if not divided:
            self._is_filled = self._has_copies
        elif any(value.shape != named[name].shape for name, value in given.items()):
            # DeepSpeed itself loads nothing where it has put the pieces in place.
            divided[0].all_gather(divided)  # type: ignore[attr-defined]
            self._leave()

    def _before_filling(self) -> None:
        """Whole weights come one by one, each process putting them in place by itself."""
        if self._divided():
            self._leave()
        else:
            self._is_filled = self._has_copies

    def _divided(self) -> list[nn.Parameter]:
        return [p for p in self._model.parameters() if getattr(p, "ds_numel", p.numel()) != p.numel()]

    def _leave(self) -> None:
        self._engine.destroy()
        self._left = True

    def forget(self) -> None:
        """Watch it no longer."""
        self._hook.remove()

    def give_up(self) -> None:
        """Another trainer sets the model up: two engines cannot gather and reduce it at once."""
        if not self._left:
            self._leave()
            self._is_taken = True

    def check(self) -> None:
        """Refuse to go on with a model that has left.

        Raises:
            RuntimeError: It has.
        """
        if self._is_taken:
            raise RuntimeError(
                "another trainer has set this model up with an engine of its own, which took the place of this trainer's: go "
                f"on with that one, or {_ANEW}"
            )
        if self._left or self._is_elsewhere():
            raise RuntimeError(
                "whole weights were put into the model (load_state_dict), and DeepSpeed's engine does not know of them: it "
                f"can be used by itself, or saved, and not trained or evaluated here; {_ANEW}"
            )

    def check_trainable(self) -> None:
        """Refuse to train on from weights that the optimizer does not have.

        Raises:
            RuntimeError: There are such weights.
        """
        self.check()
        if self._is_filled:
            raise RuntimeError(
                "weights were put into the model (load_state_dict, or averages when training ended), and not into the copies that "
                f"DeepSpeed's optimizer steps: training would go on from those, as if nothing had been put there; {_ANEW}"
            )

    def _is_elsewhere(self) -> bool:
        """Whether the recovery has moved the model to the host, away from the engine's device."""
        if torch.device(self._engine.device).type == "cpu":
            return False
        return all(p.device.type == "cpu" and not hasattr(p, "ds_id") for p in self._model.parameters())


def take_from_others(model: nn.Module, own: Leaving | None) -> None:
    """End the engine that another trainer has set a model up with.

    Args:
        model: The model.
        own: What watches a model for the trainer that asks; None: nothing does.
    """
    kept = _WATCHED.get(model)
    other = None if kept is None else kept()
    if other is not None and other is not own:
        other.give_up()


_WATCHED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Leaving]] = weakref.WeakKeyDictionary()
