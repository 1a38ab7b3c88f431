"""FSDP's settings: every spelling means what it means to the reference, and what cannot be is said with a way out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from mainspring import HfArgumentParser, TrainingArguments
from mainspring.arguments import fsdp_loading
from mainspring.arguments.fsdp_config import FSDPConfig, fsdp_settings
from mainspring.arguments.fsdp_keys import FILLED_IN, STRATEGIES, read_settings
from mainspring.errors import OptionError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

FIRST = {"version": 1}


@pytest.fixture(autouse=True)
def _the_environment_comes_back() -> Iterator[None]:
    """The reference leaves variables behind."""
    before = dict(os.environ)
    yield
    fsdp_loading.withdraw()
    os.environ.clear()
    os.environ.update(before)


def settings(fsdp: Any = True, config: Any = None) -> FSDPConfig:
    found = fsdp_settings(TrainingArguments("out", use_cpu=True, fsdp=fsdp, fsdp_config=config))
    assert found is not None
    return found


# ---- as the reference reads them ----

PLUGIN = {
    "fsdp_version": "version",
    "cpu_offload": "cpu_offload",
    "auto_wrap_policy": "auto_wrap_policy",
    "min_num_params": "min_num_params",
    "transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap",
    "cpu_ram_efficient_loading": "cpu_ram_efficient_loading",
    "state_dict_type": "state_dict_type",
    "activation_checkpointing": "activation_checkpointing",
    "reshard_after_forward": "reshard_after_forward",
    "forward_prefetch": "forward_prefetch",
    "backward_prefetch": "backward_prefetch",
    "use_orig_params": "use_orig_params",
    "sync_module_states": "sync_module_states",
    "limit_all_gathers": "limit_all_gathers",
}
"""Keywords of Accelerate's plugin, and the names of the settings."""


def in_their_words(config: FSDPConfig, names: Any) -> dict[str, Any]:
    """Our settings as keywords of Accelerate's plugin."""
    found = {name: getattr(config, PLUGIN[name]) for name in names}
    if "transformer_cls_names_to_wrap" in found:
        found["transformer_cls_names_to_wrap"] = ",".join(config.transformer_layer_cls_to_wrap)
    if "backward_prefetch" in found:
        found["backward_prefetch"] = (config.backward_prefetch or "no_prefetch").upper()
    return found


GIVEN: list[tuple[Any, Any]] = [
    (True, None),
    (True, {}),
    ("full_shard", None),
    ("full_shard auto_wrap", None),
    (["full_shard", "offload"], None),
    ("shard_grad_op", None),
    ("offload", None),
    ("shard_grad_op", {"reshard_after_forward": True}),
    (True, {"reshard_after_forward": False, "cpu_offload": True}),
    (True, {"fsdp_reshard_after_forward": False, "fsdp_state_dict_type": "SHARDED_STATE_DICT"}),
    (True, {"activation_checkpointing": True, "cpu_ram_efficient_loading": True}),
    (True, {"auto_wrap_policy": "NO_WRAP"}),
    (True, {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 100}),
    (True, {"transformer_layer_cls_to_wrap": "GPT2Block"}),
    (True, {"transformer_layer_cls_to_wrap": ["A", "B"]}),
    (True, '{"cpu_offload": true, "version": "2"}'),
    (True, FIRST),
    ("full_shard", FIRST),
    ("hybrid_shard", FIRST),
    ("hybrid_shard_zero2", FIRST),
    (["no_shard"], FIRST),
    ("full_shard offload", {**FIRST, "backward_prefetch": "backward_post"}),
    (True, {**FIRST, "backward_prefetch": "BACKWARD_PRE", "forward_prefetch": True, "use_orig_params": False}),
    (True, {**FIRST, "sync_module_states": False, "limit_all_gathers": True}),
    (True, {**FIRST, "reshard_after_forward": "SHARD_GRAD_OP"}),
]


@pytest.mark.parity
@pytest.mark.parametrize(("fsdp", "config"), GIVEN, ids=str)
def test_settings_come_to_what_they_come_to_in_the_reference(fsdp: Any, config: Any) -> None:
    theirs = transformers.TrainingArguments(
        "out", use_cpu=True, fsdp=fsdp, fsdp_config=dict(config) if isinstance(config, dict) else config
    ).fsdp_plugin_args
    assert len(theirs) >= 5
    assert in_their_words(settings(fsdp, config), theirs) == theirs


@pytest.mark.parity
@pytest.mark.parametrize(("fsdp", "config"), [case for case in GIVEN if not isinstance(case[1], str)], ids=str)
def test_the_references_own_arguments_say_the_same(fsdp: Any, config: Any) -> None:
    theirs = transformers.TrainingArguments("out", use_cpu=True, fsdp=fsdp, fsdp_config=dict(config or {}))
    assert fsdp_settings(theirs) == settings(fsdp, config)


@pytest.mark.parametrize("off", [None, False, "", [], "false"], ids=repr)
def test_without_fsdp_there_are_no_settings(off: Any) -> None:
    assert fsdp_settings(TrainingArguments("out", fsdp=off)) is None


def test_the_documented_defaults() -> None:
    assert settings() == FSDPConfig(
        version=2,
        reshard_after_forward=True,
        cpu_offload=False,
        activation_checkpointing=False,
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
        auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        transformer_layer_cls_to_wrap=(),
        min_num_params=0,
    )
    first = settings(config=FIRST)
    assert (first.reshard_after_forward, first.strategy) == ("full_shard", "full_shard")
    assert (first.use_orig_params, first.sync_module_states) == (True, True)
    assert (first.forward_prefetch, first.backward_prefetch, first.limit_all_gathers) == (False, None, False)


# ---- spellings ----

SPELLINGS: list[tuple[dict[str, Any], str, Any]] = [
    ({"fsdp_offload_params": "true"}, "cpu_offload", True),
    ({"fsdp_sharding_strategy": "SHARD_GRAD_OP"}, "reshard_after_forward", False),
    ({"fsdp_sharding_strategy": 1}, "reshard_after_forward", True),
    ({"sharding_strategy": 2}, "reshard_after_forward", False),
    ({**FIRST, "sharding_strategy": "4"}, "reshard_after_forward", "hybrid_shard"),
    ({**FIRST, "reshard_after_forward": True}, "reshard_after_forward", "full_shard"),
    ({**FIRST, "reshard_after_forward": "false"}, "reshard_after_forward", "shard_grad_op"),
    ({"reshard_after_forward": "full_shard"}, "reshard_after_forward", True),
    ({**FIRST, "fsdp_backward_prefetch_policy": "BACKWARD_PRE"}, "backward_prefetch", "backward_pre"),
    ({**FIRST, "fsdp_backward_prefetch": "NO_PREFETCH"}, "backward_prefetch", None),
    ({**FIRST, "backward_prefetch": 2}, "backward_prefetch", "backward_post"),
    ({"fsdp_transformer_layer_cls_to_wrap": "A, B"}, "transformer_layer_cls_to_wrap", ("A", "B")),
    ({"transformer_layer_cls_to_wrap": ("A",)}, "transformer_layer_cls_to_wrap", ("A",)),
    ({"auto_wrap_policy": "size_based_wrap"}, "auto_wrap_policy", "SIZE_BASED_WRAP"),
    ({"min_num_params": "100"}, "min_num_params", 100),
    ({"min_num_params": 100}, "auto_wrap_policy", "SIZE_BASED_WRAP"),
    ({"fsdp_version": "1"}, "version", 1),
    ({"fsdp_cpu_ram_efficient_loading": None}, "cpu_ram_efficient_loading", False),
    (
        {"xla": True, "xla_fsdp_settings": {"flatten_parameters": True}},
        "xla_fsdp_settings",
        {"flatten_parameters": True},
    ),
]


@pytest.mark.parametrize(("config", "name", "value"), SPELLINGS, ids=str)
def test_a_setting_in_another_spelling(config: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(settings(config=config), name) == value


def test_what_4_37_said_beside_the_settings() -> None:
    config = settings("full_shard auto_wrap", None)
    assert config.auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
    by_size = fsdp_settings(TrainingArguments("out", fsdp="full_shard auto_wrap", fsdp_min_num_params=2000))
    assert by_size is not None
    assert (by_size.auto_wrap_policy, by_size.min_num_params) == ("SIZE_BASED_WRAP", 2000)
    by_class = fsdp_settings(TrainingArguments("out", fsdp="full_shard", fsdp_transformer_layer_cls_to_wrap="Block"))
    assert by_class is not None
    assert by_class.transformer_layer_cls_to_wrap == ("Block",)


def test_a_file_holds_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "fsdp.json"
    file.write_text('{"fsdp_offload_params": true, "version": 2}')
    assert settings(config=str(file)).cpu_offload is True
    assert settings("shard_grad_op", str(file)).reshard_after_forward is False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_of_version_1(strategy: str) -> None:
    assert settings(config={**FIRST, "fsdp_sharding_strategy": strategy.upper()}).strategy == strategy


def test_options_read_back_as_in_the_reference() -> None:
    args = TrainingArguments("out", fsdp=True, fsdp_config={"fsdp_offload_params": "yes"})
    assert args.fsdp is True
    assert args.fsdp_config == {"cpu_offload": True, **FILLED_IN}


@pytest.mark.parametrize(("fsdp", "config"), GIVEN, ids=str)
def test_saved_options_mean_the_same(fsdp: Any, config: Any) -> None:
    args = TrainingArguments("out", use_cpu=True, fsdp=fsdp, fsdp_config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = TrainingArguments(**args.to_dict())
        by_json = TrainingArguments(**json.loads(args.to_json_string()))
    assert again == by_json == args
    assert fsdp_settings(again) == fsdp_settings(args)


COMMAND_LINES = [
    ("--fsdp", FSDPConfig()),
    ("--fsdp true", FSDPConfig()),
    ("--fsdp full_shard auto_wrap offload", FSDPConfig(cpu_offload=True)),
    ('--fsdp --fsdp_config {"cpu_offload":"true"}', FSDPConfig(cpu_offload=True)),
    ('--fsdp_config {"reshard_after_forward":false} --fsdp', FSDPConfig(reshard_after_forward=False)),
    ("--fsdp false", None),
]


@pytest.mark.parametrize(("line", "wanted"), COMMAND_LINES, ids=str)
def test_the_command_line(line: str, wanted: FSDPConfig | None) -> None:
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--output_dir", "out", *line.split()])
    assert fsdp_settings(args) == wanted


def test_options_may_be_set_one_by_one() -> None:
    args = TrainingArguments("out")
    args.fsdp, args.fsdp_config = "shard_grad_op", {"fsdp_offload_params": True}
    found = fsdp_settings(args)
    assert found == FSDPConfig(reshard_after_forward=False, cpu_offload=True)


# ---- what cannot be ----

WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"reshard_after_forwrd": True},
        "there is no setting 'reshard_after_forwrd'.*did you mean 'reshard_after_forward'",
    ),
    ({"fsdp_ofload_params": True}, "there is no setting .*did you mean 'fsdp_offload_params'"),
    ({"version": 3}, "version is neither 1 nor 2; use 2"),
    ({"version": True}, "version is neither 1 nor 2"),
    ({"cpu_offload": "maybe"}, "cpu_offload is a str, not bool; give bool"),
    ({"auto_wrap_policy": "FOO"}, "auto_wrap_policy is not one of TRANSFORMER_BASED_WRAP"),
    ({"state_dict_type": "LOCAL_STATE_DICT"}, "state_dict_type cannot be loaded .*; use SHARDED_STATE_DICT"),
    ({"state_dict_type": "FULL_STATE_DICTS"}, "is not one of .*did you mean 'FULL_STATE_DICT'"),
    ({"reshard_after_forward": "full_shrad"}, "is neither a truth value nor one of .*did you mean 'full_shard'"),
    ({"reshard_after_forward": 6}, "is neither a truth value nor one of"),
    ({"min_num_params": -1}, "is no number of parameters"),
    ({"min_num_params": 1.5}, "is no number of parameters"),
    ({"transformer_layer_cls_to_wrap": 5}, "transformer_layer_cls_to_wrap is a int"),
    ({"xla_fsdp_settings": 5}, "xla_fsdp_settings is a int"),
    ({**FIRST, "backward_prefetch": "sideways"}, "is not one of backward_pre, backward_post"),
    ({"version": 1, "fsdp_version": 2}, "version is given twice, also as 1"),
]


@pytest.mark.parametrize(("config", "said"), WRONG, ids=lambda value: str(value)[:70])
def test_a_setting_that_cannot_be_names_itself_its_value_and_the_way_out(config: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as error:
        TrainingArguments("out", fsdp=True, fsdp_config=config)
    (problem,) = error.value.problems
    key, value = next(reversed(config.items()))
    assert (problem.option, problem.value) == ("fsdp_config", {key: value})


def test_all_that_is_wrong_comes_together() -> None:
    with pytest.raises(OptionError) as error:
        TrainingArguments("out", seed=-1, fsdp=True, fsdp_config={"version": 3, "unheard_of": 1, "cpu_offload": 7})
    assert [problem.option for problem in error.value.problems] == ["seed", *["fsdp_config"] * 3]


def test_the_reference_s_arguments_are_checked_when_they_are_used() -> None:
    theirs = transformers.TrainingArguments("out", use_cpu=True, fsdp=True, fsdp_config={"unheard_of": 1})
    with pytest.raises(OptionError, match="no setting 'unheard_of'"):
        fsdp_settings(theirs)


def test_an_empty_option_stays_empty() -> None:
    assert read_settings("fsdp_config", None) == (None, [])
    assert TrainingArguments("out").fsdp_config is None
