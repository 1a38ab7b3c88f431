"""Options that can do nothing beside the others: the run is as it would be without them, and the user is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mainspring.arguments import fsdp_launcher
from mainspring.arguments.docstring import default_of
from mainspring.arguments.masking import shown
from mainspring.errors import Problem

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments

NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that do not look at `warmup_steps`."""

OWN_WARMUP = ("schedule_free_adamw", "schedule_free_sgd")
"""Optimizers that warm up by themselves."""

NO_ADAM = (
    "sgd",
    "adafactor",
    "adagrad",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "galore_adafactor",
    "galore_adafactor_layerwise",
    "lomo",
    "adalomo",
    "schedule_free_sgd",
)
"""Optimizers that do not look at Adam's options."""

LOW_RANK = ("galore_", "apollo_")
"""How the names of optimizers begin that project the gradients of chosen layers."""


@dataclass(frozen=True)
class Idle:
    """Options that one state of the others makes idle.

    Attributes:
        options: Their names.
        why: Given the arguments, says what makes them idle; None where they act.
        fix: What to do about it.
    """

    options: tuple[str, ...]
    why: Callable[[TrainingArguments], str | None]
    fix: str


def _no_warmup(a: TrainingArguments) -> str | None:
    """The schedule has no warm-up."""
    if str(a.optim) in OWN_WARMUP or a.lr_scheduler_type not in NO_WARMUP:
        return None
    return f"the schedule {str(a.lr_scheduler_type)!r} has no warm-up"


def _no_adam(a: TrainingArguments) -> str | None:
    """The optimizer does not read Adam's options."""
    return f"optim={str(a.optim)!r} does not read it" if a.optim in NO_ADAM else None


def _no_epsilon(a: TrainingArguments) -> str | None:
    """The optimizer does not read Adam's options, or is Lion, which has nothing to divide by."""
    return f"optim={str(a.optim)!r} has no denominator" if "lion" in str(a.optim) else _no_adam(a)


def _nothing_is_projected(a: TrainingArguments) -> str | None:
    """No low-rank optimizer is chosen."""
    low_rank = str(a.optim).startswith(LOW_RANK)
    return None if low_rank else f"optim={str(a.optim)!r} projects no gradients: only GaLore and APOLLO do"


def _epochs_are_not_counted(a: TrainingArguments) -> str | None:
    """The number of updates is given, and wins."""
    # Below 0 says the same as max_steps does: that epochs do not count.
    return f"max_steps is {a.max_steps}, and wins" if a.max_steps > 0 and a.num_train_epochs >= 0 else None


def _nothing_is_recomputed(a: TrainingArguments) -> str | None:
    """Activations are kept, and not recomputed."""
    off = "activation_checkpointing (gradient_checkpointing) is off, which these keywords are for"
    return off if not a.activation_checkpointing and a.activation_checkpointing_kwargs else None


def _no_kernels(a: TrainingArguments) -> str | None:
    """The model's own code computes everything."""
    return None if a.use_liger_kernel else "use_liger_kernel is off, which chooses among its kernels"


def _no_workers(a: TrainingArguments) -> str | None:
    """One process loads the data, and keeps the order."""
    return "dataloader_num_workers is 0, and one process keeps the order" if a.dataloader_num_workers == 0 else None


# An interval of 0 agrees with every strategy that does not count updates.


def _other_evaluations(a: TrainingArguments) -> str | None:
    """Evaluations are not counted in updates."""
    return f"eval_strategy is {str(a.eval_strategy)!r}" if a.eval_strategy != "steps" and a.eval_steps else None


def _other_logs(a: TrainingArguments) -> str | None:
    """Neither logs nor evaluations are counted in updates."""
    # Evaluations may have taken their interval from here.
    other = a.logging_strategy != "steps" and a.eval_strategy != "steps" and a.logging_steps
    return f"logging_strategy is {str(a.logging_strategy)!r}" if other else None


def _other_saves(a: TrainingArguments) -> str | None:
    """Checkpoints are not counted in updates."""
    return f"save_strategy is {str(a.save_strategy)!r}" if a.save_strategy != "steps" and a.save_steps else None


def _nothing_saves(a: TrainingArguments) -> str | None:
    """Nothing saves a checkpoint: neither a strategy nor what stops a run or ends it."""
    others = (a.max_time is not None, a.enable_jit_checkpoint, a.save_on_exception)
    return None if a.save_strategy != "no" or any(others) else "save_strategy is 'no': there are no checkpoints"


def _no_signal_is_heeded(a: TrainingArguments) -> str | None:
    """Signals stop a run only where it could go on from a checkpoint."""
    if a.save_only_model:
        return "save_only_model is set, and a run that cannot be resumed is not stopped by signals"
    saves = a.save_strategy != "no" or a.max_time is not None or a.enable_jit_checkpoint
    return None if saves else "save_strategy is 'no', and a run without checkpoints is not stopped by signals"


def _nothing_is_evaluated(a: TrainingArguments) -> str | None:
    """Nothing is evaluated while the model trains."""
    return "eval_strategy is 'no': there is no evaluation to put off" if a.eval_strategy == "no" else None


def _nothing_is_compared(a: TrainingArguments) -> str | None:
    """Nothing is evaluated, and so no models are compared."""
    return "eval_strategy is 'no': no models are compared" if a.eval_strategy == "no" else None


def _no_metric(a: TrainingArguments) -> str | None:
    """No metric is named."""
    return "no metric_for_best_model is set" if a.metric_for_best_model is None else None


def _no_lengths(a: TrainingArguments) -> str | None:
    """Nobody asks how long samples are."""
    by_length = a.pack_sequences or a.train_sampling_strategy not in ("random", "sequential")
    sortish = getattr(a, "sortish_sampler", False)
    strategy = f"train_sampling_strategy is {str(a.train_sampling_strategy)!r}"
    return None if by_length or sortish else f"{strategy}, and nobody asks how long samples are"


def _no_budget(a: TrainingArguments) -> str | None:
    """Batches are measured in samples."""
    counted = a.train_sampling_strategy != "token_budget"
    return (
        f"train_sampling_strategy is {str(a.train_sampling_strategy)!r}, and batches count samples" if counted else None
    )


def _a_budget(a: TrainingArguments) -> str | None:
    """Batches are measured in tokens."""
    budget = a.train_sampling_strategy == "token_budget"
    return (
        "train_sampling_strategy is 'token_budget', and max_tokens_per_batch says how large a batch is"
        if budget
        else None
    )


def _the_reference_does_not_sort(a: TrainingArguments) -> str | None:
    """The reference declares the option, and that is all."""
    return f"compat is {a.compat!r}, and the reference does not look at it" if a.compat != "none" else None


def _nothing_is_packed(a: TrainingArguments) -> str | None:
    """Every row holds one sample."""
    return None if a.pack_sequences else "pack_sequences is off: every row holds one sample"


def _no_device_cache(a: TrainingArguments) -> str | None:
    """The run is on the CPU, which has no such cache."""
    return "use_cpu=True, and the CPU has no such cache" if a.use_cpu else None


def _nothing_is_sharded(a: TrainingArguments) -> str | None:
    """Nobody asks for FSDP: neither `fsdp` nor the launcher."""
    settings = a.fsdp_config if isinstance(a.fsdp_config, dict) else {}
    says_something = any(settings.values())  # 4.37 always saved the defaults of four settings
    return "fsdp is not set" if says_something and not a.fsdp and not fsdp_launcher.asks() else None


def _no_items(a: TrainingArguments) -> str | None:
    """4.37 counts no items: every loss is a mean."""
    return "compat='4.37' counts no items: every loss is a mean" if a.compat == "4.37" else None


def _no_items_in_evaluations(a: TrainingArguments) -> str | None:
    """4.37 counts no items: the evaluation loss is a mean of batch means."""
    return None if a.eval_loss_reduction == "batch_mean" else _no_items(a)


def _no_predictions_are_kept(a: TrainingArguments) -> str | None:
    """Evaluations and predictions give the loss only."""
    return "prediction_loss_only is set, and no predictions are kept" if a.prediction_loss_only else None


def _no_spike_is_looked_for(a: TrainingArguments) -> str | None:
    """Nobody looks whether the loss jumps."""
    return "on_loss_spike is 'off': nobody looks whether the loss jumps" if a.on_loss_spike == "off" else None


def _nothing_is_rolled_back(a: TrainingArguments) -> str | None:
    """Training never goes back."""
    rolls_back = a.on_loss_spike == "rollback"
    return None if rolls_back else f"on_loss_spike is {a.on_loss_spike!r}: training never goes back"


def _nothing_is_skipped(a: TrainingArguments) -> str | None:
    """No update is left out."""
    if "skip" in (a.on_nonfinite, a.on_loss_spike):
        return None
    return f"on_nonfinite is {a.on_nonfinite!r} and on_loss_spike {a.on_loss_spike!r}: no update is left out"


# These two are asked about options of `Seq2SeqTrainingArguments`, which stand beside what they read.


def _nothing_is_generated(a: Any) -> str | None:
    """Evaluations generate no text."""
    return None if a.predict_with_generate else "predict_with_generate is False: no text is generated"


def _nobody_reads_texts(a: Any) -> str | None:
    """Evaluations return the loss alone."""
    return "prediction_loss_only is set: nobody would read the texts" if a.prediction_loss_only else None


IDLE: tuple[Idle, ...] = (
    Idle(("warmup_steps",), _no_warmup, "use 'constant_with_warmup' or another schedule, or leave it out"),
    Idle(("adam_beta1", "adam_beta2"), _no_adam, "give what the optimizer has in optim_args"),
    Idle(("adam_epsilon",), _no_epsilon, "give what the optimizer has in optim_args"),
    Idle(("optim_target_modules",), _nothing_is_projected, "choose one of these, or leave it out"),
    Idle(("num_train_epochs",), _epochs_are_not_counted, "give one of the two"),
    Idle(
        ("activation_checkpointing_kwargs",),
        _nothing_is_recomputed,
        "set activation_checkpointing=True, or leave gradient_checkpointing_kwargs and its newer name out",
    ),
    Idle(("liger_kernel_config",), _no_kernels, "set use_liger_kernel=True, or leave it out"),
    Idle(("dataloader_in_order",), _no_workers, "set dataloader_num_workers above 0, or leave it out"),
    Idle(("eval_steps",), _other_evaluations, "set eval_strategy='steps', or leave it out"),
    Idle(("logging_steps",), _other_logs, "set logging_strategy='steps', or leave it out"),
    Idle(("save_steps",), _other_saves, "set save_strategy='steps', or leave it out"),
    Idle(
        ("save_total_limit", "save_only_model", "save_failure", "save_in_background"),
        _nothing_saves,
        "set another save_strategy, or leave it out",
    ),
    Idle(
        ("stop_signals",),
        _no_signal_is_heeded,
        "leave it out, or save whole checkpoints: set another save_strategy or enable_jit_checkpoint=True",
    ),
    Idle(("eval_delay",), _nothing_is_evaluated, "set eval_strategy='steps' or 'epoch', or leave it out"),
    Idle(("metric_for_best_model",), _nothing_is_compared, "set eval_strategy='steps' or 'epoch', or leave it out"),
    Idle(("greater_is_better",), _no_metric, "name the metric, or leave it out"),
    Idle(("fsdp_config",), _nothing_is_sharded, "set fsdp=True, or leave it out"),
    Idle(("average_tokens_across_devices",), _no_items, "leave it out"),
    Idle(("eval_loss_reduction",), _no_items_in_evaluations, "leave it out, or choose another compat"),
    Idle(("length_column_name",), _no_lengths, "set train_sampling_strategy='group_by_length', or leave it out"),
    Idle(("max_tokens_per_batch",), _no_budget, "set train_sampling_strategy='token_budget', or leave it out"),
    Idle(("per_device_train_batch_size",), _a_budget, "leave it out"),
    Idle(("sortish_sampler",), _the_reference_does_not_sort, "set train_sampling_strategy='group_by_length'"),
    Idle(("pack_length",), _nothing_is_packed, "set pack_sequences=True, or leave it out"),
    Idle(("eval_memory_limit",), _no_predictions_are_kept, "leave one of the two out"),
    Idle(("loss_spike_threshold",), _no_spike_is_looked_for, "set on_loss_spike='skip' or 'rollback', or leave it out"),
    Idle(
        ("loss_spike_rollback_updates", "max_rollbacks"),
        _nothing_is_rolled_back,
        "set on_loss_spike='rollback', or leave it out",
    ),
    Idle(("max_skipped_updates",), _nothing_is_skipped, "set on_nonfinite='skip', or leave it out"),
    Idle(
        ("generation_max_length", "generation_num_beams"),
        _nothing_is_generated,
        "set predict_with_generate=True, or leave it out",
    ),
    Idle(("predict_with_generate",), _nobody_reads_texts, "leave one of the two out"),
    Idle(("torch_empty_cache_steps",), _no_device_cache, "leave it out on the CPU"),
)
"""One line a group. What only several processes use is not here: how many there are shows later, in `machine`."""


def idle_options(args: TrainingArguments) -> Iterator[Problem]:
    """A complaint for each option that was given and that the others keep from doing anything."""
    for idle in IDLE:
        given = [name for name in idle.options if differs_from_default(args, name)]
        why = idle.why(args) if given else None
        if why is not None:
            for name in given:
                yield Problem(name, shown(name, getattr(args, name)), f"has no effect, because {why}", idle.fix)


def differs_from_default(args: Any, name: str) -> bool:
    """Whether the user chose it: neither our default nor that of the user's own subclass.

    The value tells, not `args._was_given`: saved options are all given, and most are defaults.
    """
    from mainspring.arguments.training_arguments import TrainingArguments

    declared = [cls.__dataclass_fields__.get(name) for cls in (TrainingArguments, type(args))]
    defaults = [default_of(field) for field in declared if field is not None]
    return bool(defaults) and getattr(args, name) not in defaults
