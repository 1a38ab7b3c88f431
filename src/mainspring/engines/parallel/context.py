"""Context parallelism: each process reads its part of every sequence, and keys and values are passed round (GPUs only).

Built on torch's `context_parallel`, which replaces scaled dot-product attention by ring attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from mainspring.errors import OptionError, Problem
from mainspring.model import unwrap

IGNORED = -100
_FILLING = {"input_ids": 0, "labels": IGNORED, "shift_labels": IGNORED}
Entered = Callable[[], contextlib.AbstractContextManager[Any]]


def part_of_sequences(
    model: nn.Module, inputs: Mapping[str, Any], mesh: DeviceMesh, rotation: str | None
) -> tuple[Entered, dict[str, Any]]:
    """The context in which `inputs` hold one process's part of each sequence, and these inputs.

    Args:
        model: A causal language model of transformers with SDPA.
        inputs: The whole batch (batch, sequence), on the device; alike on all processes of the mesh.
        mesh: The processes that share the sequences, in one dimension.
        rotation: How keys and values go round: "allgather" or "alltoall"; None leaves it to torch.

    Raises:
        OptionError: The model attends in another way, or the batch has what cannot be divided.
    """
    _check_attention(model)
    batch = _filled_up(_with_places(dict(inputs)), 2 * mesh.size())
    buffers = list(batch.values())

    def enter() -> contextlib.AbstractContextManager[Any]:
        from torch.distributed.tensor.experimental import context_parallel
        from torch.distributed.tensor.experimental._attention import set_rotate_method

        if rotation is not None:
            set_rotate_method(rotation)

        # The buffers are copies of the batch's, made above: nobody needs them whole again.
        return context_parallel(
            mesh, buffers=buffers, buffer_seq_dims=[1] * len(buffers), no_restore_buffers=set(buffers)
        )

    return enter, batch


def _check_attention(model: nn.Module) -> None:
    kind = getattr(getattr(unwrap(model), "config", None), "_attn_implementation", None)
    if kind != "sdpa":
        why = f"ring attention takes the place of SDPA, and the model has attn_implementation={kind!r}"
        raise _refused(why, 'load the model with attn_implementation="sdpa"')


def _with_places(inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with labels shifted and places counted while the sequences are whole, and without its mask."""
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        raise _refused("the batch has no input_ids of two dimensions", "use a collator for causal language models")
    mask = inputs.pop("attention_mask", None)
    if mask is not None:
        _check_mask(mask)
    if "labels" in inputs and "shift_labels" not in inputs:
        inputs["shift_labels"] = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
    if "position_ids" not in inputs:
        inputs["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    strange = [name for name, value in inputs.items() if not isinstance(value, Tensor) or value.shape != tokens.shape]
    if strange:
        raise _refused(f"{', '.join(strange)} cannot be divided along the sequence", "take it out of the batch")
    return inputs


def _check_mask(mask: Tensor) -> None:
    """Ring attention is causal, and takes no mask: only what stands behind all that counts may be masked."""
    if mask.ndim != 2:
        raise _refused(
            "the attention mask is not one of padding, and only causal attention is passed round", "leave it out"
        )
    # Asked on the device: the host does not wait for the answer.
    torch._assert_async((mask[:, 1:] <= mask[:, :-1]).all(), "context parallelism needs padding on the right")


def _filled_up(inputs: dict[str, Tensor], multiple: int) -> dict[str, Tensor]:
    """Copies of the batch, as long as a multiple: each process takes a part from the front and one from the back."""
    length = inputs["input_ids"].shape[1]
    behind = -length % multiple
    filled = {name: nn.functional.pad(t, (0, behind), value=_FILLING.get(name, 0)) for name, t in inputs.items()}
    return {name: tensor.clone() for name, tensor in filled.items()}


def _refused(why: str, fix: str) -> OptionError:
    return OptionError([Problem("parallelism_config", "cp_size", why, fix)])
