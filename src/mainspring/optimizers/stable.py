"""StableAdamW of torch-optimi: AdamW whose learning rate is clipped where the second moment lags behind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optimi

from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, boolean, read_options


def stable_adamw(request: OptimizerRequest) -> OptimizerSpec:
    """`StableAdamW`, after Wortsman et al., https://arxiv.org/abs/2304.13013."""
    own = {"decouple_lr": False, "max_lr": None, "kahan_sum": None, "weight_decay": request.weight_decay}
    return StableAdamW, {
        **request.adam,
        **own,
        **read_options(request, decouple_lr=boolean, max_lr=float, kahan_sum=boolean),
    }


class StableAdamW(optimi.StableAdamW):  # type: ignore[misc]
    """`optimi.StableAdamW`, which where Triton is installed takes its kernels on a CPU too, where they do not run."""

    def __init__(self, params: Iterable[Any], **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            if group["triton"] is None and any(parameter.device.type == "cpu" for parameter in group["params"]):
                group["triton"] = False
