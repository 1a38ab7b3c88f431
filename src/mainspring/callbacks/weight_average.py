"""A running average of a model's trained parameters: how it moves, how it is evaluated with, how it is written down."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mainspring import checkpoint as ckpt
from mainspring.errors import CheckpointError

_COUNT = "updates"
"""Where a file says how many weights its averages are of."""


class WeightAverage:
    r"""The bias-corrected exponential moving average of the parameters that a model trains.

    After t weights w_1, ..., w_t it is $(1-d) \sum_i d^{t-i} w_i / (1 - d^t)$: the average that Adam divides by 1 - d^t,
    so that it does not lean towards where it began (D. Kingma and J. Ba, https://arxiv.org/abs/1412.6980, section 3). At
    first, while t is small beside 1/(1-d), that is nearly the plain mean of all weights so far (B. Polyak and A. Juditsky,
    *Acceleration of stochastic approximation by averaging*, 1992), and then it forgets old ones. No warm-up of the decay is
    needed for that.

    Parameters that are in pieces over processes are averaged piece by piece, each process its own. Averages are kept in
    float32 at least: half precision would lose most of their steps.

    Args:
        model: Its parameters that require a gradient now are averaged.
        device: Where the averages lie; None: with the parameters.

    Attributes:
        updates: How many weights they are of, t; with 0 there is no average yet.

    Raises:
        ValueError: The model trains nothing; or a device is named, and parameters are in pieces.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ValueError("no parameter of the model requires a gradient: there is nothing to average")
        if device is not None and any(map(_is_in_pieces, self._parameters.values())):
            raise ValueError(f"device={device!r}: the parameters are in pieces, whose averages stay beside them")
        self._averages = [_at_least_float32(p.detach()).to(device or p.device, copy=True) for p in self._pieces()]
        self.updates = 0

    @torch.no_grad()
    def _pieces(self) -> list[Tensor]:
        """What of the parameters lies on this process, sharing their memory."""
        return [_piece(parameter) for parameter in self._parameters.values()]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Take the present weights into the average. No device is waited for, unless the averages lie elsewhere."""
        self.updates += 1
        weight = (1 - decay) / -math.expm1(self.updates * math.log(decay))
        now = [p.to(average) for p, average in zip(self._pieces(), self._averages, strict=True)]
        torch._foreach_lerp_(self._averages, now, weight)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """The averages are the model's weights in the body; afterwards, in any case, its own are, bit for bit.

        A copy of these is kept meanwhile. Gradients, which are as large, are gone when a model is evaluated.
        """
        own = [piece.detach().clone() for piece in self._pieces()]
        try:
            self.copy_to_model()
            yield
        finally:
            _copy(own, self._pieces())

    def copy_to_model(self) -> None:
        """Make the averages the model's weights for good."""
        _copy(self._averages, self._pieces())

    def nbytes(self) -> int:
        """Bytes that lie here."""
        return sum(average.nbytes for average in self._averages)

    # ---- written down ----

    @torch.no_grad()
    def whole(self) -> ckpt.NamedTensors:
        """Averages by the parameters' names, whole; all processes that hold pieces of them call this together."""
        named = zip(self._parameters.items(), self._averages, strict=True)
        tensors = {name: _joined(average, like) for (name, like), average in named} if self.updates else {}
        return ckpt.NamedTensors(tensors, {_COUNT: str(self.updates)})

    @torch.no_grad()
    def load(self, saved: ckpt.NamedTensors) -> None:
        """Take over what `whole` gave.

        Raises:
            CheckpointError: It is of other parameters.
        """
        count = saved.facts.get(_COUNT, "")
        if not count.isdecimal():
            raise CheckpointError(f"{ckpt.EMA_NAME} does not say how many weights it is an average of")
        if int(count):
            self._check(saved.tensors)
            parts = (_piece(_divided(saved.tensors[name], like)) for name, like in self._parameters.items())
            _copy(parts, self._averages)
        self.updates = int(count)

    def _check(self, saved: Mapping[str, Tensor]) -> None:
        own = {name: parameter.shape for name, parameter in self._parameters.items()}
        found = {name: tensor.shape for name, tensor in saved.items()}
        if own != found:
            differing = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
            raise CheckpointError(
                f"{ckpt.EMA_NAME} holds averages of other parameters than the model trains: {differing[0]} differs"
                f" (and {len(differing) - 1} more)"
            )


@torch.no_grad()
def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ---- parameters in pieces ----


def _is_in_pieces(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`; where nobody imported what makes them, nothing is."""
    kind: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


def _piece(tensor: Tensor) -> Tensor:
    if not _is_in_pieces(tensor):
        return tensor
    from mainspring.engines.dtensors import piece

    return piece(tensor)


def _joined(local: Tensor, like: Any) -> Tensor:
    """The whole tensor of which `local` is the piece that lies here, divided as `like` is."""
    if not _is_in_pieces(like):
        return local
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    joined: Tensor = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()
    return joined


def _divided(whole: Tensor, like: Tensor) -> Tensor:
    if not _is_in_pieces(like):
        return whole
    from mainspring.engines.dtensors import laid_out

    return laid_out(whole, like)
