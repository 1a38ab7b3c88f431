"""Where each process stands among those that divide data, layers and sequences: the device mesh of a run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mainspring.arguments.parallel_sizes import ParallelSizes
from mainspring.errors import OptionError, Problem

DATA = ("dp_replicate", "dp_shard")
"""The dimensions along which processes read different samples. A mesh always has them, of one process maybe."""


@dataclass(frozen=True)
class Mesh:
    """The processes of a run by their places in it.

    Attributes:
        sizes: How many there are along each dimension.
        devices: The mesh of torch: the dimensions of the data, and the others of more than one process, in the order of
            Accelerate's.
        data_rank: Which share of the data this process reads.
        data_group: The processes that differ from this one in that alone.
    """

    sizes: ParallelSizes
    devices: DeviceMesh
    data_rank: int
    data_group: dist.ProcessGroup

    def along(self, name: str) -> DeviceMesh:
        """The processes that differ from this one in their place along the dimension `name`, such as "tp"."""
        return self.devices[name]

    @property
    def averaged(self) -> DeviceMesh | None:
        """The processes whose gradients are averaged: those that share a model, or copies by these; None: this one alone."""
        if self.sizes.data_size * self.sizes.cp_size == 1:
            return None
        shards = "dp_shard_cp" if self.sizes.cp_size > 1 else "dp_shard"
        return self.devices["dp_replicate", shards] if self.sizes.dp_replicate_size > 1 else self.devices[shards]


def build_mesh(device_type: str, sizes: ParallelSizes) -> Mesh:
    """Give every process of the world its place. All of them call it together.

    Args:
        device_type: "cpu", "cuda", ...
        sizes: The sizes, whose product is the number of processes.

    Raises:
        OptionError: It is not.
    """
    check_world(sizes, dist.get_world_size())
    names = (*DATA, *(name for name in sizes.names if name not in DATA))
    devices = init_device_mesh(device_type, tuple(sizes.sizes[name] for name in names), mesh_dim_names=names)
    data = devices[DATA]._flatten("dp")
    if sizes.cp_size > 1:  # FSDP shards over the parts of a sequence too: each has gradients of its own
        devices["dp_shard", "cp"]._flatten("dp_shard_cp")
    return Mesh(sizes, devices, data.get_local_rank(), data.get_group())


def check_world(sizes: ParallelSizes, processes: int) -> None:
    """Refuse sizes that leave processes without a place, or places without a process."""
    if sizes.total_size == processes:
        return
    given = {f"{name}_size": sizes.sizes[name] for name in sizes.names}
    why = f"the product of the sizes is {sizes.total_size}, but {processes} process(es) were started"
    fix = f"start {sizes.total_size} processes, or change the sizes"
    raise OptionError([Problem("parallelism_config", given, why, fix)])
