"""How processes share a run: Accelerate's sizes, in every form that they are given in."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import ParallelismConfig
from accelerate.utils.dataclasses import TorchContextParallelConfig

from mainspring import HfArgumentParser, TrainingArguments
from mainspring.arguments.parallel_sizes import DIMENSIONS, ParallelSizes, parallel_sizes
from mainspring.errors import OptionError

VARIABLES = ["ACCELERATE_USE_PARALLELISM_CONFIG"] + [
    f"PARALLELISM_CONFIG_{field.name.upper()}" for field in dataclasses.fields(ParallelSizes)
]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def read(value: Any) -> ParallelSizes:
    found = parallel_sizes(TrainingArguments("out", parallelism_config=value))
    assert found is not None
    return found


SIZES: list[dict[str, Any]] = [
    {},
    {"dp_shard_size": 2},
    {"dp_replicate_size": 2, "dp_shard_size": 3},
    {"tp_size": 2, "dp_shard_size": 2},
    {"cp_size": 2, "cp_backend": "torch"},
    {"dp_replicate_size": 2, "dp_shard_size": 2, "cp_size": 3, "tp_size": 2},
    {"dp_replicate_size": 2, "dp_shard_size": 2, "sp_size": 3, "tp_size": 2},
]


@pytest.mark.parity
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes_are_those_of_accelerate(sizes: dict[str, Any]) -> None:
    ours, theirs = read(sizes), ParallelismConfig(**sizes)
    assert ours.total_size == theirs.total_size
    assert (ours.data_size, ours.model_size) == (theirs.data_parallel_size, theirs.non_data_parallel_size)
    assert sorted(ours.names) == sorted(theirs.active_mesh_dims)
    assert tuple(ours.sizes) == DIMENSIONS
    by_object = read(theirs)
    assert by_object.sizes == ours.sizes
    assert by_object.to_accelerate() == theirs
    assert ours.to_accelerate() == theirs


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_form_says_the_same(sizes: dict[str, Any], tmp_path: Path) -> None:
    wanted, file = ParallelSizes(**sizes), tmp_path / "sizes.json"
    file.write_text(json.dumps(sizes))
    for form in (sizes, json.dumps(sizes), str(file), wanted, {**sizes, "tp_handler": None}):
        assert read(form) == wanted
    line = ["--output_dir", "out", "--parallelism_config", json.dumps(sizes)]
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)
    assert parallel_sizes(args) == wanted


def test_settings_of_one_way() -> None:
    wanted = {"cp_comm_strategy": "alltoall"}
    for handler in (wanted, TorchContextParallelConfig(cp_comm_strategy="alltoall")):
        assert read({"cp_size": 2, "cp_handler": handler}).cp_handler == wanted
    found = read(ParallelismConfig(cp_size=2, cp_handler=TorchContextParallelConfig("alltoall")))
    assert found.cp_handler == wanted
    assert found.to_accelerate().cp_handler.cp_comm_strategy == "alltoall"


def test_saved_options_say_the_same() -> None:
    args = TrainingArguments("out", parallelism_config=ParallelismConfig(cp_size=2, dp_shard_size=2))
    assert args.parallelism_config.cp_size == 2
    saved = args.to_dict()
    assert saved["parallelism_config"] == {
        "cp_size": 2,
        "dp_shard_size": 2,
        "cp_handler": {"cp_comm_strategy": "allgather"},
    }
    assert TrainingArguments(**saved) == TrainingArguments(**json.loads(args.to_json_string())) == args


def test_without_the_option_nobody_says() -> None:
    args = TrainingArguments("out")
    assert args.parallelism_config is None
    assert parallel_sizes(args) is None


WRONG: list[tuple[Any, str]] = [
    ({"tp_sise": 2}, "there is no setting 'tp_sise'; leave it out; did you mean 'tp_size'"),
    ({"tp_size": 0}, "tp_size must be at least 1"),
    ({"dp_shard_size": -1}, "dp_shard_size must be at least 1"),
    ({"tp_size": 1.5}, "tp_size is a float, not int"),
    ({"cp_backend": "x"}, "cp_backend is not one of torch"),
    ({"sp_backend": "torch"}, "sp_backend is not one of deepspeed"),
    ({"cp_handler": {"cp_comm_strategy": "ring"}}, "cp_comm_strategy is not one of allgather, alltoall"),
    ({"cp_handler": {"comm": 1}}, "there is no setting 'comm'"),
    ({"cp_handler": 5}, "cp_handler is a int"),
    ({"sp_handler": {"sp_seq_length": "long"}}, "sp_seq_length is a str"),
    ({"cp_size": 2, "sp_size": 2}, "both split the sequence"),
    (5, "is a int"),
    ("no/such/file.json", "cannot be read"),
]


@pytest.mark.parametrize(("value", "said"), WRONG, ids=str)
def test_what_cannot_be_is_said_with_a_way_out(value: Any, said: str) -> None:
    with pytest.raises(OptionError, match=f"^parallelism_config=.*{said}") as error:
        TrainingArguments("out", parallelism_config=value)
    assert all(problem.fix for problem in error.value.problems)


@pytest.mark.parity
@pytest.mark.parametrize(
    "sizes",
    [value for value, _ in WRONG if isinstance(value, dict) and not {"cp_handler", "sp_handler", "tp_size"} & {*value}],
)
def test_accelerate_refuses_the_same(sizes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        ParallelismConfig(**sizes)


def test_all_that_is_wrong_comes_together() -> None:
    with pytest.raises(OptionError) as error:
        TrainingArguments("out", seed=-1, parallelism_config={"tp_size": 0, "sizes": 1})
    assert [problem.option for problem in error.value.problems] == ["seed", "parallelism_config", "parallelism_config"]


# ---- the launcher ----

LAUNCHED = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "1",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "1",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "PARALLELISM_CONFIG_CP_SIZE": "1",
    "PARALLELISM_CONFIG_CP_BACKEND": "torch",
    "PARALLELISM_CONFIG_SP_SIZE": "1",
    "PARALLELISM_CONFIG_SP_BACKEND": "deepspeed",
    "PARALLELISM_CONFIG_SP_SEQ_LENGTH_IS_VARIABLE": "true",
}
"""What `accelerate launch --use_parallelism_config --parallelism_config_tp_size 2` sets."""

LAUNCHES: list[dict[str, str]] = [
    {},
    {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "4"},
    {
        "PARALLELISM_CONFIG_TP_SIZE": "1",
        "PARALLELISM_CONFIG_CP_SIZE": "2",
        "PARALLELISM_CONFIG_CP_COMM_STRATEGY": "alltoall",
    },
]


def launch(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in {**LAUNCHED, **environment}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parity
@pytest.mark.parametrize("environment", LAUNCHES, ids=str)
def test_silent_options_take_over_what_the_launcher_says(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, environment)
    found, theirs = parallel_sizes(TrainingArguments("out")), ParallelismConfig()
    assert found is not None
    assert found.sizes == {name: getattr(theirs, f"{name}_size") for name in DIMENSIONS}
    assert (found.cp_handler or {}).get("cp_comm_strategy") == getattr(theirs.cp_handler, "cp_comm_strategy", None)


def test_the_same_may_be_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, {})
    assert read({"tp_size": 2}) == ParallelSizes(tp_size=2)


@pytest.mark.parametrize(
    ("environment", "value", "said"),
    [
        ({}, {"tp_size": 4}, r"^parallelism_config=\{'tp_size': 4\}: the launcher says PARALLELISM_CONFIG_TP_SIZE=2"),
        ({}, {"dp_shard_size": 2, "tp_size": 2}, "'dp_shard_size': 2}: the launcher says .*DP_SHARD_SIZE=1"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "0"}, None, "tp_size must be at least 1; correct PARALLELISM_CONFIG_"),
    ],
    ids=str,
)
def test_a_contradiction_shows_both_values(
    environment: dict[str, str], value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, environment)
    with pytest.raises(OptionError, match=said):
        TrainingArguments("out", parallelism_config=value)


def test_explain_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, {})
    args, out = TrainingArguments("out"), io.StringIO()
    args.explain(file=out)
    assert "{'tp_size': 2}" in out.getvalue()
    assert "environment ACCELERATE_USE_PARALLELISM_CONFIG" in out.getvalue()
