"""What is said to bear on each other is what the rules really read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from mainspring import Seq2SeqTrainingArguments
from mainspring.arguments.idle import IDLE
from mainspring.arguments.interactions import options_read
from mainspring.arguments.rules import NOTICES, RULES

NAMES = frozenset(field.name for field in dataclasses.fields(Seq2SeqTrainingArguments))

FUNCTIONS: list[Callable[..., Any]] = [*RULES, *NOTICES, *(entry.why for entry in IDLE)]

STATES: list[dict[str, Any]] = [
    {},
    {"logging_steps": 0},
    {"eval_strategy": "steps", "eval_steps": 0},
    {"load_best_model_at_end": True},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 7},
    {"save_strategy": "best"},
    {"fp16": True, "fp16_full_eval": True},
    {"lr_scheduler_type": "reduce_lr_on_plateau"},
    {"optim": "galore_adamw", "ema_decay": 0.9},
    {"dataloader_prefetch_factor": 2, "dataloader_multiprocessing_context": "spawn"},
    {"dataloader_persistent_workers": True},
    {"num_train_epochs": -1},
    {"max_steps": 5, "warmup_steps": 9},
    {"train_sampling_strategy": "token_budget"},
    {"train_sampling_strategy": "sequential", "sortish_sampler": True, "pack_sequences": True},
    {"chunked_cross_entropy": True, "past_index": -1, "use_liger_kernel": True},
    {"save_strategy": "no"},
    {"save_strategy": "steps", "save_steps": 0},
    {"compat": "4.37"},
    {"activation_checkpointing": False, "activation_checkpointing_kwargs": {"every_n_layers": 2}},
    {"logging_strategy": "epoch", "eval_strategy": "epoch"},
    {"fsdp": True, "fsdp_config": {"activation_checkpointing": True}},
    {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}, "save_only_model": True},
    {"fsdp_config": {"version": 1}},
]
"""States of the options in which, between them, each rule gets to its last question."""


class Recorder:
    """Arguments that note which options are asked for."""

    def __init__(self, **options: Any) -> None:
        self._args = Seq2SeqTrainingArguments("out")
        vars(self._args).update(options)
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name == "_was_given":
            return lambda option: bool(self.asked.add(option))
        self.asked.add(name)
        return getattr(self._args, name)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_rule_reads_the_options_that_it_is_said_to_read(function: Callable[..., Any]) -> None:
    asked: set[str] = set()
    for state in STATES:
        recorder = Recorder(**state)
        function(recorder)
        asked |= recorder.asked & NAMES
    assert asked == options_read(function)
    assert function.__doc__
