"""What was written for version 4.37 means here what it meant there.

`golden.json` holds what that version makes of each case, in its own names; here they are read back under these names.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from mainspring import HfArgumentParser, TrainingArguments
from mainspring.arguments import not_yet
from mainspring.arguments.spellings import OLDER_NAMES, REFUSED, RENAMED, WITHOUT_EFFECT
from mainspring.arguments.translations import TRANSLATED
from mainspring.errors import NotAvailableError, OptionError
from tests.arguments.older.cases import BASE, CASES, plain, recorded

GOLDEN: dict[str, dict[str, Any] | None] = json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]
USUAL = GOLDEN["{}"]
assert USUAL is not None

OTHERWISE = {
    "per_gpu_train_batch_size": "read as the newer one; train_batch_size says what it means",
    "per_gpu_eval_batch_size": "as above",
    "per_device_train_batch_size": "as above",
    "per_device_eval_batch_size": "as above",
    "no_cuda": "read as use_cpu",
    "warmup_ratio": "part of warmup_steps; get_warmup_steps says what they mean",
    "warmup_steps": "as above",
    "include_num_input_tokens_seen": "all or no, rather than a truth value",
    "include_tokens_per_second": "read as the option above, which logs it too",
    "tpu_metrics_debug": "read as part of debug, which holds it in both",
    "lr_scheduler_kwargs": "None, rather than an empty mapping",
    "half_precision_backend": "no effect, whichever of its two names is used",
    "fsdp": "True, and the words in fsdp_config; compared with the newest reference below",
    "fsdp_config": "as above",
    "push_to_hub_model_id": "read as hub_model_id, which has the organization too",
}
"""What reads back otherwise than in 4.37, and why."""

NAMES = sorted(set(USUAL) - set(OTHERWISE) - {"train_batch_size", "eval_batch_size", "warmup"})


@pytest.fixture
def everything_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """To see what options mean whose machinery is not here yet."""
    monkeypatch.setattr(not_yet, "problem", lambda name, value, default: None)


def built(**options: Any) -> TrainingArguments:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TrainingArguments(**{**BASE, "compat": "4.37", **options})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("everything_is_available")
@pytest.mark.parametrize("case", [case for case, made in GOLDEN.items() if made is not None])
def test_older_options_mean_what_they_meant(case: str) -> None:
    wanted = {**USUAL, **(GOLDEN[case] or {})}
    found = recorded(built(**CASES[case]), NAMES)
    assert found == {name: wanted[name] for name in found}


@pytest.mark.parametrize("case", [case for case, made in GOLDEN.items() if made is None])
def test_what_4_37_refused_is_refused(case: str) -> None:
    with pytest.raises(OptionError) as error:
        built(**CASES[case])
    assert next(iter(CASES[case])) in str(error.value)


def test_the_cases_and_their_results_belong_together() -> None:
    assert GOLDEN.keys() == CASES.keys()
    assert set(OTHERWISE) <= set(USUAL)
    of_4_37 = {name for name in OLDER_NAMES if name not in ("sharded_ddp", "_n_gpu", "logging_dir")}
    assert of_4_37 <= set(USUAL)
    tried = {name for options in CASES.values() for name in options}
    assert OLDER_NAMES - tried <= {"_n_gpu", "logging_dir"}


# ---- options that 4.37 saved ----


def saved_by_4_37(case: str) -> dict[str, Any]:
    made = {**USUAL, **(GOLDEN[case] or {})}
    tokens = {"hub_token": "<HUB_TOKEN>", "push_to_hub_token": "<PUSH_TO_HUB_TOKEN>"}
    own = {"train_batch_size", "eval_batch_size", "warmup"}
    return {**{name: value for name, value in made.items() if name not in own}, **tokens, "logging_dir": "a/out/runs"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("everything_is_available")
@pytest.mark.parametrize("case", [case for case, made in GOLDEN.items() if made is not None and "per_gpu" not in case])
def test_options_that_4_37_saved_are_taken(case: str) -> None:
    """But for its oldest names of the batch sizes: the newer ones were saved beside them, and say something else."""
    wanted = {**USUAL, **(GOLDEN[case] or {}), "hub_token": None, "push_to_hub_token": None}
    args = built(**saved_by_4_37(case))
    found = recorded(args, NAMES)
    assert found == {name: wanted[name] for name in found}
    assert args.logging_dir == "a/out/runs"


@pytest.mark.filterwarnings("ignore")
def test_default_options_that_4_37_saved_ask_for_nothing_that_is_not_available() -> None:
    assert TrainingArguments(**saved_by_4_37("{}")).fsdp_config == USUAL["fsdp_config"]


# ---- FSDP in words ----

FSDP = [
    {"fsdp": "full_shard"},
    {"fsdp": "full_shard auto_wrap"},
    {"fsdp": ["full_shard", "auto_wrap"]},
    {"fsdp": "shard_grad_op"},
    {"fsdp": "full_shard offload"},
    {"fsdp": "offload"},
    {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 5}},
    {"fsdp": "shard_grad_op", "fsdp_config": '{"cpu_offload": "true"}'},
    {"fsdp": "full_shard offload", "fsdp_config": {"reshard_after_forward": False, "cpu_offload": False}},
    {"fsdp": "hybrid_shard", "fsdp_config": {"version": 1}},
    {"fsdp": "no_shard", "fsdp_config": {"version": 1}},
    {"fsdp": True},
    {"fsdp": ""},
    {"fsdp": []},
]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("everything_is_available")
@pytest.mark.parametrize("options", FSDP, ids=str)
def test_words_for_fsdp_are_settings_as_in_the_newest_reference(options: dict[str, Any]) -> None:
    filled_in = {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False}
    theirs = transformers.TrainingArguments(output_dir="out", use_cpu=True, **options)
    ours = TrainingArguments("out", use_cpu=True, **options)
    assert ours.fsdp == theirs.fsdp
    found = {**filled_in, **(ours.fsdp_config or {})}
    assert found == {**filled_in, **(theirs.fsdp_config or {})}


@pytest.mark.usefixtures("everything_is_available")
def test_words_for_fsdp_are_said_once(tmp_path: Path) -> None:
    file = tmp_path / "fsdp.json"
    file.write_text('{"fsdp_transformer_layer_cls_to_wrap": ["Layer"]}')
    with pytest.warns(FutureWarning, match="fsdp in words is now fsdp=True") as caught:
        args = TrainingArguments("out", fsdp="full_shard auto_wrap", fsdp_config=str(file))
    assert len(caught) == 1
    filled_in = {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False}
    words = {"reshard_after_forward": True, "transformer_layer_cls_to_wrap": ["Layer"]}
    assert args.fsdp_config == {**words, **filled_in}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fsdp": "full_shrad"}, "'full_shrad' is not one of .*did you mean 'full_shard'"),
        ({"fsdp": "full_shard shard_grad_op"}, "names more than one strategy"),
        ({"fsdp": "hybrid_shard"}, "belongs to the first version of FSDP"),
        ({"fsdp": "full_shard", "fsdp_config": "absent.json"}, "^fsdp_config='absent.json': cannot be read"),
        ({"fsdp_config": {"min_num_params": 5}, "fsdp_min_num_params": 6}, "^fsdp_min_num_params=6: fsdp_config="),
    ],
    ids=str,
)
def test_words_for_fsdp_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as error:
        TrainingArguments("out", **options)
    assert not isinstance(error.value, NotAvailableError)


# ---- one warning each, whichever way it is written ----

VALUES: dict[str, Any] = {
    "evaluation_strategy": "epoch",
    "per_gpu_train_batch_size": 3,
    "per_gpu_eval_batch_size": 3,
    "torchdynamo": "eager",
    "push_to_hub_model_id": "name",
    "push_to_hub_token": "secret",
    "push_to_hub_organization": "org",
    "warmup_ratio": 0.1,
    "fsdp_min_num_params": 5,
    "fsdp_transformer_layer_cls_to_wrap": "Layer",
    "fp16_opt_level": "O2",
    "half_precision_backend": "apex",
    "fp16_backend": "apex",
    "ray_scope": "all",
    "logging_dir": "logs",
    "_n_gpu": 1,
    "sharded_ddp": "",
    "mp_parameters": "",
    "past_index": -1,
    "jit_mode_eval": False,
    "use_ipex": False,
}
"""Values of older options that are not True; those of refused ones are the ones that did nothing."""

WRITTEN = sorted(OLDER_NAMES - {"tpu_num_cores"})  # which did nothing when it was not written


def told(name: str) -> str:
    """What the warning names."""
    if name in RENAMED:
        return f"{name} is now {RENAMED[name]}"
    if name in TRANSLATED:
        return f"{name} is now {TRANSLATED[name].now}"
    return f"{name} has no effect any more: " if name in WITHOUT_EFFECT else f"{name} is gone: {REFUSED[name]}"


def as_keyword(name: str, value: Any, folder: Path) -> None:
    TrainingArguments(**{name: value})


def as_word(name: str, value: Any, folder: Path) -> None:
    words = [f"--{name}", str(value)]
    HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words, look_for_args_file=False)


def in_json(name: str, value: Any, folder: Path) -> None:
    (folder / "options.json").write_text(json.dumps({name: value}))
    HfArgumentParser(TrainingArguments).parse_json_file(folder / "options.json")


def in_yaml(name: str, value: Any, folder: Path) -> None:
    (folder / "options.yaml").write_text(yaml.safe_dump({name: value}))
    HfArgumentParser(TrainingArguments).parse_yaml_file(folder / "options.yaml")


def set_later(name: str, value: Any, folder: Path) -> None:
    setattr(TrainingArguments(), name, value)


@pytest.mark.usefixtures("everything_is_available")
@pytest.mark.parametrize("write", [as_keyword, as_word, in_json, in_yaml, set_later])
@pytest.mark.parametrize("name", WRITTEN)
def test_an_older_spelling_is_said_once(name: str, write: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write(name, VALUES.get(name, True), tmp_path)
    said = [str(warning.message) for warning in caught if warning.category is FutureWarning]
    assert len(said) == 1
    assert said[0].startswith(told(name))


@pytest.mark.parametrize("name", sorted(OLDER_NAMES - {"_n_gpu"}))
def test_reading_an_older_spelling_is_said_once(name: str) -> None:
    args = built()
    vars(args).pop("logging_dir")  # which compat="4.37" puts there
    with pytest.warns(FutureWarning) as caught:
        value = getattr(args, name)
    assert [str(warning.message)[: len(told(name))] for warning in caught] == [told(name)]
    assert caught[0].filename == __file__
    if name in USUAL and name not in OTHERWISE:
        assert plain(value) == USUAL[name]


# ---- set on finished arguments ----


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.usefixtures("everything_is_available")
def test_an_older_setting_joins_those_that_were_set_before() -> None:
    args = TrainingArguments("out", fsdp_config={"version": 1}, accelerator_config={"non_blocking": True})
    args.fsdp_min_num_params = 5
    assert args.fsdp_config == {"version": 1, "min_num_params": 5}
    args.fsdp_min_num_params = 0
    assert args.fsdp_config == {"version": 1, "min_num_params": 0}
    args.split_batches = True
    args.dispatch_batches = False
    assert args.accelerator_config.non_blocking
    assert (args.split_batches, args.dispatch_batches) == (True, False)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.usefixtures("everything_is_available")
def test_an_older_switch_is_turned_off_again() -> None:
    args = TrainingArguments("out", include_for_metrics=["loss"])
    args.include_inputs_for_metrics = True
    assert args.include_for_metrics == ["loss", "inputs"]
    args.include_inputs_for_metrics = False
    assert args.include_for_metrics == ["loss"]
    args.adafactor, args.group_by_length = True, True
    assert (args.optim, args.train_sampling_strategy) == ("adafactor", "group_by_length")
    args.adafactor, args.group_by_length = False, False
    assert (args.optim, args.train_sampling_strategy) == (TrainingArguments("out").optim, "random")
    args.optim, args.adafactor = "sgd", False
    assert args.optim == "sgd"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.usefixtures("everything_is_available")
def test_an_organization_is_put_before_the_name() -> None:
    args = TrainingArguments("deep/down/")
    args.push_to_hub_organization = "org"
    assert args.hub_model_id == "org/down"
    args.hub_model_id = "name"
    args.push_to_hub_organization = "org"
    assert (args.hub_model_id, args.push_to_hub_organization) == ("org/name", "org")
    assert TrainingArguments(push_to_hub_organization="org").hub_model_id == "org/trainer_output"


# ---- contradictions and wrong values ----


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"adafactor": True, "optim": "sgd"},
        {"group_by_length": True, "train_sampling_strategy": "sequential"},
        {"no_cuda": True, "use_cpu": False},
        {"push_to_hub_organization": "org", "hub_model_id": "other/name"},
        {"per_gpu_train_batch_size": 3, "per_device_train_batch_size": 4},
        {"split_batches": True, "accelerator_config": {"even_batches": True, "split_batches": 5}},
    ],
    ids=str,
)
def test_two_spellings_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(options))}="):
        TrainingArguments("out", **options)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("value", ["false", "no", 0, "0"])
def test_older_switches_are_read_as_truth_values(value: Any) -> None:
    args = TrainingArguments("out", adafactor=value, group_by_length=value, include_inputs_for_metrics=value)
    assert (args.optim, args.train_sampling_strategy) == (TrainingArguments("out").optim, "random")
    assert args.include_for_metrics == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmup_ratio", "much"),
        ("warmup_ratio", None),
        ("warmup_ratio", float("nan")),
        ("adafactor", "maybe"),
        ("push_to_hub_organization", 5),
        ("fsdp_min_num_params", "many"),
        ("evaluation_strategy", "sometimes"),
        ("evaluation_strategy", None),
        ("per_gpu_train_batch_size", 0),
        ("sharded_ddp", "simple"),
    ],
)
def test_an_error_names_the_spelling_that_was_written(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name}="):
        TrainingArguments("out", **{name: value})


def test_sharding_of_old_is_pointed_to_fsdp() -> None:
    with pytest.raises(OptionError, match="sharded_ddp='simple': is gone; use fsdp=True"):
        TrainingArguments("out", sharded_ddp="simple")
