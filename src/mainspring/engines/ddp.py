"""Data parallel over processes with torch's `DistributedDataParallel`: gradients are averaged over the ranks."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from mainspring import checkpoint as ckpt
from mainspring.engines.comm_hooks import COMM_HOOKS, CommHook
from mainspring.engines.processes import Processes, refuse_frozen
from mainspring.errors import OptionError, Problem

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.engines.base import EngineOptions

logger = logging.getLogger(__name__)


class DDP(Processes):
    """One process per rank, the same model on each, gradients averaged at the last micro-batch of an update.

    A script may pass Accelerate's `DistributedDataParallelKwargs` to its accelerator: what they set wins over the options.
    """

    kind = "ddp"

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        super().__init__(accelerator, options)
        self._comm_hook: CommHook | None = None
        self._learns_graph = False  # whether the next backward pass is the one in which torch notes a static graph
        handler = accelerator.ddp_handler
        self._handler_has_hook = handler is not None and str(getattr(handler.comm_hook, "value", "no")) != "no"
        if options.ddp.comm_hook is not None and self._handler_has_hook:
            why = "the accelerator's DistributedDataParallelKwargs have a comm_hook too"
            raise OptionError([Problem("ddp_comm_hook", options.ddp.comm_hook, why, "choose one of the two")])

    def prepare(self, model: nn.Module) -> nn.Module:
        """Place `model` and wrap it in torch's `DistributedDataParallel`."""
        placed = self.place(model)
        refuse_frozen(placed)
        device_ids = None if self.device.type == "cpu" else [self.device.index]
        wrapped = DistributedDataParallel(placed, device_ids=device_ids, **self._keywords())
        assert dist.get_world_size(wrapped.process_group) == self.world_size
        self._register_hook(wrapped)
        self._learns_graph = wrapped.static_graph
        return wrapped

    def _keywords(self) -> dict[str, Any]:
        handler = self.accelerator.ddp_handler
        return {**self.options.ddp.given(), **({} if handler is None else handler.to_kwargs())}

    def _register_hook(self, wrapped: DistributedDataParallel) -> None:
        if self._handler_has_hook:
            self.accelerator.ddp_handler.register_comm_hook(wrapped)
        elif self.options.ddp.comm_hook is not None:
            self._comm_hook = COMM_HOOKS[self.options.ddp.comm_hook]()
            self._comm_hook.register(wrapped)

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Reduce gradients in the last micro-batch of an update only, unless in each.

        A static graph is noted in the first of all, which has to be reduced for that: torch asserts it. The sums are the same.
        """
        self.accelerator.gradient_state.sync_gradients = sync
        if not isinstance(model, DistributedDataParallel):
            return contextlib.nullcontext()
        reduces = sync or self.sync_each_batch or self._learns_graph
        self._learns_graph = False
        return contextlib.nullcontext() if reduces else model.no_sync()

    def why_not_in_pieces(self, model: nn.Module) -> str | None:
        """Processes may have unequally many pieces: none of them may wait for the others in each one."""
        if self.sync_each_batch:
            return "sync_each_batch sums gradients with every backward pass, of which processes may have unequally many"
        if self._keywords().get("static_graph"):
            return "ddp_static_graph has torch note the first backward pass, and a try would be that"
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            return "a SyncBatchNorm of the model waits for all processes in every forward pass, tries among them"
        return None

    @contextlib.contextmanager
    def apart(self, model: nn.Module) -> Iterator[nn.Module]:
        """The module inside: torch's wrapper would wait for the buffers of the first rank."""
        with super().apart(model) as own:
            yield own.module if isinstance(own, DistributedDataParallel) else own

    @property
    def remembers_gradients(self) -> bool:
        """Whether gradients are compressed in a way that carries what was lost on to the next update."""
        return self.options.ddp.comm_hook is not None and COMM_HOOKS[self.options.ddp.comm_hook]().remembers

    # ---- what a checkpoint holds ----

    def save_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str, writes: bool) -> None:
        """As in one process; each one adds what its compression of gradients remembers."""
        super().save_optimizer(model, optimizer, folder, writes)
        if self._comm_hook is not None and self._comm_hook.remembers:
            state = {"world_size": self.world_size, **self._comm_hook.state_dict()}
            ckpt.save_torch(state, os.path.join(folder, ckpt.comm_hook_name(self.rank)))

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
        """As in one process; what a compression remembers is of use to the same number of processes only."""
        if self._comm_hook is not None and self._comm_hook.remembers:
            file = ckpt.Contents.of(folder).file(ckpt.comm_hook_name(self.rank))
            state = None if file is None else ckpt.load_torch(file)
            if state is not None and state["world_size"] == self.world_size:
                self._comm_hook.load_state_dict(state)
            else:
                why = "no state of it" if state is None else f"the states of {state['world_size']} processes"
                logger.warning("ddp_comm_hook=%r starts afresh: %s has %s", self.options.ddp.comm_hook, folder, why)
        return super().load_optimizer(model, optimizer, folder)
