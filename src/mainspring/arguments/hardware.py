"""Seeds, devices, processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.arguments.accelerator_config import AcceleratorConfig
from mainspring.arguments.deepspeed.reading import read_option
from mainspring.arguments.fsdp_keys import read_settings
from mainspring.arguments.option import fits_generators, option, positive, seconds
from mainspring.arguments.parallel_sizes import read_sizes


@dataclass(kw_only=True)
class HardwareArguments:
    """Reproducibility, hardware, processes."""

    seed: int = option(42, "Seed of everything.", check=fits_generators)
    data_seed: int | None = option(None, "Seed of the order of samples; default seed.", check=fits_generators)
    full_determinism: bool = option(False, "Deterministic kernels, at their cost in speed.")
    use_cpu: bool = option(False, "Stay on the CPU.")
    local_rank: int = option(-1, "Rank on this machine, from launchers that pass it as an argument.")
    accelerator_config: dict[str, Any] | str | None = option(
        None,
        "Settings of Accelerate's loaders; reads back as an AcceleratorConfig.",
        json=True,
        record=AcceleratorConfig,
    )
    parallelism_config: Any = option(
        None,
        "Into how many parts processes divide data, model and sequences: Accelerate's ParallelismConfig, or its sizes.",
        json=True,
        reader=read_sizes,
    )
    ddp_find_unused_parameters: bool | None = option(
        None, "Look for parameters without gradients; default: unless a transformers model recomputes activations."
    )
    ddp_bucket_cap_mb: int | None = option(None, "Size of gradient buckets in MiB.", check=positive)
    ddp_broadcast_buffers: bool | None = option(None, "Broadcast buffers at each forward pass.")
    ddp_static_graph: bool | None = option(None, "Promise that the graph never changes.")
    ddp_backend: str | None = option(
        None, "Backend between processes.", choices=("nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl")
    )
    ddp_timeout: int = option(1800, "Seconds after which a collective counts as failed.", check=seconds)
    fsdp: None | str | list[str] = option(  # noqa: RUF036 - parsers that read one type take the first after None
        None, "Shard the model over processes.", also=(bool,), words="*"
    )
    fsdp_config: dict[str, Any] | str | None = option(None, "Settings of FSDP.", json=True, reader=read_settings)
    deepspeed: dict[str, Any] | str | None = option(None, "DeepSpeed's configuration.", json=True, reader=read_option)
