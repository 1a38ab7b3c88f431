"""Number formats, compilation, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.arguments.option import option, positive


@dataclass(kw_only=True)
class PrecisionArguments:
    """Precision, compilation, kernels, memory."""

    bf16: bool = option(False, "Mixed precision with bfloat16.")
    fp16: bool = option(False, "Mixed precision with float16 and loss scaling.")
    bf16_full_eval: bool = option(False, "Evaluate outside training entirely in bfloat16.")
    fp16_full_eval: bool = option(False, "Evaluate outside training entirely in float16.")
    tf32: bool | None = option(None, "TF32 in matrix products of float32; None leaves torch's setting.")
    torch_compile: bool = option(False, "Compile the model.")
    torch_compile_backend: str | None = option(None, "Backend of the compiler, default inductor; turns it on.")
    torch_compile_mode: str | None = option(
        None, "Mode of the compiler (default, reduce-overhead, max-autotune); turns it on."
    )
    use_liger_kernel: bool = option(False, "Put kernels of liger-kernel into the model, on GPUs.")
    liger_kernel_config: dict[str, bool] | None = option(
        None, "Kernels of liger-kernel that are wanted, or not.", json=True
    )
    activation_checkpointing: bool | None = option(
        None, "Recompute activations in the backward pass instead of keeping them; default False.", words="?"
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = option(
        None, "Keywords of torch.utils.checkpoint, and every_n_layers and offload.", json=True
    )
    gradient_checkpointing: bool | None = option(None, "Older name of activation_checkpointing, which wins.", words="?")
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = option(
        None, "Older name of activation_checkpointing_kwargs.", json=True
    )
    use_cache: bool = option(False, "What the model's configuration says of key/value caching during training.")
    torch_empty_cache_steps: int | None = option(
        None, "Empty the device's cache before the backward pass of every n-th update.", check=positive
    )
    auto_find_batch_size: bool = option(
        False,
        "Where memory runs out, learn from micro-batches in 2, 4, 8, ... pieces; updates are of the same samples as before.",
    )
