"""Copies of a training state in host memory that is used again from save to save.

The memory is kept because fresh pages cost more than the copy into them.
"""

from __future__ import annotations

import copy
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_THREADS = 4
"""More do not copy faster: it is the memory that they wait for."""


class HostCopies:
    """Copies states to host memory, and takes the memory back for the next copies.

    A copy is valid until `recycle` is called. Memory that is not used between two calls of it is given back to the system.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)
        self._lent: list[tuple[tuple[int, bool], Tensor]] = []
        self._begun: list[tuple[Any, Any]] = []

    @torch.no_grad()
    def copy(self, state: Any) -> Any:
        """Return a copy of `state` that `torch.save` writes as it would write a state on the CPU.

        Args:
            state: Tensors in dicts, lists and tuples, and values of any kind that can be deep-copied.

        Returns:
            The same structure of the same types. Plain tensors, and this process's shards of sharded ones, lie in host
            memory, and those that shared memory still do. Tensors of other kinds (sparse, quantised, subclasses) are cloned
            where they are.
        """
        storages: dict[int, torch.UntypedStorage] = {}
        memo: dict[int, Any] = {}
        devices = set()
        for tensor in tensors_in(state):
            devices.add(tensor.device)
            memo[id(tensor)] = self._copy_any(tensor, storages)
        self._finish()
        for device in devices:
            if device.type == "cuda":  # its copies were only begun
                torch.cuda.synchronize(device)
        return copy.deepcopy(state, memo)

    def recycle(self) -> None:
        """Take back the memory of all copies: nobody may read them any more."""
        self._free.clear()
        for kind, buffer in self._lent:
            self._free[kind].append(buffer)
        self._lent.clear()

    def release(self) -> None:
        """Give all memory back to the system."""
        self._free.clear()
        self._lent.clear()

    def _copy_any(self, tensor: Tensor, storages: dict[int, torch.UntypedStorage]) -> Tensor:
        if _is_plain(tensor):
            return self._copy_tensor(tensor, storages)
        sharded = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)  # dear to import
        if sharded is None or not isinstance(tensor, sharded):
            return tensor.detach().clone()
        own: Any = tensor.detach()
        # With the specification itself: torch's `from_local` would move the copy back to the mesh's device.
        copied: Tensor = sharded(self._copy_any(own.to_local(), storages), own._spec, requires_grad=False)
        return copied

    def _copy_tensor(self, tensor: Tensor, storages: dict[int, torch.UntypedStorage]) -> Tensor:
        source = tensor.untyped_storage()
        # The whole storage and not the part that the tensor shows: torch.save writes it so, and views of one storage
        # remain views of one.
        if source._cdata not in storages:
            storages[source._cdata] = self._copy_storage(source, tensor.device)
        shown = torch.empty(0, dtype=tensor.dtype)
        shown.set_(storages[source._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
        result = nn.Parameter(shown, False) if isinstance(tensor, nn.Parameter) else shown
        vars(result).update(copy.deepcopy(vars(tensor)))
        return result.requires_grad_(tensor.requires_grad)

    def _copy_storage(self, source: Any, device: torch.device) -> torch.UntypedStorage:
        on_cuda = device.type == "cuda"
        buffer = self._borrow(source.nbytes(), pinned=on_cuda)
        content = torch.empty(0, dtype=torch.uint8, device=device).set_(source)
        if device.type == "cpu":
            self._begun.append((buffer.numpy(), content.numpy()))
        else:
            buffer.copy_(content, non_blocking=on_cuda)
        return buffer.untyped_storage()

    def _finish(self) -> None:
        """Copy what lies in host memory.

        By numpy, each tensor in one thread: where the cores are busy with loader workers, torch's threads wait for each other
        after every tensor, and take several times as long.
        """
        begun, self._begun = self._begun, []
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda pair: np.copyto(*pair), begun))

    def _borrow(self, size: int, pinned: bool) -> Tensor:
        free = self._free[size, pinned]
        buffer = free.pop() if free else torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._lent.append(((size, pinned), buffer))
        return buffer


def tensors_in(state: Any, seen: dict[int, Any] | None = None) -> Iterator[Tensor]:
    """Yield every tensor in nested dicts, lists and tuples, once; a container may hold itself."""
    seen = {} if seen is None else seen
    if id(state) in seen:
        return
    seen[id(state)] = state  # kept, so that no other object gets the same id meanwhile
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(value, seen)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is nothing but a view of a storage."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )
