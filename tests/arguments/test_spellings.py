"""Spellings of the older generation: accepted, said once with the new name, and read back."""

from __future__ import annotations

import dataclasses
import os
import warnings

import pytest

from mainspring import TrainingArguments
from mainspring.arguments import spellings
from mainspring.arguments.accelerator_config import AcceleratorConfig
from mainspring.errors import NotAvailableError, OptionError


@pytest.mark.parametrize(
    ("older", "value", "newer", "read"),
    [
        ("evaluation_strategy", "epoch", "eval_strategy", "epoch"),
        ("no_cuda", True, "use_cpu", True),
        ("per_gpu_train_batch_size", 3, "per_device_train_batch_size", 3),
        ("per_gpu_eval_batch_size", 3, "per_device_eval_batch_size", 3),
        ("torchdynamo", "eager", "torch_compile_backend", "eager"),
        ("warmup_ratio", 0.1, "warmup_steps", 0.1),
        ("warmup_ratio", 0, "warmup_steps", 0),
        ("adafactor", True, "optim", "adafactor"),
        ("include_inputs_for_metrics", True, "include_for_metrics", ["inputs"]),
        ("include_tokens_per_second", True, "include_num_input_tokens_seen", "all"),
        ("group_by_length", False, "train_sampling_strategy", "random"),
        ("split_batches", False, "accelerator_config", AcceleratorConfig()),
        ("fsdp_min_num_params", 0, "fsdp_config", None),
    ],
)
def test_an_older_spelling_is_read_as_what_it_meant(older: str, value: object, newer: str, read: object) -> None:
    with pytest.warns(FutureWarning, match=newer) as caught:
        args = TrainingArguments("out", **{older: value})
    assert [warning.filename for warning in caught] == [__file__]
    assert getattr(args, newer) == read


@pytest.mark.parametrize("older", sorted(spellings.RENAMED))
def test_a_renamed_option_is_read_back_under_its_older_name(older: str) -> None:
    args = TrainingArguments("out")
    with pytest.warns(FutureWarning, match=spellings.RENAMED[older]) as caught:
        assert getattr(args, older) == getattr(args, spellings.RENAMED[older])
    assert caught[0].filename == __file__


def test_options_that_became_part_of_others_are_read_back() -> None:
    args = TrainingArguments("out", warmup_steps=0.2, optim="adafactor", include_for_metrics=["inputs"])
    assert (args.warmup_ratio, args.adafactor, args.include_inputs_for_metrics) == (0.2, True, True)
    assert (args.group_by_length, args.include_tokens_per_second) == (False, False)
    assert TrainingArguments("out", warmup_steps=10).warmup_ratio == 0.0


@pytest.mark.parametrize(
    ("older", "value"),
    [
        ("overwrite_output_dir", True),
        ("save_safetensors", False),
        ("half_precision_backend", "apex"),
        ("fp16_backend", "cuda_amp"),
        ("fp16_opt_level", "O2"),
        ("use_mps_device", True),
        ("ray_scope", "all"),
        ("logging_dir", "logs"),
        ("_n_gpu", 1),
        ("use_legacy_prediction_loop", True),
    ],
)
def test_an_option_without_an_effect_is_accepted_and_read_back(older: str, value: object) -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        extra: int = 0

    for cls in (TrainingArguments, Mine):
        with pytest.warns(FutureWarning, match=f"{older} has no effect"):
            args = cls("out", **{older: value})
        assert getattr(args, older) == value


def test_an_option_without_an_effect_is_read_as_its_type() -> None:
    with pytest.warns(FutureWarning):
        args = TrainingArguments("out", overwrite_output_dir="false", logging_dir="~/logs")
    assert args.overwrite_output_dir is False
    assert args.logging_dir == os.path.expanduser("~/logs")
    for name, value in (
        ("overwrite_output_dir", "maybe"),
        ("fp16_opt_level", "O4"),
        ("half_precision_backend", "cuda"),
    ):
        with pytest.raises(OptionError, match=f"^{name}="):
            TrainingArguments("out", **{name: value})


def test_what_scripts_ask_for_has_a_default() -> None:
    args = TrainingArguments("out")
    assert args.overwrite_output_dir is False
    assert args.save_safetensors is True
    assert "logging_dir" not in vars(args)


@pytest.mark.parametrize(
    ("older", "value", "inert"),
    [
        ("sharded_ddp", "simple", ""),
        ("jit_mode_eval", True, False),
        ("use_ipex", True, False),
        ("mp_parameters", "x", ""),
        ("tpu_num_cores", 8, None),
    ],
)
def test_what_cannot_be_served_is_refused_unless_it_did_nothing(older: str, value: object, inert: object) -> None:
    with pytest.raises(OptionError, match=f"^{older}="):
        TrainingArguments("out", **{older: value})
    TrainingArguments("out", **{older: inert})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_older_switch_is_a_word_of_an_option() -> None:
    args = TrainingArguments("out", tpu_metrics_debug=True, debug="underflow_overflow")
    assert args.debug == ["underflow_overflow", "tpu_metrics_debug"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_settings_are_added_to_those_given() -> None:
    options, problems = spellings.translate({"fsdp_config": {"version": 1}, "fsdp_min_num_params": 5})
    assert options == {"fsdp_config": {"version": 1, "min_num_params": 5}}
    assert problems == []
    for config in ('{"even_batches": true}', AcceleratorConfig(even_batches=True)):
        options, problems = spellings.translate({"accelerator_config": config, "split_batches": True})
        assert (options["accelerator_config"]["even_batches"], options["accelerator_config"]["split_batches"]) == (
            True,
        ) * 2
    _, problems = spellings.translate({"accelerator_config": "absent.json", "split_batches": True})
    assert [problem.option for problem in problems] == ["accelerator_config"]


def test_two_spellings_that_contradict_are_refused() -> None:
    with pytest.raises(OptionError, match="evaluation_strategy='steps'.*give only eval_strategy"):
        TrainingArguments("out", eval_strategy="epoch", evaluation_strategy="steps")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_spellings_that_agree_are_one() -> None:
    args = TrainingArguments("out", eval_strategy="epoch", evaluation_strategy="epoch")
    assert args.eval_strategy == "epoch"
    assert TrainingArguments("out", warmup_ratio=0.1, warmup_steps=20).warmup_steps == 20


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_warmup_ratio_covers_the_whole_run_at_most() -> None:
    args = TrainingArguments("out", warmup_ratio=1.0)
    assert [args.get_warmup_steps(total) for total in (1, 10, 12345)] == [1, 10, 12345]
    for ratio in (1.1, -0.1):
        with pytest.raises(OptionError, match="warmup_ratio"):
            TrainingArguments("out", warmup_ratio=ratio)


def test_a_subclass_may_call_its_own_option_as_an_older_one_was() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        warmup_ratio: float = 0.5
        logging_dir: str = "logs"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = Mine("out", warmup_ratio=0.7, logging_dir="here")
    assert (args.warmup_ratio, args.logging_dir, args.warmup_steps) == (0.7, "here", 0)


def test_every_older_name_is_of_one_kind() -> None:
    tables = [spellings.RENAMED, spellings.TRANSLATED, spellings.WITHOUT_EFFECT, spellings.REFUSED]
    assert sum(map(len, tables)) == len(spellings.OLDER_NAMES)
    assert {f.name for f in dataclasses.fields(TrainingArguments)}.isdisjoint(spellings.OLDER_NAMES)


# ---- attributes set later ----


def test_an_older_name_that_is_set_sets_the_newer_one() -> None:
    args = TrainingArguments("out")
    for name, value, newer, meant in (
        ("evaluation_strategy", "epoch", "eval_strategy", "epoch"),
        ("no_cuda", True, "use_cpu", True),
        ("adafactor", True, "optim", "adafactor"),
        ("warmup_ratio", 0.25, "warmup_steps", 0.25),
    ):
        with pytest.warns(FutureWarning, match=f"{name} is now {newer}"):
            setattr(args, name, value)
        assert getattr(args, newer) == meant
        assert name not in vars(args)


def test_an_older_name_without_an_effect_is_kept_for_who_reads_it() -> None:
    args = TrainingArguments("out")
    with pytest.warns(FutureWarning, match="no effect"):
        args.logging_dir = "logs"
    assert args.logging_dir == "logs"


def test_what_cannot_be_is_not_set_under_an_older_name() -> None:
    args = TrainingArguments("out")
    with pytest.raises(OptionError, match="use_ipex"):
        args.use_ipex = True
    with pytest.warns(FutureWarning), pytest.raises(NotAvailableError, match="push_to_hub"):
        args.push_to_hub_token = "secret"
    assert args.hub_token is None


def test_an_older_switch_may_be_set_later() -> None:
    args = TrainingArguments("out")
    with pytest.warns(FutureWarning, match="debug"):
        args.tpu_metrics_debug = True
    assert args.debug == ["tpu_metrics_debug"]


def test_a_subclass_may_set_its_own_option_of_an_older_name() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        warmup_ratio: float = 0.5

    args = Mine("out")
    args.warmup_ratio = 0.75
    assert (args.warmup_ratio, args.warmup_steps) == (0.75, 0)
