"""One checkpoint directory: its names, how it is written, found, checked and read.

A checkpoint is written whole or not at all (`staging`): into a folder beside its place, flushed to the disk, then renamed.
It counts when it is still what was written (`manifest`); another is named, moved aside and passed over (`search`).
Nothing in one is ever executed: tensors are safetensors, facts are JSON, and what torch pickles is read with
`weights_only=True` under an allow-list (`torch_files`). Policy (when to save, how many to keep) is decided elsewhere.

| module | question it answers |
|---|---|
| `names` | what are the files called? |
| `folders` | which checkpoints are there, which may go? |
| `search`, `resolve` | which one does a run go on from? |
| `staging` | how does a checkpoint appear in one step? |
| `absorb` | what does it take over from the folder that has its name? |
| `aside` | what is kept, but no checkpoint any more? |
| `saver` | how do the processes of a run write one together, and what if they cannot? |
| `together` | what do those processes ask of each other, and whose disk is whose? |
| `background` | how is one written while training goes on? |
| `deferral` | which writes wait for that? |
| `snapshot` | how is the state kept until then? |
| `manifest`, `manifest_text` | is it what was written? how is that written down? |
| `hashing` | by what is a file known? |
| `disk` | how is what was written forced to the disk, and what is a system's refusal? |
| `space` | does it fit on the disk? |
| `weights` | how do a model's weights get in and out? |
| `adapters` | how do those of PEFT's adapters? |
| `optimizer_files` | in which of them is the optimizer's? |
| `tensors` | how do named tensors that are no model's weights, as averages of them? |
| `torch_files` | how do optimizer, scheduler, scaler and random states? |
| `random_states` | how do those fit another number of processes? |
| `sharded/` | how are states written that lie in shards over the processes, and read by any number of them? |
| `zero/` | what is in DeepSpeed's checkpoints? |
| `stored`, `lazy_torch` | how are tensors left in their files until they are asked for? |
| `export/` | how does a checkpoint of any form become one model? |
| `contents` | which files count? |
| `structure` | why can a folder without a manifest not be resumed from? |
| `ended` | had a run that was stopped come to its end? |
| `lock` | is another run in this output folder? |
| `drift` | what has changed since it was written? |
| `pickles` | could a file execute anything where other engines unpickle it? |
| `opcodes`, `torch_zip`, `shards` | what would a pickle do? where are those in torch's files? |
| `allowed`, `numpy_values` | what may they refer to? |

What needs torch is imported when it is first used: checkpoints are listed and verified without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.drift import Drift, drift
from mainspring.checkpoint.ended import ENDED_NAME, has_ended, note_end
from mainspring.checkpoint.folders import (
    checkpoint_name,
    checkpoint_step,
    checkpoints_of_run,
    get_last_checkpoint,
    prunable,
    prune,
    remove_checkpoint,
    rotate_checkpoints,
    sort_checkpoints,
)
from mainspring.checkpoint.lock import LOCK_NAME, locked
from mainspring.checkpoint.manifest import (
    Facts,
    FileRecord,
    Manifest,
    NewerManifestError,
    check_sizes,
    library_versions,
    read_manifest,
    reseal,
    seal,
    verify,
)
from mainspring.checkpoint.names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    CALLBACKS_NAME,
    CONFIG_NAME,
    DATA_POSITION_NAME,
    EMA_NAME,
    FSDP_MODEL_NAME,
    FSDP_WEIGHTS_NAME,
    GENERATION_CONFIG_NAME,
    MANIFEST_NAME,
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    PREFIX_CHECKPOINT_DIR,
    PROGRESS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    SHARDED_MODEL_FOLDER,
    SHARDED_OPTIMIZER_FOLDER,
    SNAPSHOTS_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_JSON,
    TRAINING_ARGS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    comm_hook_name,
    data_position_name,
    rng_state_name,
)
from mainspring.checkpoint.pickles import dangerous_globals, refuse, scan_folder
from mainspring.checkpoint.resolve import resolve, resolve_together
from mainspring.checkpoint.search import Search, newest_first, newest_valid, quarantine
from mainspring.checkpoint.staging import Stage, clean_stages, staged
from mainspring.checkpoint.structure import check_structure
from mainspring.checkpoint.together import Disk, DiskPerMachine, OneDisk, by_writers, in_any_case
from mainspring.errors import CheckpointError

if TYPE_CHECKING:
    from mainspring.checkpoint.background import BackgroundWriter, Finished
    from mainspring.checkpoint.optimizer_files import load_optimizer
    from mainspring.checkpoint.random_states import restore_random_states
    from mainspring.checkpoint.saver import Saver
    from mainspring.checkpoint.space import check_space, estimate_bytes
    from mainspring.checkpoint.tensors import NamedTensors, load_tensors, save_tensors
    from mainspring.checkpoint.torch_files import load_torch, save_torch
    from mainspring.checkpoint.weights import LoadReport, load_weights, save_model
    from mainspring.checkpoint.zero import (
        get_fp32_state_dict_from_zero_checkpoint,
        load_state_dict_from_zero_checkpoint,
    )

__all__ = [
    "ADAPTER_CONFIG_NAME",
    "ADAPTER_SAFE_WEIGHTS_NAME",
    "ADAPTER_WEIGHTS_NAME",
    "CALLBACKS_NAME",
    "CONFIG_NAME",
    "DATA_POSITION_NAME",
    "EMA_NAME",
    "ENDED_NAME",
    "FSDP_MODEL_NAME",
    "FSDP_WEIGHTS_NAME",
    "GENERATION_CONFIG_NAME",
    "LOCK_NAME",
    "MANIFEST_NAME",
    "OPTIMIZER_NAME",
    "OPTIMIZER_NAME_BIN",
    "PREFIX_CHECKPOINT_DIR",
    "PROGRESS_NAME",
    "SAFE_WEIGHTS_INDEX_NAME",
    "SAFE_WEIGHTS_NAME",
    "SCALER_NAME",
    "SCHEDULER_NAME",
    "SHARDED_MODEL_FOLDER",
    "SHARDED_OPTIMIZER_FOLDER",
    "SNAPSHOTS_NAME",
    "TRAINER_STATE_NAME",
    "TRAINING_ARGS_JSON",
    "TRAINING_ARGS_NAME",
    "WEIGHTS_INDEX_NAME",
    "WEIGHTS_NAME",
    "BackgroundWriter",
    "CheckpointError",
    "Contents",
    "Disk",
    "DiskPerMachine",
    "Drift",
    "Facts",
    "FileRecord",
    "Finished",
    "LoadReport",
    "Manifest",
    "NamedTensors",
    "NewerManifestError",
    "OneDisk",
    "Saver",
    "Search",
    "Stage",
    "by_writers",
    "check_sizes",
    "check_space",
    "check_structure",
    "checkpoint_name",
    "checkpoint_step",
    "checkpoints_of_run",
    "clean_stages",
    "comm_hook_name",
    "dangerous_globals",
    "data_position_name",
    "drift",
    "estimate_bytes",
    "get_fp32_state_dict_from_zero_checkpoint",
    "get_last_checkpoint",
    "has_ended",
    "in_any_case",
    "library_versions",
    "load_optimizer",
    "load_state_dict_from_zero_checkpoint",
    "load_tensors",
    "load_torch",
    "load_weights",
    "locked",
    "newest_first",
    "newest_valid",
    "note_end",
    "prunable",
    "prune",
    "quarantine",
    "read_manifest",
    "refuse",
    "remove_checkpoint",
    "reseal",
    "resolve",
    "resolve_together",
    "restore_random_states",
    "rng_state_name",
    "rotate_checkpoints",
    "save_model",
    "save_tensors",
    "save_torch",
    "scan_folder",
    "seal",
    "sort_checkpoints",
    "staged",
    "verify",
]

# Where the names above live that need torch.
_WITH_TORCH = {
    "BackgroundWriter": "background",
    "Finished": "background",
    "LoadReport": "weights",
    "NamedTensors": "tensors",
    "Saver": "saver",
    "check_space": "space",
    "estimate_bytes": "space",
    "get_fp32_state_dict_from_zero_checkpoint": "zero",
    "load_optimizer": "optimizer_files",
    "load_state_dict_from_zero_checkpoint": "zero",
    "load_tensors": "tensors",
    "load_torch": "torch_files",
    "load_weights": "weights",
    "restore_random_states": "random_states",
    "save_model": "weights",
    "save_tensors": "tensors",
    "save_torch": "torch_files",
}


def __getattr__(name: str) -> object:
    """Import what needs torch when it is first used (PEP 562)."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value
