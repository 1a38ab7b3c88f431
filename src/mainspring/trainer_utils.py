"""Door: what scripts import from ``trainer_utils``: seeds, checkpoint names, result types, enumerations."""

from __future__ import annotations

from mainspring.absent import not_available_yet
from mainspring.arguments.enums import (
    FSDPOption,
    HPSearchBackend,
    HubStrategy,
    IntervalStrategy,
    SaveStrategy,
    SchedulerType,
)
from mainspring.batch_size import find_executable_batch_size
from mainspring.checkpoint import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints, sort_checkpoints
from mainspring.data.collators import RemoveColumnsCollator
from mainspring.measuring.memory import TrainerMemoryTracker
from mainspring.metrics import (
    BestRun,
    EvalLoopOutput,
    EvalPrediction,
    PredictionOutput,
    TrainOutput,
    default_compute_objective,
    denumpify_detensorize,
    has_length,
    number_of_arguments,
    speed_metrics,
)
from mainspring.model import align_special_tokens
from mainspring.processes import is_main_process
from mainspring.seeding import enable_full_determinism, seed_worker, set_seed

__all__ = [
    "PREFIX_CHECKPOINT_DIR",
    "BestRun",
    "EvalLoopOutput",
    "EvalPrediction",
    "FSDPOption",
    "HPSearchBackend",
    "HubStrategy",
    "IntervalStrategy",
    "PredictionOutput",
    "RemoveColumnsCollator",
    "SaveStrategy",
    "SchedulerType",
    "TrainOutput",
    "TrainerMemoryTracker",
    "align_special_tokens",
    "default_compute_objective",
    "denumpify_detensorize",
    "enable_full_determinism",
    "find_executable_batch_size",
    "get_last_checkpoint",
    "has_length",
    "is_main_process",
    "number_of_arguments",
    "rotate_checkpoints",
    "seed_worker",
    "set_seed",
    "sort_checkpoints",
    "speed_metrics",
]

__getattr__ = not_available_yet(
    __name__,
    "check_target_module_exists",
    "compare_trainer_and_checkpoint_args",
    "default_hp_space_optuna",
    "default_hp_space_ray",
    "default_hp_space_wandb",
    "load_sharded_checkpoint",
    "suppress_progress_bars",
    "total_processes_number",
    "unwrap_peft_model",
    "validate_quantization_for_training",
)
