"""How sums of gradients travel between DDP's processes: rounded to 16 bits, or as matrices of a low rank."""

# No postponed annotations here: torch compares those of a hook with the classes themselves.
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from mainspring.registry import Registry

logger = logging.getLogger(__name__)

_Sum = torch.futures.Future[torch.Tensor]

COMM_HOOKS = Registry(
    "ddp_comm_hook",
    {
        "fp16": "mainspring.engines.comm_hooks:Half",
        "bf16": "mainspring.engines.comm_hooks:BFloat16",
        "powersgd": "mainspring.engines.comm_hooks:PowerSGD",
    },
)


class CommHook:
    """One way for sums of gradients to travel.

    Attributes:
        remembers: Whether it keeps something from one update to the next, which a checkpoint must hold for each process.
    """

    remembers: ClassVar[bool] = False

    def register(self, wrapped: DistributedDataParallel) -> None:
        """Let the sums of `wrapped` travel this way."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What this process remembers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` said."""


class Half(CommHook):
    """Rounded to float16, each already divided by the number of processes, so that the sum overflows less."""

    def register(self, wrapped: DistributedDataParallel) -> None:
        """Register torch's hook."""
        wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)


class BFloat16(CommHook):
    """Rounded to bfloat16."""

    def register(self, wrapped: DistributedDataParallel) -> None:
        """Register torch's hook, under another name."""
        wrapped.register_comm_hook(None, _bfloat16)


def _bfloat16(group: Any, bucket: GradBucket) -> _Sum:
    """Torch's hook. DDP refuses that by its name where there is no NCCL, but gloo sums bfloat16 as well."""
    return default_hooks.bf16_compress_hook(group, bucket)


class PowerSGD(CommHook):
    """Matrices of rank 1, after the first `START` updates, and what each process's rounding lost is added to its next ones.

    The method is that of Vogels et al., PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization,
    2019 (https://arxiv.org/abs/1905.13727), with torch's own defaults.
    """

    remembers = True
    START: ClassVar[int] = 1000
    """Gradients change fast at first, and are summed whole so long."""

    def __init__(self) -> None:
        self.state = PowerSGDState(None, start_powerSGD_iter=self.START)
        self._numbers: dict[torch.Tensor, int] = {}
        self._layouts: dict[int, list[int]] = {}  # the parameters of each bucket, as numbers, once it is compressed
        self._restored: dict[int, Mapping[str, Any]] = {}  # of buckets that have not come by since
        self.in_turn = True  # whether the sums of one bucket must have come before the next one's begin
        self._rounds_left = 0  # how many sums may pass before the restored memory of a bucket is given up

    def register(self, wrapped: DistributedDataParallel) -> None:
        """Register torch's hook, behind what restores its memory."""
        logger.warning("ddp_comm_hook='powersgd': gradients are compressed after the first %d updates", self.START)
        self._numbers = {parameter: number for number, parameter in enumerate(wrapped.parameters())}
        # A bucket takes several sums, each begun when the one before has come. Other backends than NCCL begin them in
        # threads, where those of several buckets would mix, and in another order in every process: a hang, or worse.
        self.in_turn = "nccl" not in dist.get_backend()
        wrapped.register_comm_hook(self, _low_rank)

    def state_dict(self) -> dict[str, Any]:
        """The number of sums so far, the random stream, and for each bucket what its compression lost and begins with."""
        name, keys, *rest = self.state.rng.get_state()
        buckets = {number: self._memory(number) for number in self.state.error_dict}
        stream = [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest]
        return {"sums": self.state.iter, "stream": stream, "buckets": {**self._restored, **buckets}}

    def _memory(self, bucket: int) -> dict[str, Any]:
        tables = {name: getattr(self.state, f"{name}_dict") for name in _MEMORY}
        held = {name: table[bucket] for name, table in tables.items() if bucket in table}
        return {"parameters": self._layouts[bucket], **held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. A bucket gets its memory back when it first holds the same parameters again."""
        name, keys, *rest = state["stream"]
        self.state.rng.set_state((name, keys.numpy().astype(np.uint32), *rest))
        self.state.iter = state["sums"]
        self._restored = dict(state["buckets"])
        self._rounds_left = 2  # DDP makes other buckets after the first backward pass

    def comes_back(self, bucket: GradBucket) -> bool:
        """Restore a bucket's memory; False where another bucket of that number had it, so that this one has none."""
        number = bucket.index()
        layout = [self._numbers[parameter] for parameter in bucket.parameters()]
        found = self._restored.get(number)
        if found is not None and list(found["parameters"]) == layout:
            for name in _MEMORY:
                if name in found:
                    getattr(self.state, f"{name}_dict")[number] = found[name].to(bucket.buffer())
            self._layouts[number] = layout
            del self._restored[number]
            return True
        if bucket.is_last():
            self._count_round()
        return number in self._layouts

    def _count_round(self) -> None:
        self._rounds_left -= 1
        if self._rounds_left == 0:
            logger.warning(
                "the checkpoint's gradients were grouped otherwise: what PowerSGD's rounding lost is forgotten"
            )
            self._restored = {}

    def note(self, bucket: GradBucket) -> None:
        """Note which parameters a bucket holds when it is first compressed."""
        if bucket.index() not in self._layouts and self.state.iter >= self.state.start_powerSGD_iter:
            self._layouts[bucket.index()] = [self._numbers[parameter] for parameter in bucket.parameters()]


_MEMORY = ("error", "p_memory", "q_memory")
"""What torch's state keeps of each bucket: what was lost, and the two factors."""


def _low_rank(hook: PowerSGD, bucket: GradBucket) -> _Sum:
    """Torch's hook; right after a resume, sums whose buckets are not yet those of the checkpoint travel whole."""
    if hook._restored and not hook.comes_back(bucket):
        return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]
    hook.note(bucket)
    whole = powerSGD_hook(hook.state, bucket)
    if hook.in_turn:
        whole.wait()
    return whole
