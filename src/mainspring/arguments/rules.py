"""What must hold between options. One function a rule: its name is the rule, its return value what the user reads."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from mainspring.arguments.accelerator_config import problems_of, settings_of
from mainspring.arguments.compat import installed_services
from mainspring.arguments.enums import DebugOption
from mainspring.arguments.fsdp_rules import FSDP_NOTICES, FSDP_RULES
from mainspring.arguments.idle import LOW_RANK, NO_WARMUP
from mainspring.arguments.parallel_sizes import a_way_that_nobody_takes
from mainspring.arguments.recomputing import known_keywords_of_recomputing
from mainspring.errors import Problem, did_you_mean

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments

Rule = Callable[["TrainingArguments"], "Problem | None"]

_SIGNALS = {"SIGUSR1", "SIGUSR2", *(one.name for one in signal.Signals)} - {"SIGKILL", "SIGSTOP"}


def logging_by_steps_needs_steps(a: TrainingArguments) -> Problem | None:
    """An interval of 0 never comes round."""
    if a.logging_strategy == "steps" and a.logging_steps == 0:
        return Problem("logging_steps", 0, "logging_strategy is 'steps'", "set it above 0, or logging_strategy='no'")
    return None


def evaluation_by_steps_needs_steps(a: TrainingArguments) -> Problem | None:
    """The interval is eval_steps, else logging_steps."""
    if a.eval_strategy == "steps" and not a.eval_steps:
        return Problem(
            "eval_steps", a.eval_steps, "eval_strategy is 'steps'", "set eval_steps or logging_steps above 0"
        )
    return None


def best_model_needs_matching_strategies(a: TrainingArguments) -> Problem | None:
    """The best model must have been saved when it was evaluated."""
    if a.load_best_model_at_end and a.save_strategy not in (a.eval_strategy, "best"):
        return Problem(
            "load_best_model_at_end",
            True,
            f"save_strategy is {str(a.save_strategy)!r} but eval_strategy is {str(a.eval_strategy)!r}",
            "give both the same value, or save_strategy='best'",
        )
    return None


def best_model_needs_evaluations(a: TrainingArguments) -> Problem | None:
    """Without evaluations there is no best."""
    if a.load_best_model_at_end and a.eval_strategy == "no":
        return Problem("load_best_model_at_end", True, "eval_strategy is 'no'", "set eval_strategy='steps' or 'epoch'")
    return None


def best_model_needs_saves_on_evaluations(a: TrainingArguments) -> Problem | None:
    """Every checkpoint must fall on an evaluation."""
    both_steps = a.eval_strategy == "steps" and a.save_strategy == "steps"
    if not a.load_best_model_at_end or not both_steps or not a.eval_steps or not a.save_steps:
        return None
    if (a.eval_steps < 1) != (a.save_steps < 1):
        return Problem(
            "save_steps",
            a.save_steps,
            f"eval_steps is {a.eval_steps}",
            "give both as numbers, or both as shares below 1",
        )
    # Shares are compared in millionths: 0.1 does not divide 0.3 in binary.
    unit = 1_000_000 if a.save_steps < 1 else 1
    if round(a.save_steps * unit) % round(a.eval_steps * unit):
        return Problem(
            "save_steps",
            a.save_steps,
            f"load_best_model_at_end saves evaluated models only, and eval_steps is {a.eval_steps}",
            "make it a multiple of eval_steps",
        )
    return None


def one_precision(a: TrainingArguments) -> Problem | None:
    """Two formats exclude each other."""
    return Problem("fp16", True, "bf16 is set too", "choose one") if a.fp16 and a.bf16 else None


def one_evaluation_precision(a: TrainingArguments) -> Problem | None:
    """Two formats exclude each other."""
    if a.fp16_full_eval and a.bf16_full_eval:
        return Problem("fp16_full_eval", True, "bf16_full_eval is set too", "choose one")
    return None


def metric_schedules_need_evaluations(a: TrainingArguments) -> Problem | None:
    """A schedule that follows a metric moves at evaluations."""
    if a.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and a.eval_strategy == "no":
        return Problem(
            "lr_scheduler_type",
            a.lr_scheduler_type,
            "it follows a metric, and eval_strategy is 'no'",
            "set eval_strategy='steps' or 'epoch'",
        )
    return None


def low_rank_needs_targets(a: TrainingArguments) -> Problem | None:
    """A low-rank optimizer has to be told which linear layers it projects the gradients of."""
    if str(a.optim).startswith(LOW_RANK) and not a.optim_target_modules:
        why = f"optim={str(a.optim)!r} has to be told which linear layers it projects the gradients of"
        fix = "give 'all-linear', a regular expression of names, or a list such as ['attn', 'mlp']"
        return Problem("optim_target_modules", a.optim_target_modules, why, fix)
    return None


def one_average_of_weights(a: TrainingArguments) -> Problem | None:
    """Schedule-free optimizers evaluate with an average of their own."""
    if a.ema_decay is not None and str(a.optim).startswith("schedule_free"):
        why = f"optim={str(a.optim)!r} keeps an average of the weights itself, with which it evaluates"
        return Problem("ema_decay", a.ema_decay, why, "leave it out, or choose another optimizer")
    return None


def prefetching_needs_workers(a: TrainingArguments) -> Problem | None:
    """Only workers load ahead."""
    if a.dataloader_prefetch_factor is not None and a.dataloader_num_workers == 0:
        return Problem(
            "dataloader_prefetch_factor",
            a.dataloader_prefetch_factor,
            "dataloader_num_workers is 0",
            "set dataloader_num_workers above 0",
        )
    return None


def persistence_needs_workers(a: TrainingArguments) -> Problem | None:
    """Only workers can persist."""
    if a.dataloader_persistent_workers and a.dataloader_num_workers == 0:
        return Problem(
            "dataloader_persistent_workers",
            True,
            "dataloader_num_workers is 0",
            "set dataloader_num_workers above 0",
        )
    return None


def start_of_workers_needs_workers(a: TrainingArguments) -> Problem | None:
    """Only workers are started. Torch's loaders refuse it too, but not before training begins."""
    if a.dataloader_multiprocessing_context is not None and a.dataloader_num_workers == 0:
        return Problem(
            "dataloader_multiprocessing_context",
            a.dataloader_multiprocessing_context,
            "dataloader_num_workers is 0",
            "set dataloader_num_workers above 0",
        )
    return None


def best_checkpoint_is_only_saved_on_evaluations(a: TrainingArguments) -> Problem | None:
    """save_strategy='best' waits for evaluations."""
    if a.save_strategy == "best" and a.eval_strategy == "no":
        return Problem("save_strategy", "best", "eval_strategy is 'no'", "set eval_strategy='steps' or 'epoch'")
    return None


def one_length(a: TrainingArguments) -> Problem | None:
    """Epochs or updates say how long the run is."""
    if a.num_train_epochs < 0 and a.max_steps <= 0:
        return Problem("num_train_epochs", a.num_train_epochs, f"max_steps is {a.max_steps}", "set one of them above 0")
    return None


def known_metric_inputs(a: TrainingArguments) -> Problem | None:
    """compute_metrics can be given inputs and losses."""
    unknown = [name for name in a.include_for_metrics if name not in ("inputs", "loss")]
    if unknown:
        return Problem("include_for_metrics", unknown, "is not known", "use 'inputs' and 'loss'")
    return None


def known_token_counts(a: TrainingArguments) -> Problem | None:
    """Tokens are counted all, or without padding."""
    if a.include_num_input_tokens_seen not in ("all", "non_padding", "no"):
        return Problem(
            "include_num_input_tokens_seen",
            a.include_num_input_tokens_seen,
            "is not known",
            "use 'all', 'non_padding' or 'no'",
        )
    return None


def stopping_needs_full_checkpoints(a: TrainingArguments) -> Problem | None:
    """A run that is stopped is meant to go on."""
    for name, value in (("max_time", a.max_time), ("enable_jit_checkpoint", a.enable_jit_checkpoint)):
        if a.save_only_model and value:
            why = "save_only_model is set, and a model alone cannot be resumed from"
            return Problem(name, value, why, "leave one of the two out")
    return None


def known_signals(a: TrainingArguments) -> Problem | None:
    """Signals that a process can listen to, on some system."""
    unknown = [name for name in a.stop_signals if name not in _SIGNALS]
    if unknown:
        return Problem("stop_signals", unknown, "is no signal to listen to", "use names such as SIGTERM and SIGUSR1")
    return None


def a_budget_of_tokens_is_given(a: TrainingArguments) -> Problem | None:
    """How large batches are that are measured in tokens."""
    if a.train_sampling_strategy == "token_budget" and a.max_tokens_per_batch is None:
        why = "train_sampling_strategy is 'token_budget'"
        return Problem("max_tokens_per_batch", None, why, "set it to the tokens that a padded batch may have")
    return None


def one_order(a: TrainingArguments) -> Problem | None:
    """sortish_sampler asks for group_by_length."""
    asked = getattr(a, "sortish_sampler", False) and a.compat == "none"
    if asked and a.train_sampling_strategy not in ("random", "group_by_length"):
        why = (
            f"train_sampling_strategy is {str(a.train_sampling_strategy)!r}, and sortish_sampler means group_by_length"
        )
        return Problem("sortish_sampler", True, why, "leave one of the two out")
    return None


def packing_chooses_the_order(a: TrainingArguments) -> Problem | None:
    """Which samples share a row follows from their lengths, and the rows come at random."""
    sortish = getattr(a, "sortish_sampler", False) and a.compat == "none"
    if not a.pack_sequences or (a.train_sampling_strategy == "random" and not sortish):
        return None
    other = "sortish_sampler is set" if sortish else f"train_sampling_strategy is {str(a.train_sampling_strategy)!r}"
    return Problem("pack_sequences", True, f"{other}, and packing chooses the order itself", "leave one of the two out")


def smoothing_needs_logits(a: TrainingArguments) -> Problem | None:
    """Labels are smoothed over the logits of all tokens."""
    if not a.chunked_cross_entropy or not a.label_smoothing_factor:
        return None
    why = f"label_smoothing_factor is {a.label_smoothing_factor}, and labels are smoothed over all logits"
    return Problem("chunked_cross_entropy", True, why, "leave one of the two out")


def a_memory_is_found_beside_logits(a: TrainingArguments) -> Problem | None:
    """The parts of an output are counted, and without logits they are others."""
    index = getattr(a, "past_index", -1)
    if not a.chunked_cross_entropy or index < 0:
        return None
    why = f"past_index is {index}, which counts the parts of an output that would have no logits"
    return Problem("chunked_cross_entropy", True, why, "leave one of the two out")


def liger_leaves_logits_out_by_itself(a: TrainingArguments) -> Problem | None:
    """Two ways to compute the same loss."""
    if not a.chunked_cross_entropy or not a.use_liger_kernel:
        return None
    if (a.liger_kernel_config or {}).get("fused_linear_cross_entropy") is False:
        return None
    why = "use_liger_kernel is on, whose fused_linear_cross_entropy computes the loss without logits too"
    fix = "leave it out, or set liger_kernel_config={'fused_linear_cross_entropy': False}"
    return Problem("chunked_cross_entropy", True, why, fix)


def known_debugging_aids(a: TrainingArguments) -> Problem | None:
    """The words that `debug` takes."""
    unknown = [word for word in DebugOption.words(a.debug) if not isinstance(word, DebugOption)]
    if not unknown:
        return None
    known = [str(word) for word in DebugOption]
    why = f"{unknown[0]!r} is not one of {', '.join(known)}{did_you_mean(unknown[0], known)}"
    return Problem("debug", a.debug, why, "choose among these")


def known_keywords_of_accumulation(a: TrainingArguments) -> Problem | None:
    """Accelerate's keywords, of which num_steps says the same as an option."""
    problems = problems_of(settings_of(a.accelerator_config), a.gradient_accumulation_steps)
    return problems[0] if problems else None


RULES: tuple[Rule, ...] = (
    logging_by_steps_needs_steps,
    evaluation_by_steps_needs_steps,
    best_model_needs_evaluations,
    best_model_needs_matching_strategies,
    best_model_needs_saves_on_evaluations,
    best_checkpoint_is_only_saved_on_evaluations,
    one_precision,
    one_evaluation_precision,
    metric_schedules_need_evaluations,
    low_rank_needs_targets,
    one_average_of_weights,
    prefetching_needs_workers,
    persistence_needs_workers,
    start_of_workers_needs_workers,
    one_length,
    known_metric_inputs,
    known_token_counts,
    stopping_needs_full_checkpoints,
    known_signals,
    a_budget_of_tokens_is_given,
    one_order,
    packing_chooses_the_order,
    smoothing_needs_logits,
    a_memory_is_found_beside_logits,
    liger_leaves_logits_out_by_itself,
    known_debugging_aids,
    known_keywords_of_accumulation,
    known_keywords_of_recomputing,
    *FSDP_RULES,
)


class _UnknownError(Exception):
    """A rule asked for an option that could not be read."""


class _Known:
    """Arguments of which some options are not known."""

    def __init__(self, args: TrainingArguments, unknown: Collection[str]) -> None:
        self._args = args
        self._unknown = unknown

    def __getattr__(self, name: str) -> Any:
        if name in self._unknown:
            raise _UnknownError(name)
        return getattr(self._args, name)


def broken_rules(args: TrainingArguments, unknown: Collection[str] = ()) -> list[Problem]:
    """What is wrong between options. Rules about options that are `unknown` have nothing to say."""
    asked: Any = _Known(args, unknown) if unknown else args
    problems = []
    for rule in RULES:
        with contextlib.suppress(_UnknownError):
            problems.append(rule(asked))
    return [problem for problem in problems if problem is not None]


def warmup_outlasts_the_run(a: TrainingArguments) -> Problem | None:
    """The run ends before the learning rate reaches its peak, as in a short trial of a long run's options."""
    if 0 < a.max_steps < a.warmup_steps and a.lr_scheduler_type not in NO_WARMUP:
        why = f"max_steps is {a.max_steps}: the run ends before the learning rate reaches its peak"
        return Problem("warmup_steps", a.warmup_steps, why, "make it smaller, or give a share below 1")
    return None


def saves_never_come(a: TrainingArguments) -> Problem | None:
    """An interval of 0 never comes round; the reference takes that for never saving."""
    if a.save_strategy == "steps" and a.save_steps == 0:
        return Problem("save_steps", 0, "nothing is saved during training", "say save_strategy='no' if that is meant")
    return None


def installed_services_are_not_told(a: TrainingArguments) -> Problem | None:
    """In 4.37 the logs went to every service that was installed, unless told otherwise."""
    installed = installed_services() if a.compat == "4.37" and not a._was_given("report_to") else []
    if installed:
        why = f"with compat='4.37' that means all installed services ({', '.join(installed)}); none is available yet"
        return Problem("report_to", None, why, "say report_to='none' if nothing is to be reported")
    return None


def the_loop_says_when_to_step(a: TrainingArguments) -> Problem | None:
    """Settings of Accelerate that act on what a script prepares and accumulates by itself, not on the training loop."""
    given = settings_of(a.accelerator_config).gradient_accumulation_kwargs or {}
    theirs = {name: given[name] for name in ("adjust_scheduler", "sync_with_dataloader") if given.get(name) is False}
    if theirs:
        why = "the training loop says itself when gradients and schedule move: only what a script prepares follows it"
        return Problem("accelerator_config", {"gradient_accumulation_kwargs": theirs}, why, "leave it out otherwise")
    return None


NOTICES: tuple[Rule, ...] = (
    warmup_outlasts_the_run,
    saves_never_come,
    installed_services_are_not_told,
    the_loop_says_when_to_step,
    *FSDP_NOTICES,
    a_way_that_nobody_takes,
)
"""What is worth a warning, besides options that have no effect (`idle`)."""
