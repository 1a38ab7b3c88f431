"""Which processes read the same samples, because DeepSpeed divides the layers of one model among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from mainspring.engines.base import EngineOptions
from mainspring.engines.deepspeed.answers import Answers
from mainspring.engines.mesh import Mesh, build_mesh
from mainspring.engines.parallel.checks import check_adapters

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator


class Sharing(Answers):
    """Processes by their places among those that divide data and layers. Without a division, each has data of its own.

    Neighbours hold the parts of one model. They read the same samples and draw the same random numbers, so that what they
    compute outside of the divided layers is the same on each.

    Attributes:
        places: The places; None: nothing but data is divided.
    """

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        super().__init__(accelerator, options)
        self.places: Mesh | None = None
        if options.parallelism is not None and options.parallelism.tp_size > 1:
            self.places = build_mesh(self.device.type, options.parallelism)
            self.data_rank = self.places.data_rank
            self.data_world_size = options.parallelism.data_size
            self.data_group = self.places.data_group

    @property
    def random_rank(self) -> int:
        """The first process of those that hold one model: neighbours draw the same numbers."""
        return self.rank if self.places is None else self.rank - self.rank % self.places.sizes.model_size

    @property
    def parallelism_config(self) -> Any:
        """The sizes, as Accelerate's `ParallelismConfig`."""
        return super().parallelism_config if self.places is None else self.places.sizes.to_accelerate()

    @property
    def device_mesh(self) -> Any:
        """The mesh of `Mesh.devices`."""
        return super().device_mesh if self.places is None else self.places.devices

    def size_of(self, dimension: str) -> int:
        """Processes along a dimension, such as "tp"."""
        return 1 if self.places is None else self.places.sizes.sizes[dimension]

    @property
    def divides_layers(self) -> bool:
        """Whether each process has a part of every layer."""
        return self.size_of("tp") > 1

    def check_model(self, model: nn.Module) -> None:
        """Refuse adapters in divided layers."""
        super().check_model(model)
        if self.divides_layers:
            check_adapters(model, self.size_of("tp"))

    def why_logits(self) -> str | None:
        """Its weights may lie in pieces."""
        size = self.size_of("tp")
        return f"{size} processes divide the output layer among them" if size > 1 else super().why_logits()

    def why_no_averages(self) -> str | None:
        """Averages are kept of whole weights."""
        if self.divides_layers:
            return f"{self.size_of('tp')} processes divide the layers, and there is nothing whole to average"
        return super().why_no_averages()
