"""What a launcher says of FSDP: taken over where the options are silent, refused where they say otherwise."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers.integrations import is_fsdp_enabled

from mainspring import TrainingArguments
from mainspring.arguments import fsdp_loading
from mainspring.arguments.fsdp_config import FSDPConfig, fsdp_settings
from mainspring.errors import OptionError

LAUNCHED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_VERSION": "1",
}
"""The environment of `accelerate launch --use_fsdp`, with its defaults, but for the loading."""

SECOND = {**LAUNCHED, "FSDP_VERSION": "2"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsdp_loading.withdraw()
    for name in (*LAUNCHED, *fsdp_loading.VARIABLES, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    fsdp_loading.withdraw()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    def launch(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return launch


TAKEN: list[tuple[dict[str, str], FSDPConfig]] = [
    (LAUNCHED, FSDPConfig(version=1, reshard_after_forward="full_shard")),
    (SECOND, FSDPConfig()),
    ({**SECOND, "FSDP_RESHARD_AFTER_FORWARD": "false"}, FSDPConfig(reshard_after_forward=False)),
    ({**SECOND, "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, FSDPConfig()),
    (
        {**LAUNCHED, "FSDP_SHARDING_STRATEGY": "2", "FSDP_BACKWARD_PREFETCH": "BACKWARD_POST"},
        FSDPConfig(version=1, reshard_after_forward="shard_grad_op", backward_prefetch="backward_post"),
    ),
    (
        {**SECOND, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "100"},
        FSDPConfig(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=100),
    ),
    (
        {**SECOND, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "A,B"},
        FSDPConfig(transformer_layer_cls_to_wrap=("A", "B")),
    ),
    (
        {**SECOND, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_OFFLOAD_PARAMS": "true"},
        FSDPConfig(state_dict_type="SHARDED_STATE_DICT", cpu_offload=True),
    ),
    ({**SECOND, "FSDP_ACTIVATION_CHECKPOINTING": "1"}, FSDPConfig(activation_checkpointing=True)),
]


def changes(environment: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in environment.items() if LAUNCHED.get(name) != value) or "usual"


@pytest.mark.parametrize(
    ("environment", "wanted"), TAKEN, ids=lambda value: changes(value) if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("fsdp", [None, True])
def test_silent_options_take_over_what_the_launcher_says(
    environment: dict[str, str], wanted: FSDPConfig, fsdp: bool | None, launched: Any
) -> None:
    launched(environment)
    assert fsdp_settings(TrainingArguments("out", fsdp=fsdp)) == wanted


@pytest.mark.parity
@pytest.mark.parametrize("environment", [case[0] for case in TAKEN], ids=changes)
def test_the_reference_reads_the_same(
    environment: dict[str, str], launched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(environment)
    monkeypatch.setenv("FSDP_SYNC_MODULE_STATES", "false")  # which asks it for a device
    theirs, ours = FullyShardedDataParallelPlugin(), fsdp_settings(TrainingArguments("out"))
    assert ours is not None
    assert ours.version == theirs.fsdp_version
    if ours.version == 1:
        assert ours.strategy.upper() == theirs.sharding_strategy.name
        assert (ours.backward_prefetch or "none").upper() == getattr(theirs.backward_prefetch, "name", "NONE")
    else:
        assert ours.reshard_after_forward == theirs.reshard_after_forward
    assert ours.activation_checkpointing == theirs.activation_checkpointing
    assert ours.min_num_params == (theirs.min_num_params or 0)
    assert list(ours.transformer_layer_cls_to_wrap) == (theirs.transformer_cls_names_to_wrap or [])
    if "FSDP_STATE_DICT_TYPE" in environment:
        assert ours.state_dict_type == theirs.state_dict_type.name


def test_without_the_launchers_wish_its_variables_say_nothing(launched: Any) -> None:
    launched({**SECOND, "ACCELERATE_USE_FSDP": "false", "FSDP_OFFLOAD_PARAMS": "true"})
    assert fsdp_settings(TrainingArguments("out")) is None
    assert fsdp_settings(TrainingArguments("out", fsdp=True)) == FSDPConfig()


def test_a_strategy_without_a_version_is_not_lost(launched: Any) -> None:
    launched({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"})
    assert fsdp_settings(TrainingArguments("out")) == FSDPConfig(reshard_after_forward=False)
    launched({"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"})
    with pytest.raises(OptionError, match="version 2 has no strategy 'hybrid_shard'"):
        TrainingArguments("out")


def test_both_may_say_some_of_it_and_the_same_twice(launched: Any) -> None:
    launched({**SECOND, "FSDP_OFFLOAD_PARAMS": "true"})
    said = {"state_dict_type": "SHARDED_STATE_DICT", "cpu_offload": True, "reshard_after_forward": "full_shard"}
    found = fsdp_settings(TrainingArguments("out", fsdp_config=said))
    assert found == FSDPConfig(state_dict_type="SHARDED_STATE_DICT", cpu_offload=True)


CONTRADICTIONS: list[tuple[dict[str, str], dict[str, Any], str]] = [
    (SECOND, {"fsdp": False}, "^fsdp=False: the launcher says ACCELERATE_USE_FSDP=true"),
    (LAUNCHED, {"fsdp_config": {"version": 2}}, r"^fsdp_config=\{'version': 2\}: the launcher says FSDP_VERSION='1'"),
    (
        SECOND,
        {"fsdp_config": {"cpu_offload": True}},
        "'cpu_offload': True}: the launcher says FSDP_OFFLOAD_PARAMS='false'",
    ),
    (
        SECOND,
        {"fsdp": "shard_grad_op"},
        "'reshard_after_forward': False}: the launcher says FSDP_RESHARD_AFTER_FORWARD",
    ),
    (
        {**SECOND, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
        {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}},
        "'FULL_STATE_DICT'}: the launcher says FSDP_STATE_DICT_TYPE='SHARDED_STATE_DICT'",
    ),
    (
        {**LAUNCHED, "FSDP_BACKWARD_PREFETCH": "BACKWARD_PRE"},
        {"fsdp_config": {"backward_prefetch": "no_prefetch"}},
        "'no_prefetch'}: the launcher says FSDP_BACKWARD_PREFETCH='BACKWARD_PRE'",
    ),
    ({**SECOND, "FSDP_STATE_DICT_TYPE": "LOCAL_STATE_DICT"}, {}, "^FSDP_STATE_DICT_TYPE='LOCAL_STATE_DICT': cannot be"),
    ({**SECOND, "FSDP_VERSION": "3"}, {}, "^FSDP_VERSION='3': is neither 1 nor 2"),
    ({**SECOND, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}, {}, "^FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD='true'"),
    (
        {**LAUNCHED, "FSDP_SHARDING_STRATEGY": "NO_SHARD", "FSDP_OFFLOAD_PARAMS": "true"},
        {},
        r"^fsdp_config=\{'cpu_offload': True\}: the sharding strategy is 'no_shard'",
    ),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("environment", "options", "said"), CONTRADICTIONS, ids=lambda value: str(value)[:60])
def test_a_contradiction_shows_both_values(
    environment: dict[str, str], options: dict[str, Any], said: str, launched: Any
) -> None:
    launched(environment)
    with pytest.raises(OptionError, match=said):
        TrainingArguments("out", **options)


def test_explain_names_the_variables(launched: Any) -> None:
    launched({**SECOND, "FSDP_OFFLOAD_PARAMS": "true"})
    args, out = TrainingArguments("out"), io.StringIO()
    args.explain(file=out)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["fsdp", "True", "environment", "ACCELERATE_USE_FSDP"] in lines
    assert ["fsdp_config['cpu_offload']", "True", "environment", "FSDP_OFFLOAD_PARAMS"] in lines
    args.fsdp_config, out = {"cpu_offload": False}, io.StringIO()
    args.explain(file=out)
    assert "cannot be: the launcher says FSDP_OFFLOAD_PARAMS='true'" in out.getvalue()


# ---- what `from_pretrained` reads ----

EFFICIENT = {"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}


def variables() -> list[str | None]:
    return [os.environ.get(name) for name in fsdp_loading.VARIABLES]


def test_from_pretrained_is_told_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    TrainingArguments("out", fsdp=True)
    assert not is_fsdp_enabled()
    TrainingArguments("out", **EFFICIENT)
    assert is_fsdp_enabled()


def test_the_newest_arguments_decide() -> None:
    args = TrainingArguments("out", **EFFICIENT)
    assert variables() == ["true", "true"]
    TrainingArguments("out", **EFFICIENT)
    args.explain(file=io.StringIO())  # which looks at defaults
    assert variables() == ["true", "true"]
    TrainingArguments("out", fsdp=True)
    assert variables() == [None, None]


def test_what_the_launcher_said_comes_back(launched: Any) -> None:
    launched({"ACCELERATE_USE_FSDP": "false", "FSDP_CPU_RAM_EFFICIENT_LOADING": "0"})
    TrainingArguments("out", **EFFICIENT)
    assert variables() == ["true", "true"]
    assert fsdp_settings(TrainingArguments("out")) is None  # ours is not taken for a launcher's wish
    assert variables() == ["false", "0"]


def test_what_somebody_else_has_set_since_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    TrainingArguments("out", **EFFICIENT)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    TrainingArguments("out")
    assert variables() == [None, "false"]


def test_the_launchers_wish_is_kept(launched: Any) -> None:
    launched({**SECOND, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"})
    found = fsdp_settings(TrainingArguments("out"))
    assert found == FSDPConfig(cpu_ram_efficient_loading=True)
    TrainingArguments("out")
    assert variables() == ["true", "true"]


def test_several_processes_meet_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[Any] = []
    monkeypatch.setattr(TrainingArguments, "distributed_state", property(joined.append))
    TrainingArguments("out", **EFFICIENT)
    assert joined == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    TrainingArguments("out", fsdp=True)
    assert joined == []
    args = TrainingArguments("out", **EFFICIENT)
    assert [id(one) for one in joined] == [id(args)]


def test_options_that_cannot_be_tell_nobody() -> None:
    with pytest.raises(OptionError):
        TrainingArguments("out", seed=-1, **EFFICIENT)
    assert variables() == [None, None]
