"""States that lie in shards over the processes of a run: into a folder, out of it on any number of processes, and whole.

    save_shards(stage / SHARDED_MODEL_FOLDER, {"model": sharded_model_state(model)})            # every process
    load_model_shards(model, checkpoint / SHARDED_MODEL_FOLDER)                                 # every process, any number
    for name, tensor in stream_shards(checkpoint / SHARDED_MODEL_FOLDER, "model"): ...          # no process group needed

The folders are those of `torch.distributed.checkpoint`, under the names and keys that the reference uses, so either
library reads the other's.

| module | question it answers |
|---|---|
| `folder` | how do all processes write one folder, and read it? |
| `metadata` | what is where in it? read without executing anything |
| `streaming` | how does one process read it, tensor by tensor? |
| `models`, `optimizers` | what of a model or an optimizer is a state, and how does one get in again? |
| `parameter_names` | what are parameters called, whatever wraps the model? |
| `sources` | in which form does a checkpoint have an optimizer's state? |
| `whole` | how does a shard become a whole tensor, and a whole tensor a shard? |
| `wrapped_v1` | how does FSDP in its first form do these? |
"""

from mainspring.checkpoint.sharded.folder import load_shards, save_shards
from mainspring.checkpoint.sharded.metadata import read_metadata
from mainspring.checkpoint.sharded.models import (
    load_model_shards,
    put_model_state,
    sharded_model_state,
    whole_model_state,
)
from mainspring.checkpoint.sharded.optimizers import (
    load_named_state,
    load_optimizer_shards,
    put_optimizer_state,
    sharded_optimizer_state,
    whole_optimizer_state,
)
from mainspring.checkpoint.sharded.sources import load_optimizer_across
from mainspring.checkpoint.sharded.streaming import shard_readers, stream_shards, whole_shards
from mainspring.checkpoint.sharded.whole import on_main_process

__all__ = [
    "load_model_shards",
    "load_named_state",
    "load_optimizer_across",
    "load_optimizer_shards",
    "load_shards",
    "on_main_process",
    "put_model_state",
    "put_optimizer_state",
    "read_metadata",
    "save_shards",
    "shard_readers",
    "sharded_model_state",
    "sharded_optimizer_state",
    "stream_shards",
    "whole_model_state",
    "whole_optimizer_state",
    "whole_shards",
]
