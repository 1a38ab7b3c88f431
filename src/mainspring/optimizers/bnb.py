"""The optimizers of bitsandbytes, whose states are quantised to 8 bits or paged to the host's memory.

T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer: *8-bit Optimizers via Block-wise Quantization*, ICLR 2022,
https://arxiv.org/abs/2110.02861.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitsandbytes.optim import AdamW, AdEMAMix, GlobalOptimManager, Lion, RMSprop
from torch import nn

from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, boolean, read_options

_Builder = Callable[[OptimizerRequest], OptimizerSpec]


def _adamw(bits: int, paged: bool) -> _Builder:
    def build(request: OptimizerRequest) -> OptimizerSpec:
        options = read_options(request, min_8bit_size=int)
        return AdamW, {**request.adam, "optim_bits": bits, "is_paged": paged, **options}

    return build


def _lion(bits: int, paged: bool) -> _Builder:
    def build(request: OptimizerRequest) -> OptimizerSpec:
        options = read_options(request, min_8bit_size=int)
        kwargs = {"lr": request.learning_rate, "betas": request.betas}
        return Lion, {**kwargs, "optim_bits": bits, "is_paged": paged, **options}

    return build


def _rmsprop(bits: int) -> _Builder:
    def build(request: OptimizerRequest) -> OptimizerSpec:
        options = read_options(request, alpha=float, eps=float, momentum=float, centered=boolean, min_8bit_size=int)
        return RMSprop, {"lr": request.learning_rate, "optim_bits": bits, **options}

    return build


def _ademamix(bits: int, paged: bool) -> _Builder:
    def build(request: OptimizerRequest) -> OptimizerSpec:
        rates = dict.fromkeys(("beta1", "beta2", "beta3", "alpha", "eps"), float)
        options = read_options(request, **rates, t_alpha=int, t_beta3=int, min_8bit_size=int)
        first, second = request.betas
        betas = options.pop("beta1", first), options.pop("beta2", second), options.pop("beta3", 0.9999)
        kwargs = {"lr": request.learning_rate, "betas": betas, "alpha": 5.0, "eps": request.epsilon}
        return AdEMAMix, {**kwargs, "optim_bits": bits, "is_paged": paged, **options}

    return build


adamw_8bit = _adamw(8, paged=False)
paged_adamw_32bit = _adamw(32, paged=True)
paged_adamw_8bit = _adamw(8, paged=True)
lion_32bit = _lion(32, paged=False)
lion_8bit = _lion(8, paged=False)
paged_lion_32bit = _lion(32, paged=True)
paged_lion_8bit = _lion(8, paged=True)
rmsprop_32bit = _rmsprop(32)
rmsprop_8bit = _rmsprop(8)
ademamix_32bit = _ademamix(32, paged=False)
ademamix_8bit = _ademamix(8, paged=False)
paged_ademamix_32bit = _ademamix(32, paged=True)
paged_ademamix_8bit = _ademamix(8, paged=True)


_IN_32_BITS = {"optim_bits": 32}
"""The library's word for it; this very object, so that what was said for other models is told from what users say."""


def keep_embeddings_in_32_bits(model: nn.Module) -> None:
    """Let 8-bit optimizers keep 32-bit states for embeddings, whose gradients are too uneven to be quantised.

    Section 2.3 of the paper. It has to be said before the optimizer is built.
    """
    _forget_other_models()
    manager: Any = GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", _IN_32_BITS)


def in_32_bits_for_embeddings(cls: Any, model: nn.Module) -> Callable[..., Any]:
    """A maker of optimizers of one parameter each, which the library's own way does not tell apart: all are its first."""
    _forget_other_models()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}

    def make(groups: list[dict[str, Any]], optim_bits: int, **kwargs: Any) -> Any:
        (parameter,) = groups[0]["params"]
        return cls(groups, optim_bits=32 if id(parameter) in embeddings else optim_bits, **kwargs)

    return make


def _forget_other_models() -> None:
    """The library remembers an optimizer's parameters for the whole process, and takes others of another model for them."""
    manager: Any = GlobalOptimManager.get_instance()
    triples = manager.module_weight_config_triple
    for known in ("index2config", "pid2config"):  # by places, and by identities, which later parameters may have
        configs = getattr(manager, known)
        setattr(manager, known, {key: config for key, config in configs.items() if config is not _IN_32_BITS})
    manager.module_weight_config_triple = [triple for triple in triples if triple[2] is not _IN_32_BITS]
