"""When a model is DeepSpeed's no longer: whole weights were put into it from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Leaving:
    """Watches one model of one engine.

    `load_state_dict`, which DeepSpeed's own functions of recovery end with, finds no place for whole weights in a model of
    stage 3. Here it does: the model is gathered for good, and the engine is done with.

    Args:
        model: The model.
        engine: The `DeepSpeedEngine` that it was set up with.
    """

    def __init__(self, model: nn.Module, engine: Any) -> None:
        self._model = model
        self._engine = engine
        self._left = False
        self._hook = model.register_load_state_dict_pre_hook(self._before_load)

    def _before_load(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        named = dict(module.named_parameters(remove_duplicate=False))
        wholes = [p for name, p in named.items() if (s := state.get(prefix + name)) is not None and s.shape != p.shape]
        divided = [p for p in module.parameters() if getattr(p, "ds_numel", p.numel()) != p.numel()]
        if not divided or not wholes:  # DeepSpeed itself loads nothing where it has put the pieces in place
            return
        divided[0].all_gather(divided)  # type: ignore[attr-defined]
        self._engine.destroy()
        self._left = True

    def forget(self) -> None:
        """Watch it no longer."""
        self._hook.remove()

    def check(self) -> None:
        """Refuse to go on with a model that has left.

        Raises:
            RuntimeError: It has.
        """
        if self._left or self._is_elsewhere():
            raise RuntimeError(
                "whole weights were put into the model (load_state_dict), and DeepSpeed's engine does not know of them: it "
                "can be used by itself, or saved, and not trained or evaluated here; make a new model and a new Trainer"
            )

    def _is_elsewhere(self) -> bool:
        """Whether the recovery has moved the model to the host, away from the engine's device."""
        if torch.device(self._engine.device).type == "cpu":
            return False
        return all(p.device.type == "cpu" and not hasattr(p, "ds_id") for p in self._model.parameters())
