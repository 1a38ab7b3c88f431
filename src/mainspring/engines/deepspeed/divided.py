"""Models whose weights lie in pieces already: gathered for a moment, filled module by module, and told from spoilt ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.engines.deepspeed.layers import filling, is_divided_layer
from mainspring.engines.loaded import is_divided_by_zero
from mainspring.errors import OptionError, Problem
from mainspring.model import is_pretrained
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)


def gathered(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """All weights of a model are there in the body, on each process; what is changed of them is lost."""
    return gathering([p for p in model.parameters() if hasattr(p, "ds_id")] if is_divided_by_zero(model) else [], None)


def gathering(parameters: list[nn.Parameter], writer: int | None) -> contextlib.AbstractContextManager[Any]:
    """Parameters that ZeRO has divided are whole in the body; of those of one writer the changes are kept."""
    if not parameters:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=writer)  # type: ignore[no-any-return]


def whole_adapters(model: nn.Module) -> dict[str, Tensor]:
    """What PEFT saves of a model, gathered, by name: weights of adapters, and whatever else is trained. All processes ask.

    A learned prompt is not among it: PEFT reads that from the model itself.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    of_adapters = _of_adapters(model, named)
    wanted = {name: p for name, p in named.items() if p.requires_grad or id(p) in of_adapters}
    with gathering([p for p in wanted.values() if hasattr(p, "ds_id")], None):
        return {name: p.detach().to("cpu", copy=True) for name, p in wanted.items()}


def _of_adapters(model: Any, named: Mapping[str, nn.Parameter]) -> set[int]:
    from peft import get_peft_model_state_dict

    states = [
        get_peft_model_state_dict(model, dict(named), name, save_embedding_layers=False) for name in model.peft_config
    ]
    return {id(parameter) for state in states for parameter in state.values()}


@contextlib.contextmanager
def loading_in_turn(model: nn.Module) -> Iterator[None]:
    """In the body, `load_state_dict` finds the weights of one module after another whole: never all of them.

    All processes load the same; the first one's values count.

    Args:
        model: The model.
    """
    turns = [Turn(module) for module in model.modules() if _lies_in_pieces(module)]
    try:
        yield
    finally:
        for turn in turns:
            turn.end()


def _lies_in_pieces(module: nn.Module) -> bool:
    return is_divided_layer(module) or any(hasattr(p, "ds_id") for p in module.parameters(recurse=False))


class Turn:
    """Gathers a module's own weights while they are loaded.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._open = contextlib.ExitStack()
        self._hooks = (
            module.register_load_state_dict_pre_hook(self._begin),
            module.register_load_state_dict_post_hook(lambda *_: self._open.close()),
        )

    def _begin(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        own = [p for name, p in module.named_parameters(recurse=False) if prefix + name in state]
        if own:
            self._open.enter_context(gathering([p for p in own if hasattr(p, "ds_id")], 0))
            self._open.enter_context(filling(module))

    def end(self) -> None:
        """Watch the module no longer."""
        self._open.close()
        for hook in self._hooks:
            hook.remove()


# ---- models that were divided while they were made ----


def refuse_uninitialised(model: nn.Module) -> None:
    """Refuse a model of transformers whose class was called under `zero.Init`; of others, say what may have been lost.

    There a module's weights are divided as soon as it has made them, and who initialises them when the whole model is there
    finds nothing to initialise: they keep what torch gives to a layer by itself.

    Raises:
        RuntimeError: The weights show it.
    """
    if not is_divided_by_zero(model):
        return
    if not is_pretrained(model):
        logger.warning(_OF_OTHERS, type(model).__name__)
        return
    if any(getattr(p, "_is_hf_initialized", False) for p in model.parameters()):  # they were loaded
        return
    wanted = getattr(getattr(model, "config", None), "initializer_range", None)
    if wanted is not None and (_has_torchs_embeddings(model, wanted) or _has_torchs_layers(model)):
        raise RuntimeError(
            f"the weights of this {type(model).__name__} were divided by zero.Init before the library could initialise them: "
            f"they are what torch gives to a layer by itself, and its configuration wants a standard deviation of {wanted}; "
            "make it by from_pretrained or from_config while an HfDeepSpeedConfig is alive, or without zero.Init, and leave "
            "the division to train()"
        )


def refuse_other_stages(model: nn.Module, stage: int) -> None:
    """Refuse a model that was divided when it was loaded, where the run divides no weights.

    Raises:
        OptionError: It was.
    """
    if stage == 3 or not is_divided_by_zero(model):
        return
    why = (
        "the weights of the model lie in pieces: it was loaded while a configuration of stage 3 was in force, or another "
        "trainer has divided it"
    )
    fix = "set it to 3, or load the model when no such configuration is alive"
    raise OptionError([Problem("deepspeed zero_optimization.stage", stage, why, fix)])


_OF_OTHERS = (
    "the weights of this %s were divided while it was made (zero.Init): what constructors have changed in the weights of "
    "modules that they had made before was changed in nothing, and is lost; change them within "
    "deepspeed.zero.GatheredParameters(parameters, modifier_rank=0), or make the model without zero.Init"
)
_MEANT, _TORCHS = 0.3, 0.7
"""Standard deviations: torch's own, of embeddings, is 1; what models are initialised with is far below."""
_ENOUGH = 64
"""Numbers that show how they are distributed."""


def _has_torchs_embeddings(model: nn.Module, wanted: float) -> bool:
    pieces = [_piece(module) for module in model.modules() if isinstance(module, nn.Embedding)]
    return wanted < _MEANT and any(float(piece.std()) > _TORCHS for piece in pieces if piece.numel() > 1)


def _has_torchs_layers(model: nn.Module) -> bool:
    """Whether all linear layers are uniform within the bounds that torch sets by itself, where models want a normal spread."""
    layers = [(layer, _piece(layer)) for layer in model.modules() if isinstance(layer, nn.Linear)]
    shown = [(piece, 1 / math.sqrt(layer.in_features)) for layer, piece in layers if piece.numel() >= _ENOUGH]
    return bool(shown) and all(_is_uniform(piece, bound) for piece, bound in shown)


def _is_uniform(piece: Tensor, bound: float) -> bool:
    reach, spread = float(piece.abs().max()) / bound, float(piece.std()) * math.sqrt(3) / bound
    return 0.9 < reach <= 1.0 + 1e-6 and 0.85 < spread < 1.15


def _piece(module: nn.Module) -> Tensor:
    """What lies here of a module's weight; nothing, where it does not lie in memory."""
    found = getattr(module.weight, "ds_tensor", None)
    return torch.empty(0) if found is None else found.detach().float()
