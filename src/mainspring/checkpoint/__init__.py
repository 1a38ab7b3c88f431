"""One checkpoint directory: its names, how it is written, found, checked and read.

A checkpoint is written whole or not at all (`staging`): into a folder beside its place, flushed to the disk, then renamed.
Nothing in one is ever executed: tensors are safetensors, facts are JSON, and what torch pickles is read with
`weights_only=True` under an allow-list (`torch_files`). Policy (when to save, how many to keep) is decided elsewhere.

| module | question it answers |
|---|---|
| `names` | what are the files called? |
| `folders` | which checkpoints are there, which may go? |
| `staging` | how does a checkpoint appear in one step? |
| `weights` | how do a model's weights get in and out? |
| `adapters` | how do those of PEFT's adapters? |
| `torch_files` | how do optimizer, scheduler, scaler and random states? |
| `structure` | why can this folder not be resumed from? |
"""

from __future__ import annotations

from mainspring.checkpoint.folders import (
    checkpoint_name,
    checkpoint_step,
    get_last_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
    sort_checkpoints,
)
from mainspring.checkpoint.names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    FSDP_MODEL_NAME,
    GENERATION_CONFIG_NAME,
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    PREFIX_CHECKPOINT_DIR,
    PROGRESS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_JSON,
    TRAINING_ARGS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    rng_state_name,
)
from mainspring.checkpoint.staging import clean_stages, staged
from mainspring.checkpoint.structure import check_structure
from mainspring.checkpoint.torch_files import load_torch, save_torch
from mainspring.checkpoint.weights import LoadReport, load_weights, save_model
from mainspring.errors import CheckpointError

__all__ = [
    "ADAPTER_CONFIG_NAME",
    "ADAPTER_SAFE_WEIGHTS_NAME",
    "ADAPTER_WEIGHTS_NAME",
    "CONFIG_NAME",
    "FSDP_MODEL_NAME",
    "GENERATION_CONFIG_NAME",
    "OPTIMIZER_NAME",
    "OPTIMIZER_NAME_BIN",
    "PREFIX_CHECKPOINT_DIR",
    "PROGRESS_NAME",
    "SAFE_WEIGHTS_INDEX_NAME",
    "SAFE_WEIGHTS_NAME",
    "SCALER_NAME",
    "SCHEDULER_NAME",
    "TRAINER_STATE_NAME",
    "TRAINING_ARGS_JSON",
    "TRAINING_ARGS_NAME",
    "WEIGHTS_INDEX_NAME",
    "WEIGHTS_NAME",
    "CheckpointError",
    "LoadReport",
    "check_structure",
    "checkpoint_name",
    "checkpoint_step",
    "clean_stages",
    "get_last_checkpoint",
    "load_torch",
    "load_weights",
    "remove_checkpoint",
    "rng_state_name",
    "rotate_checkpoints",
    "save_model",
    "save_torch",
    "sort_checkpoints",
    "staged",
]
