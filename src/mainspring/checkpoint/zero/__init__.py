"""DeepSpeed's checkpoints, read without DeepSpeed and without executing anything in them.

    state = get_fp32_state_dict_from_zero_checkpoint("out/checkpoint-500")     # whole, in memory
    for name, tensor in zero_weights("out/checkpoint-500").tensors.items():    # one at a time
        tensor.read()

Such a checkpoint names a folder in its file `latest`. In it each process has left its part of the numbers that the optimizer
steps; together with the shapes that the model's file lists they are the weights.

| module | question it answers |
|---|---|
| `layout` | which files belong to one, and could they be read at all? |
| `objects` | what are DeepSpeed's own objects in them, which are never made? |
| `partitions` | which values in which file are a parameter's? |
| `offloaded` | and where an optimizer had them on NVMe? |
| `weights` | what is the whole model? |
| `moments` | what does the optimizer remember of each? |
| `universal` | and where a checkpoint was made independent of the number of processes? |
| `whole` | DeepSpeed's functions for it |
"""

from mainspring.checkpoint.weights import is_zero_checkpoint
from mainspring.checkpoint.zero.moments import read_all, zero_optimizer, zero_progress
from mainspring.checkpoint.zero.objects import DEEPSPEED_OBJECTS
from mainspring.checkpoint.zero.weights import ZeroWeights, zero_weights
from mainspring.checkpoint.zero.whole import (
    get_fp32_state_dict_from_zero_checkpoint,
    load_state_dict_from_zero_checkpoint,
)

__all__ = [
    "DEEPSPEED_OBJECTS",
    "ZeroWeights",
    "get_fp32_state_dict_from_zero_checkpoint",
    "is_zero_checkpoint",
    "load_state_dict_from_zero_checkpoint",
    "read_all",
    "zero_optimizer",
    "zero_progress",
    "zero_weights",
]
