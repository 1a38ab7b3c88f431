"""Whose numbers a run gives: every behaviour and default that `compat` decides, in all three generations. The one table."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mainspring.arguments.enums import OptimizerNames
from mainspring.arguments.spellings import older_logging_dir

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments
    from mainspring.state import ShortUpdates

COMPAT = ("none", "5", "4.37")
"""The generations: ours, the newest reference, and the one before it."""


def row(none: Any, five: Any, older: Any, what: str) -> Any:
    """One behaviour, as a dataclass field: its value in each generation, and what it is."""
    return field(default=none, metadata={"values": dict(zip(COMPAT, (none, five, older), strict=True)), "what": what})


@dataclass(frozen=True)
class Behaviour:
    """What a run does where the generations differ. The defaults are ours, which foreign arguments get too."""

    # fmt: off
    #                                     none    "5"           "4.37"
    eval_loss_reduction: str = row(      "auto", "batch_mean", "batch_mean",
        "How evaluation losses are averaged: auto, over label tokens where the loss is normalised by them; batch_mean, "
        "over batch means, weighted by samples")
    cut_filling: bool = row(              True,   False,    False,
        "Samples that only fill up the last evaluation batch over processes stay out of the evaluation loss")
    metric_once: bool = row(              True,   False,    False,
        "Of several processes the main one calls `compute_metrics` and tells the others its answer, rather than each "
        "calling it for itself")
    first_buffers: bool = row(            True,   False,    False,
        "Of several processes all evaluate with the buffers of the first, which are those that are saved")
    finite_evaluations: bool = row(       True,   True,     False,
        "`logging_nan_inf_filter` keeps NaN and infinite losses out of the evaluation loss too")
    loss_by_items: bool = row(            True,   True,     False,
        "Losses are normalised by the items of the whole update where they can be, rather than always averaged over its "
        "micro-batches")
    watch_normalisation: bool = row(      True,   False,    False,
        "A loss counts as normalised by items only where it really used their number")
    exact_label_count: bool = row(        True,   False,    False,
        "Labels are counted as the model's loss counts them, rather than as its class declares")
    short_updates: ShortUpdates = row(   "step", "leak",   "carry",
        "Micro-batches left at the end of an epoch, fewer than an update takes: step, they make a short update; leak, "
        "so they do where the data has a length, else their gradients join the next update's; carry, the next epoch "
        "completes their update, only whole updates are planned, and losses are always divided by "
        "`gradient_accumulation_steps`")
    decay_by_name: bool = row(            True,   True,     False,
        "Weight decay knows normalisations by their names, rather than by a fixed list of classes")
    complete_optimizers: bool = row(      True,   False,    False,
        "GaLore, APOLLO, LOMO and GrokAdamW get what the options say of Adam, weight decay and clipping, rather than the "
        "learning rate alone")
    evaluation_weights: bool = row(       True,   False,    False,
        "Of an optimizer with two sets of weights, those that are evaluated are saved and left in the model, rather than "
        "those that happen to be in it")
    final_events: bool = row(             True,   True,     False,
        "The last update is evaluated and saved, where that goes by steps, although it is not due")
    log_rate_used: bool = row(            True,   True,     False,
        "The logged learning rate is the one that the update used, rather than the next one's")
    orders_by_seed: bool = row(           True,   False,    False,
        "Orders by length are a function of seed and epoch, with the lengths of a column even if the model does not take it, "
        "rather than drawn from torch's global generator (group_by_length) or from seed 42 (batch_rebalance)")
    grouped_evaluations: bool = row(      False,  True,     False,
        "With group_by_length, evaluations go by length too, and their predictions come in that order rather than in the "
        "data set's")
    groups_of_engine: bool = row(         True,   False,    False,
        "An optimizer that DeepSpeed makes has the parameter groups of all others, rather than one of all parameters, biases "
        "and normalisations decaying too")
    rates_of_engine: bool = row(          True,   False,    False,
        "Where DeepSpeed makes optimizer or schedule, too, the logged learning rate is the one that the update used")
    norms_of_engine: bool = row(          True,   False,    False,
        "At stage 0 of DeepSpeed in float32, too, the gradient norm is logged")
    gradients_of_engine: bool = row(      True,   False,    False,
        "DeepSpeed steps with the gradients of the update alone: parameters that have none in it have none, at stage 3 and "
        "with an optimizer on the host too; and with fp16 they are divided by the loss scale that they were multiplied with")
    clip_by_option: bool = row(           True,   False,    False,
        "A DeepSpeed configuration that does not speak of `gradient_clipping` clips by `max_grad_norm`, rather than by the "
        "default of DeepSpeed's version")
    sortish_groups: bool = row(           True,   False,    False,
        "`sortish_sampler` groups training samples by length, rather than doing nothing")
    weigh_micro_batches: bool = row(      True,   False,    False,
        "Mean losses of micro-batches that hold more count for more in their update, where a strategy makes micro-batches of "
        "several sizes")
    share_router_losses: bool = row(      True,   False,    False,
        "Losses of the routers of experts, means whatever the rest is normalised by, count once in an update, rather than once "
        "for each micro-batch and process")
    log_padding: bool = row(              True,   False,    False,
        "Logs tell the share of padding in what the model was fed, as `padding_fraction`, where batches have a mask or are "
        "packed")
    log_numerics: bool = row(             True,   False,    False,
        "Logs count the updates since the last one with a NaN or infinite loss or gradient norm, as `nonfinite_steps`, and "
        "tell the share of those that were clipped, as `clipped_fraction`; with fp16, `overflow_steps` counts those that "
        "the loss scaling left out")
    log_waiting: bool = row(              True,   False,    False,
        "Logs tell the share of time in which training waited for its data, as `data_wait_fraction`")
    log_utilization: bool = row(          True,   False,    False,
        "Logs tell the share of the operations that the devices could have done, as `mfu`, where both are known")
    round_logs: bool = row(               False,  False,    True,
        "Logs round the loss to 4 and the epoch to 2 decimals")
    loss_by_ending: bool = row(           True,   True,     False,
        "`greater_is_better` defaults to False for every metric whose name ends in loss, rather than for `loss` and "
        "`eval_loss` alone")
    best_at_every_evaluation: bool = row( True,   True,     False,
        "Every evaluation may give the best metric, rather than those alone at which a checkpoint is saved")
    rotate_by_time: bool = row(           False,  True,     True,
        "`save_total_limit` counts every checkpoint in the folder and begins with the one written first, rather than this "
        "run's own alone, beginning with the smallest step's")
    own_data_stream: bool = row(          True,   False,    False,
        "Random numbers of data sets and collators are a function of seed, epoch and batch, apart from the model's")
    resume_log_window: bool = row(        True,   False,    False,
        "A resumed run goes on with the loss window and the `train_loss` of its checkpoint")
    log_saves: bool = row(                True,   False,    False,
        "Logs say how long the saves since the last one took, and how long training waited for them")
    train_loss_of_session: bool = row(    True,   True,     False,
        "`train_loss` is divided by the updates whose losses it sums, rather than by all updates, a resumed run's earlier "
        "ones among them")
    speed_of_session: bool = row(         True,   True,     False,
        "The training speed counts the updates that this run made, rather than all that were planned")
    restore_callback_states: bool = row(  True,   False,    False,
        "A resumed run goes on with the callbacks' states")
    exact_position: bool = row(           True,   False,    False,
        "The position in the data is read from the checkpoint, rather than worked out from the number of updates")
    exact_generation: bool = row(         True,   False,    False,
        "Generated predictions hold what was generated, once per sample and filled up by one rule, rather than also "
        "prompts, samples that fill up a batch, and whatever widths come out")
    # fmt: on

    def is_loss(self, metric: str) -> bool:
        """Whether a metric is a loss, of which less is better, by its name."""
        return metric.endswith("loss") if self.loss_by_ending else metric in ("loss", "eval_loss")


BEHAVIOURS: Mapping[str, Behaviour] = MappingProxyType(
    {
        compat: Behaviour(**{entry.name: entry.metadata["values"][compat] for entry in fields(Behaviour)})
        for compat in COMPAT
    }
)
"""The table, column by column."""


@dataclass(frozen=True)
class OlderDefault:
    """A default that was another one in 4.37. It holds where the option was not given.

    Attributes:
        option: Name of the option.
        now: The default of `none` and `5`, in words.
        older: The default of `4.37`, in words.
        value: Works it out; the other options have been read.
    """

    option: str
    now: str
    older: str
    value: Callable[[TrainingArguments], Any]


OLDER_DEFAULTS = (
    OlderDefault(
        "optim",
        "`adamw_torch_fused`; `adamw_torch` before torch 2.8",
        "`adamw_torch`",
        lambda _: OptimizerNames.ADAMW_TORCH,
    ),
    OlderDefault("run_name", "`None`", "`output_dir`", lambda args: args.output_dir),
    OlderDefault("hub_private_repo", "`None`", "`False`", lambda _: False),
    OlderDefault(
        "report_to",
        "`none`",
        "every service that is installed; as none is available yet, installed ones are named in a warning",
        lambda _: [],
    ),
    OlderDefault(
        "logging_dir",
        "`output_dir/runs/<time>_<host>`, told when it is read, with a warning",
        "`output_dir/runs/<time>_<host>`, to be read back",
        older_logging_dir,
    ),
)
"""The defaults that 4.37 had otherwise."""


def apply_older_defaults(args: TrainingArguments) -> None:
    """Give the options that nobody chose, neither a caller nor a subclass, the defaults of 4.37."""
    from mainspring.arguments.training_arguments import TrainingArguments

    for default in OLDER_DEFAULTS:
        name = default.option
        declared = TrainingArguments.__dataclass_fields__.get(name)
        if declared is None:
            vars(args).setdefault(name, default.value(args))
        elif getattr(args, name) is None or (not args._was_given(name) and getattr(args, name) == declared.default):
            args._derive(name, default.value(args), "compat")


SERVICES_OF_4_37 = (
    "azureml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dvclive",
    "mlflow",
    "neptune",
    "tensorboard",
    "tensorboardX",
    "wandb",
)
"""Packages that 4.37 reports to, without being asked, where they are installed."""


def installed_services() -> list[str]:
    """Those of them that could be imported. None is."""
    return [name for name in SERVICES_OF_4_37 if name in sys.modules or importlib.util.find_spec(name) is not None]
