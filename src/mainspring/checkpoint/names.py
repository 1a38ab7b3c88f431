"""The names of the files in a checkpoint: the reference's, and some of our own."""

from __future__ import annotations

PREFIX_CHECKPOINT_DIR = "checkpoint"

WEIGHTS_NAME = "pytorch_model.bin"
WEIGHTS_INDEX_NAME = "pytorch_model.bin.index.json"
SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.bin"
ADAPTER_SAFE_WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
FSDP_MODEL_NAME = "pytorch_model_fsdp"
# Under FSDP the reference writes a whole state into the first, or shards into the second, and so the optimizer's.
FSDP_WEIGHTS_NAME = f"{FSDP_MODEL_NAME}.bin"
SHARDED_MODEL_FOLDER = f"{FSDP_MODEL_NAME}_0"
SHARDED_OPTIMIZER_FOLDER = "optimizer_0"

# DeepSpeed's own checkpoints: the file that names the folder of the pieces.
DEEPSPEED_LATEST_NAME = "latest"

OPTIMIZER_NAME = "optimizer.pt"
OPTIMIZER_NAME_BIN = "optimizer.bin"
SCHEDULER_NAME = "scheduler.pt"
SCALER_NAME = "scaler.pt"
TRAINER_STATE_NAME = "trainer_state.json"

# The reference pickles its arguments here. A pickle can run anything, so this file is never read, and written on request only.
TRAINING_ARGS_NAME = "training_args.bin"
# Ours: the same arguments as JSON, what is resumable beyond the reference's files, and the hash of every file.
TRAINING_ARGS_JSON = "training_args.json"
PROGRESS_NAME = "progress.json"
CALLBACKS_NAME = "callbacks.pt"
DATA_POSITION_NAME = "data_position.pt"
SNAPSHOTS_NAME = "snapshots.pt"
EMA_NAME = "ema.safetensors"
MANIFEST_NAME = "manifest.json"


def rng_state_name(process_index: int, world_size: int) -> str:
    """Return the file of one process's random states: `rng_state.pth` when there is one process, else numbered."""
    return "rng_state.pth" if world_size <= 1 else f"rng_state_{process_index}.pth"


def data_position_name(process_index: int, world_size: int) -> str:
    """Return the file of one process's own place in the data: `data_position.pt` when there is one process, else numbered."""
    return DATA_POSITION_NAME if world_size <= 1 else f"data_position_{process_index}.pt"


def comm_hook_name(process_index: int) -> str:
    """Return the file of what one process's compression of gradients remembers."""
    return f"comm_hook_{process_index}.pt"
