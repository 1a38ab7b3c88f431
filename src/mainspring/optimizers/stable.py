"""StableAdamW of torch-optimi: AdamW whose learning rate is clipped where the second moment lags behind."""

from __future__ import annotations

from optimi import StableAdamW

from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, boolean, read_options


def stable_adamw(request: OptimizerRequest) -> OptimizerSpec:
    """`optimi.StableAdamW`, after Wortsman et al., https://arxiv.org/abs/2304.13013."""
    own = {"decouple_lr": False, "max_lr": None, "kahan_sum": None, "weight_decay": request.weight_decay}
    return StableAdamW, {
        **request.adam,
        **own,
        **read_options(request, decouple_lr=boolean, max_lr=float, kahan_sum=boolean),
    }
