"""What the forward pass changes in a model besides what is trained: running statistics and the like."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeptBuffers:
    """The buffers of a model as they were, to be put back.

    Those with floating-point numbers are copied each time. Others, such as masks, which may be large, are copied where
    torch says that they were changed.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor, int]] = {}  # the buffer, its copy, its version then

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the buffers as they are now."""
        kept = {}
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    key = id(module), name
                    kept[key] = self._copied(buffer, self._kept.get(key))
        self._kept = kept

    @staticmethod
    def _copied(buffer: Tensor, before: tuple[Tensor, Tensor, int] | None) -> tuple[Tensor, Tensor, int]:
        if before is None or before[0] is not buffer or before[1].shape != buffer.shape:
            return buffer, buffer.detach().clone(), buffer._version
        _, copy, version = before
        if buffer.is_floating_point() or buffer.is_complex() or buffer._version != version:
            copy.copy_(buffer)
        return buffer, copy, buffer._version

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the buffers what they were, the very same tensors among them."""
        for module in self._model.modules():
            for name in list(module._buffers):
                before = self._kept.get((id(module), name))
                if before is not None:
                    buffer, copy, _ = before
                    if buffer.shape != copy.shape:
                        buffer.resize_(copy.shape)
                    buffer.copy_(copy)
                    module._buffers[name] = buffer
                    self._kept[id(module), name] = buffer, copy, buffer._version
