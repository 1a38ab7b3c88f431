"""Models that cannot be trained from the start: with numbers that are not finite, or with nothing that learns."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

_NAMED = 5


@torch.no_grad()
def nonfinite_parameters(parameters: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of those that hold a NaN or an infinity: one pass, and one value read per device.

    Of parameters in pieces, this process's own are looked at. What holds no values, or none that can be infinite, is passed
    over.
    """
    names: dict[torch.device, list[str]] = {}
    finite: dict[torch.device, list[Tensor]] = {}
    for name, parameter in parameters:
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if local.is_meta or not local.numel() or local.dtype not in _KINDS:
            continue
        names.setdefault(local.device, []).append(name)
        finite.setdefault(local.device, []).append(torch.linalg.vector_norm(local, torch.inf).isfinite())
    found = []
    for device, flags in finite.items():
        found += [name for name, fine in zip(names[device], torch.stack(flags).tolist(), strict=True) if not fine]
    return found


_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def refuse_nonfinite(found: Iterable[Iterable[str]]) -> None:
    """Refuse to train a model some of whose parameters are not finite.

    Args:
        found: The names of these parameters that each process has found.

    Raises:
        ValueError: There are any.
    """
    names = list(dict.fromkeys(chain.from_iterable(found)))
    if not names:
        return
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    raise ValueError(
        f"the model holds NaN or infinite values before training begins, in {', '.join(names[:_NAMED])}{more}: no update "
        "would make them finite again. Look at how it was initialised, or at the file that it was loaded from"
    )


def refuse_untrainable(model: nn.Module) -> None:
    """Refuse to train a model of which nothing learns.

    Raises:
        ValueError: It has no parameter that requires a gradient.
    """
    parameters = list(model.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        return
    frozen = (
        f"all {len(parameters)} parameters of the model are frozen" if parameters else "the model has no parameters"
    )
    raise ValueError(f"{frozen}: there is nothing to train; set requires_grad=True on what is to learn")
