"""Mainspring: a training system for PyTorch behind the Trainer / TrainingArguments API.

    from mainspring import Trainer, TrainingArguments

Public names are imported when they are first used: ``import mainspring`` alone imports neither torch nor any other
package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mainspring.adafactor import Adafactor
    from mainspring.arguments import (
        Seq2SeqTrainingArguments,
        TrainingArguments,
    )
    from mainspring.arguments.enums import (
        IntervalStrategy,
        SchedulerType,
    )
    from mainspring.arguments.parser import HfArgumentParser
    from mainspring.callbacks import (
        DefaultFlowCallback,
        EarlyStoppingCallback,
        EMACallback,
        PrinterCallback,
        ProgressCallback,
        TrainerCallback,
    )
    from mainspring.data.collators import (
        DataCollator,
        DataCollatorForLanguageModeling,
        DataCollatorForMultipleChoice,
        DataCollatorForPermutationLanguageModeling,
        DataCollatorForSeq2Seq,
        DataCollatorForSOP,
        DataCollatorForTokenClassification,
        DataCollatorForWholeWordMask,
        DataCollatorWithFlattening,
        DataCollatorWithPadding,
        DefaultDataCollator,
        default_data_collator,
    )
    from mainspring.launch.notebook import notebook_launcher
    from mainspring.metrics import (
        EvalPrediction,
    )
    from mainspring.processes import torch_distributed_zero_first
    from mainspring.schedulers import (
        GreedyLR,
        get_constant_schedule,
        get_constant_schedule_with_warmup,
        get_cosine_schedule_with_warmup,
        get_cosine_with_hard_restarts_schedule_with_warmup,
        get_cosine_with_min_lr_schedule_with_warmup,
        get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
        get_greedy_schedule,
        get_inverse_sqrt_schedule,
        get_linear_schedule_with_warmup,
        get_polynomial_decay_schedule_with_warmup,
        get_reduce_on_plateau_schedule,
        get_scheduler,
        get_wsd_schedule,
    )
    from mainspring.seeding import (
        enable_full_determinism,
        set_seed,
    )
    from mainspring.seq2seq import Seq2SeqTrainer
    from mainspring.state import (
        TrainerControl,
        TrainerState,
    )
    from mainspring.trainer import (
        Trainer,
    )
    from mainspring.utils import logging

__all__ = [
    "Adafactor",
    "DataCollator",
    "DataCollatorForLanguageModeling",
    "DataCollatorForMultipleChoice",
    "DataCollatorForPermutationLanguageModeling",
    "DataCollatorForSOP",
    "DataCollatorForSeq2Seq",
    "DataCollatorForTokenClassification",
    "DataCollatorForWholeWordMask",
    "DataCollatorWithFlattening",
    "DataCollatorWithPadding",
    "DefaultDataCollator",
    "DefaultFlowCallback",
    "EMACallback",
    "EarlyStoppingCallback",
    "EvalPrediction",
    "GreedyLR",
    "HfArgumentParser",
    "IntervalStrategy",
    "PrinterCallback",
    "ProgressCallback",
    "SchedulerType",
    "Seq2SeqTrainer",
    "Seq2SeqTrainingArguments",
    "Trainer",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "TrainingArguments",
    "default_data_collator",
    "enable_full_determinism",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_greedy_schedule",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_reduce_on_plateau_schedule",
    "get_scheduler",
    "get_wsd_schedule",
    "logging",
    "notebook_launcher",
    "set_seed",
    "torch_distributed_zero_first",
]

# Where each public name lives. It stays in step with the imports above, which only type checkers read.
_ROOMS: dict[str, tuple[str, ...]] = {
    "adafactor": ("Adafactor",),
    "arguments": (
        "Seq2SeqTrainingArguments",
        "TrainingArguments",
    ),
    "arguments.enums": (
        "IntervalStrategy",
        "SchedulerType",
    ),
    "arguments.parser": ("HfArgumentParser",),
    "callbacks": (
        "DefaultFlowCallback",
        "EMACallback",
        "EarlyStoppingCallback",
        "PrinterCallback",
        "ProgressCallback",
        "TrainerCallback",
    ),
    "data.collators": (
        "DataCollator",
        "DataCollatorForLanguageModeling",
        "DataCollatorForMultipleChoice",
        "DataCollatorForPermutationLanguageModeling",
        "DataCollatorForSeq2Seq",
        "DataCollatorForSOP",
        "DataCollatorForTokenClassification",
        "DataCollatorForWholeWordMask",
        "DataCollatorWithFlattening",
        "DataCollatorWithPadding",
        "DefaultDataCollator",
        "default_data_collator",
    ),
    "launch.notebook": ("notebook_launcher",),
    "metrics": ("EvalPrediction",),
    "processes": ("torch_distributed_zero_first",),
    "schedulers": (
        "GreedyLR",
        "get_constant_schedule",
        "get_constant_schedule_with_warmup",
        "get_cosine_schedule_with_warmup",
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        "get_cosine_with_min_lr_schedule_with_warmup",
        "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
        "get_greedy_schedule",
        "get_wsd_schedule",
        "get_inverse_sqrt_schedule",
        "get_linear_schedule_with_warmup",
        "get_polynomial_decay_schedule_with_warmup",
        "get_reduce_on_plateau_schedule",
        "get_scheduler",
    ),
    "seq2seq": ("Seq2SeqTrainer",),
    "seeding": (
        "enable_full_determinism",
        "set_seed",
    ),
    "state": (
        "TrainerControl",
        "TrainerState",
    ),
    "trainer": ("Trainer",),
    "utils": ("logging",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

# Modules that scripts reach as attributes (`mainspring.utils.logging.set_verbosity_info()`).
_MODULES = frozenset(
    {
        "data",
        "debug_utils",
        "diagnostics",
        "hf_argparser",
        "integrations",
        "measuring",
        "optimization",
        "trainer_callback",
        "trainer_pt_utils",
        "trainer_seq2seq",
        "trainer_utils",
        "training_args",
        "training_args_seq2seq",
        "utils",
    }
)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
