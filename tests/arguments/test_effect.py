"""Every option does something: a value other than the default changes what a run builds, does or leaves, or is told."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mainspring.arguments import not_yet
from mainspring.arguments.deepspeed import deepspeed_settings
from mainspring.arguments.fsdp_config import fsdp_settings
from mainspring.arguments.machine import BETWEEN_PROCESSES
from mainspring.arguments.numerics import numerics_options
from mainspring.arguments.parallel_sizes import parallel_sizes
from mainspring.errors import NotAvailableError, OptionError
from tests.arguments import observation
from tests.arguments.values import FIELDS, another_value

BASE: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_train_epochs": 2,
    "learning_rate": 0.05,
    "logging_steps": 1,
    "save_steps": 2,
}
"""A run of six updates in two epochs."""

BY_SCRIPTS = {
    "do_train": "scripts read it; the trainer trains where the script calls train()",
    "do_eval": "scripts read it; set_evaluate and eval_strategy turn it on, so that they evaluate at the end",
    "do_predict": "scripts read it; the trainer predicts where the script calls predict()",
}
"""The only options that the package itself does not act on, and why."""

REFUSED_HERE: dict[str, Any] = {
    "report_to": "tensorboard",
    "tf32": True,
}
"""Values that are refused: by the list of what is not available, or by a device that is a CPU."""

VALUES: dict[str, Any] = {
    "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}},
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "compat": "5",
    "dataloader_multiprocessing_context": "fork",
    "dataloader_num_workers": 1,
    "ema_decay": 0.5,
    "eval_accumulation_steps": 1,
    "eval_delay": 2,
    "eval_loss_reduction": "batch_mean",
    "eval_memory_limit": 0,
    "eval_steps": 2,
    "fsdp": True,
    "fsdp_config": {"cpu_offload": True},
    "full_determinism": True,
    "generation_config": {"max_new_tokens": 3},
    "greater_is_better": True,
    "include_for_metrics": ["inputs"],
    "include_num_input_tokens_seen": "all",
    "length_column_name": "unused",
    "logging_strategy": "epoch",
    "liger_kernel_config": {"rope": False},
    "lr_groups": {"head": {"lr": 0.01}},
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "max_grad_norm": 1e-3,
    "max_time": 1e-6,
    "on_loss_spike": "skip",
    "on_nonfinite": "skip",
    "max_tokens_per_batch": 8,
    "metric_for_best_model": "loss",
    "num_train_epochs": 1,
    "pack_length": 40,
    "past_index": 1,
    "optim_args": "momentum=0.9",
    "optim_target_modules": ["hidden"],
    "resume_from_checkpoint": "auto",
    "restore_callback_states_from_checkpoint": False,
    "resume_log_window": False,
    "save_steps": 3,
    "save_total_limit": 1,
    "torch_compile_backend": "eager",
    "torch_compile_mode": "reduce-overhead",
    "warmup_steps": 0.5,
}
"""Values that suit so short a run better than those of the other tests."""

EVALUATED = {"eval_strategy": "epoch"}
WORKERS = {"dataloader_num_workers": 1}
COMPARED = {**EVALUATED, "save_strategy": "epoch", "save_steps": None, "metric_for_best_model": "loss"}
GENERATES = {"predict_with_generate": True}
NO_SAVES = {"save_strategy": "no", "save_steps": None}
RESUMED = {"logging_steps": 3, "resume_from_checkpoint": "auto"}

BESIDE: dict[str, dict[str, Any]] = {
    "activation_checkpointing_kwargs": {"activation_checkpointing": True},
    "batch_eval_metrics": EVALUATED,
    "fsdp_config": {"fsdp": True},
    "dataloader_in_order": WORKERS,
    "dataloader_multiprocessing_context": WORKERS,
    "dataloader_persistent_workers": WORKERS,
    "dataloader_pin_memory": {"use_cpu": False},  # it reads as False beside use_cpu
    "dataloader_prefetch_factor": WORKERS,
    "enable_jit_checkpoint": NO_SAVES,
    "ema_decay": EVALUATED,
    "eval_delay": EVALUATED,
    "eval_steps": {"eval_strategy": "steps"},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True},
    "generation_config": GENERATES,
    "generation_max_length": GENERATES,
    "generation_num_beams": GENERATES,
    "greater_is_better": COMPARED,
    "ignore_data_skip": RESUMED,
    "load_best_model_at_end": {**COMPARED, "greater_is_better": True},
    "logging_first_step": {"logging_steps": 2},
    "length_column_name": {"train_sampling_strategy": "group_by_length"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine_with_restarts"},
    "logging_strategy": {"logging_steps": None},
    "liger_kernel_config": {"use_liger_kernel": True},
    "loss_spike_rollback_updates": {"on_loss_spike": "rollback"},
    "loss_spike_threshold": {"on_loss_spike": "skip"},
    "max_rollbacks": {"on_loss_spike": "rollback"},
    "max_skipped_updates": {"on_nonfinite": "skip"},
    "max_steps": {"num_train_epochs": None},
    "max_tokens_per_batch": {"train_sampling_strategy": "token_budget", "per_device_train_batch_size": None},
    "metric_for_best_model": EVALUATED,
    "optim_args": {"optim": "sgd"},
    "optimizer_in_backward": {"max_grad_norm": 0.0},
    "optim_target_modules": {"optim": "galore_adamw"},
    "pack_length": {"pack_sequences": True},
    "restore_callback_states_from_checkpoint": RESUMED,
    "resume_log_window": RESUMED,
    "run_name": {"log_level": "info"},
    "save_strategy": {"save_steps": None},
    "torch_compile_mode": {"torch_compile": True},
    "torch_empty_cache_steps": {"use_cpu": False},
}
"""Options that some need beside them to act; a run without the option has them too. None leaves one of `BASE` out."""

INSTEAD: dict[str, Any] = {"max_tokens_per_batch": 4, "optim_target_modules": "all-linear"}
"""The value that an option is compared with, where beside the others it cannot be left out."""

SITUATIONS: dict[str, dict[str, Any]] = {
    "save_on_exception": {"fails_before": 4},
    "logging_nan_inf_filter": {"nan": True},
    "on_loss_spike": {"nan": True},
    "on_nonfinite": {"nan": True},
}
"""Data and mishaps that some options are for."""

ONLY_BUILT = {
    # Training would wait for worker processes or for a compiler; the loaders and the accelerator show the option.
    *(name for name in FIELDS if name.startswith(("dataloader_", "torch_compile"))),
    # The loss of a regression cannot be smoothed.
    "label_smoothing_factor",
    # The model does not take the column that would be left.
    "remove_unused_columns",
} - {"dataloader_drop_last"}

FROM_A_CHECKPOINT = {"resume_from_checkpoint", *(name for name, beside in BESIDE.items() if beside is RESUMED)}
"""Options of a run that goes on from a checkpoint, written by one without them."""

PROBES: dict[str, Callable[[Any], Any]] = {
    "chunked_cross_entropy": observation.has_logits,
    "auto_find_batch_size": observation.passes_on_a_small_device,
    "compat": observation.evaluated_text,
    "dataloader_pin_memory": observation.pinned,
    "debug": observation.error_at_nan,
    "eval_loss_reduction": observation.evaluated_text,
    "deepspeed": deepspeed_settings,  # an engine of its own, which is another test's matter
    "fsdp": fsdp_settings,  # what is asked of the engine: one process has nobody to share with
    "fsdp_config": fsdp_settings,
    "generation_config": observation.generated,
    "generation_max_length": observation.generated,
    "generation_num_beams": observation.generated,
    "liger_kernel_config": observation.kernels_put_in,
    # A spike comes after more updates than there are here.
    "loss_spike_rollback_updates": numerics_options,
    "loss_spike_threshold": numerics_options,
    "max_rollbacks": numerics_options,
    "max_skipped_updates": numerics_options,
    "neftune_noise_alpha": observation.loss_of_text,
    "optimizer_in_backward": observation.gradients_at_once,
    "output_dir": observation.folder_of_run,
    "pack_length": observation.shape_of_text,
    "pack_sequences": observation.shape_of_text,
    "parallelism_config": parallel_sizes,
    "past_index": observation.memory_of_model,
    "peak_flops": observation.keys_of_text_logs,
    "predict_with_generate": observation.generated,
    "use_cache": observation.cache_of_model,
    "use_liger_kernel": observation.kernels_put_in,
    "use_cpu": observation.on_a_machine_with_accelerator,
}
"""What is looked at instead, for options that a regression on a CPU does not show."""

WHERE = {
    "eval_delay": "events",
    "load_best_model_at_end": "weights",
    "max_grad_norm": "weights",
    "max_time": "ended",
    "profile_steps": "files",
    "save_only_model": "files",
    "save_total_limit": "files",
    "stop_signals": "signals",
}
"""What must differ, for options that also act elsewhere: one use must not hide that another is gone."""

ACTING = sorted({*FIELDS} - {*BY_SCRIPTS, *REFUSED_HERE, *BETWEEN_PROCESSES} - not_yet.OPTIONS)


def value_of(name: str) -> Any:
    """Not the default, and within what a tiny run can do."""
    own = {**REFUSED_HERE, **VALUES}
    return own[name] if name in own else another_value(name)


class Observer:
    """Looks at runs, each in a folder of its own; what several options are compared with is looked at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._seen: dict[str, dict[str, Any]] = {}

    def without(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """The same run without the option `name`."""
        kind = [name in FROM_A_CHECKPOINT, name in ONLY_BUILT, PROBES.get(name), SITUATIONS.get(name)]
        key = repr((sorted(options.items()), kind))
        if key not in self._seen:
            self._seen[key] = self.look(name, options)
        return self._seen[key]

    def look(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """What is to be seen of a run with these options, at what matters for the option `name`."""
        folder = self._folder / str(next(self._numbers))
        if name in FROM_A_CHECKPOINT:
            with observation.process_kept():
                first = {**BASE, "logging_steps": 3, "max_steps": 2, "num_train_epochs": 3.0}
                observation.make_trainer(observation.arguments(folder, first)).train()
        with observation.process_kept(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", module="torch")
            args = observation.arguments(folder, options)
            if name in PROBES:
                return {"probe": PROBES[name](args)}
            trainer = observation.make_trainer(args, **SITUATIONS.get(name, {}))
            seen = observation.built(trainer)
            return seen if name in ONLY_BUILT else {**seen, **observation.ran(trainer)}


@pytest.fixture(scope="module")
def observer(tmp_path_factory: pytest.TempPathFactory) -> Observer:
    return Observer(tmp_path_factory.mktemp("runs"))


def options_beside(name: str) -> dict[str, Any]:
    options = {**BASE, **BESIDE.get(name, {})}
    return {option: value for option, value in options.items() if option != name and value is not None}


def differences(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    # Written out, because NaN is not equal to itself.
    return {key for key in before if repr(before[key]) != repr(after[key])}


@pytest.mark.parametrize("name", ACTING)
def test_an_option_changes_what_a_run_builds_or_does(name: str, observer: Observer, tmp_path: Path) -> None:
    options = options_beside(name)
    value = str(tmp_path / "run") if name == "output_dir" else value_of(name)
    instead = {name: INSTEAD[name]} if name in INSTEAD else {}
    before, after = observer.without(name, {**options, **instead}), observer.look(name, {**options, name: value})
    found = differences(before, after)
    assert found, f"{name}={value!r} makes no difference beside {options}"
    assert WHERE.get(name, next(iter(found))) in found


@functools.cache
def _told(name: str) -> list[str]:
    with observation.process_kept(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = observation.arguments(Path("out"), {**options_beside(name), name: value_of(name)}).device
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", BETWEEN_PROCESSES)
def test_an_option_for_several_processes_is_told_of_in_one(name: str) -> None:
    assert [message.partition("=")[0] for message in _told(name)] == [name]


@pytest.mark.parametrize("name", sorted({*REFUSED_HERE} | not_yet.OPTIONS))
def test_an_option_that_cannot_be_served_is_refused(name: str) -> None:
    with observation.process_kept(), pytest.raises((NotAvailableError, OptionError), match=f"(?m)^{name}="):
        _ = observation.arguments(Path("out"), {**options_beside(name), name: value_of(name)}).device


def test_two_runs_with_the_same_options_look_the_same(observer: Observer) -> None:
    """Or else any option would seem to act."""
    for name in ("seed", "resume_log_window", "label_smoothing_factor", "save_on_exception", "compat"):
        options = options_beside(name)
        assert differences(observer.look(name, options), observer.look(name, options)) == set()


def test_the_tables_name_options_and_each_is_in_one_class() -> None:
    for table in (VALUES, BESIDE, SITUATIONS, PROBES, WHERE, FROM_A_CHECKPOINT, ONLY_BUILT, BY_SCRIPTS, REFUSED_HERE):
        assert {*table} <= {*FIELDS}
    classes = [BY_SCRIPTS, REFUSED_HERE, BETWEEN_PROCESSES, not_yet.OPTIONS, ACTING]
    assert sorted(name for names in classes for name in names) == sorted(FIELDS)
