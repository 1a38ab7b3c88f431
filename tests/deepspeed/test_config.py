"""DeepSpeed's configuration: what the options and a launcher make of it, when, and who reads it. No engine is started."""

from __future__ import annotations

import base64
import copy
import gc
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mainspring import TrainingArguments
from mainspring.arguments.deepspeed import registry
from mainspring.arguments.deepspeed.settings import (
    DeepSpeedSettings,
    deepspeed_settings,
    in_world,
    settings_of_options,
)
from mainspring.errors import OptionError
from mainspring.integrations import deepspeed as door

STAGE_2 = {"zero_optimization": {"stage": 2}}
STAGE_3 = {"zero_optimization": {"stage": 3}}

_OF_LAUNCHERS = ("ACCELERATE_", "WORLD_SIZE", "RANK", "PARALLELISM_CONFIG_")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(_OF_LAUNCHERS)]:
        monkeypatch.delenv(name)
    door.unset_hf_deepspeed_config()
    yield
    door.unset_hf_deepspeed_config()


def filled(config: Any, **options: Any) -> DeepSpeedSettings:
    settings = deepspeed_settings(TrainingArguments("out", use_cpu=True, deepspeed=config, **options))
    assert settings is not None
    return settings


def trained(config: Any, hidden_size: int | None = 64, steps: int = 100, **options: Any) -> dict[str, Any]:
    """The configuration that the engine starts with."""
    args = TrainingArguments("out", use_cpu=True, deepspeed=config, **options)
    settings, problems = settings_of_options(args)
    assert settings is not None
    assert not problems
    settings, problems = in_world(settings, args, 1)
    assert not problems
    return settings.completed(hidden_size, steps, args.get_warmup_steps(steps))


# ---- the blocks that the guide documents ----

DYNAMIC = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1}
ADAMW = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}

BLOCKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "WarmupLR auto": (
        {
            "scheduler": {
                "type": "WarmupLR",
                "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
            }
        },
        {"learning_rate": 3e-4, "warmup_steps": 7},
        {"scheduler": {"params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-4, "warmup_num_steps": 7}}},
    ),
    "WarmupLR explicit": (
        {
            "scheduler": {
                "type": "WarmupLR",
                "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000},
            }
        },
        {"learning_rate": 1e-3, "warmup_steps": 1000},
        {"scheduler": {"params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000}}},
    ),
    "WarmupDecayLR": (
        {
            "scheduler": {
                "type": "WarmupDecayLR",
                "params": {
                    "last_batch_iteration": -1,
                    "total_num_steps": "auto",
                    "warmup_min_lr": "auto",
                    "warmup_max_lr": "auto",
                    "warmup_num_steps": "auto",
                },
            }
        },
        {"warmup_steps": 0.125},
        {
            "scheduler": {
                "params": {
                    "last_batch_iteration": -1,
                    "total_num_steps": 100,
                    "warmup_min_lr": 0,
                    "warmup_max_lr": 5e-5,
                    "warmup_num_steps": 13,
                }
            }
        },
    ),
    "fp16 auto": ({"fp16": {"enabled": "auto", **DYNAMIC}}, {"fp16": True}, {"fp16": {"enabled": True, **DYNAMIC}}),
    "fp16 auto, off": ({"fp16": {"enabled": "auto", **DYNAMIC}}, {}, {"fp16": {"enabled": False, **DYNAMIC}}),
    "fp16 auto, full evaluations": (
        {"fp16": {"enabled": "auto"}},
        {"fp16_full_eval": True},
        {"fp16": {"enabled": True}},
    ),
    "fp16 true": ({"fp16": {"enabled": True, **DYNAMIC}}, {"fp16": True}, {"fp16": {"enabled": True, **DYNAMIC}}),
    "fp16 false": ({"fp16": {"enabled": False}}, {}, {"fp16": {"enabled": False}}),
    "bf16 auto": ({"bf16": {"enabled": "auto"}}, {"bf16": True}, {"bf16": {"enabled": True}}),
    "bf16 auto, full evaluations": (
        {"bf16": {"enabled": "auto"}},
        {"bf16_full_eval": True},
        {"bf16": {"enabled": True}},
    ),
    "bf16 true": ({"bf16": {"enabled": True}}, {"bf16": True}, {"bf16": {"enabled": True}}),
    "bf16 not said": (STAGE_2, {"bf16": True}, {"bf16": {"enabled": True}}),
    "bf16 not said, full evaluations": (STAGE_2, {"bf16_full_eval": True}, {"bf16": None}),
    "amp": ({"amp": {"enabled": "auto", "opt_level": "auto"}}, {}, {"amp": None}),
    "batch": (
        {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
        {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3},
    ),
    "batch auto": (
        {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
        {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 4},
    ),
    "batch not said": (
        STAGE_2,
        {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2},
        {"train_batch_size": 10, "train_micro_batch_size_per_gpu": 5, "gradient_accumulation_steps": 2},
    ),
    "accumulation": (
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 3},
    ),
    "clipping": ({"gradient_clipping": 1.0}, {}, {"gradient_clipping": 1.0}),
    "clipping auto": ({"gradient_clipping": "auto"}, {"max_grad_norm": 0.3}, {"gradient_clipping": 0.3}),
    "clipping not said": (STAGE_2, {"max_grad_norm": 0.3}, {"gradient_clipping": 0.3}),
    "clipping off": (STAGE_2, {"max_grad_norm": 0.0}, {"gradient_clipping": 0.0}),
    "clipping not said, as the reference": (
        STAGE_2,
        {"max_grad_norm": 0.3, "compat": "5"},
        {"gradient_clipping": None},
    ),
    **{
        f"communication in {kind}": ({"communication_data_type": kind}, {}, {"communication_data_type": kind})
        for kind in ("fp16", "bf16", "fp32")
    },
    "AdamW auto": (
        {"optimizer": ADAMW},
        {"learning_rate": 2e-4, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-7, "weight_decay": 0.1},
        {"optimizer": {"params": {"lr": 2e-4, "betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 0.1}}},
    ),
    "stage 3 auto": (
        {
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
            }
        },
        {},
        {
            "zero_optimization": {
                "reduce_bucket_size": 4096,
                "stage3_prefetch_bucket_size": 3686,
                "stage3_param_persistence_threshold": 640,
            }
        },
    ),
    "no warm-up": (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}},
        {},
        {"scheduler": {"params": {"warmup_num_steps": 1}}},
    ),
    "node local": (
        {"checkpoint": {"use_node_local_storage": "auto"}},
        {},
        {"checkpoint": {"use_node_local_storage": False}},
    ),
    "node local, not said": (STAGE_2, {"save_on_each_node": True}, {"checkpoint": {"use_node_local_storage": True}}),
}


def check(found: Any, wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if isinstance(value, dict):
            check(found[key], value)
        elif value is None:
            assert key not in found
        else:
            assert type(found[key]) is type(value)
            assert found[key] == value


@pytest.mark.parametrize("name", BLOCKS)
def test_a_documented_block_is_filled_in(name: str) -> None:
    config, options, wanted = BLOCKS[name]
    before = copy.deepcopy(config)
    check(trained(config, **options), wanted)
    assert config == before, "the user's own mapping was changed"


# ---- the two moments ----


def test_what_only_training_knows_waits_for_it() -> None:
    config = {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}, **BLOCKS["WarmupDecayLR"][0]}
    settings = filled(config)
    assert settings.config["zero_optimization"]["reduce_bucket_size"] == "auto"
    assert settings.config["scheduler"]["params"]["total_num_steps"] == "auto"
    assert settings.config["scheduler"]["params"]["warmup_max_lr"] == 5e-5
    done = settings.completed(16, 50, 0)
    assert done["zero_optimization"]["reduce_bucket_size"] == 256
    assert done["scheduler"]["params"]["total_num_steps"] == 50
    assert settings.config["zero_optimization"]["reduce_bucket_size"] == "auto", "the settings were changed"


def test_what_training_contradicts_is_said_together() -> None:
    params = {"total_num_steps": 7, "warmup_num_steps": 3, "warmup_min_lr": 0, "warmup_max_lr": 5e-5}
    settings = filled({"scheduler": {"type": "WarmupDecayLR", "params": params}})
    with pytest.raises(OptionError) as refused:
        settings.completed(16, 50, 5)
    assert str(refused.value).splitlines() == [
        "deepspeed scheduler.params.total_num_steps=7: the options say 50 (the updates of the run); say the same, or write 'auto'",
        "deepspeed scheduler.params.warmup_num_steps=3: the options say 5 (warmup_steps); say the same, or write 'auto'",
    ]
    settings.for_evaluation(16)  # which has no schedule


def test_a_model_without_a_hidden_size_cannot_fill_anything_in() -> None:
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": 5}
    with pytest.raises(
        OptionError, match=r"^deepspeed zero_optimization.reduce_bucket_size='auto': follows from the hidden size"
    ):
        trained({"zero_optimization": zero}, hidden_size=None)


def test_settings_of_stage_3_need_no_hidden_size_at_another() -> None:
    zero = {"stage": 2, "stage3_prefetch_bucket_size": "auto"}
    assert trained({"zero_optimization": zero}, hidden_size=None)["zero_optimization"] == zero


def test_deepspeed_drives_one_device_with_each_process() -> None:
    place = SimpleNamespace(devices=4, found_by=os.getpid(), world_size=1)
    for config, driven in ((STAGE_2, 1), (None, 4)):
        args = TrainingArguments("out", deepspeed=config, per_device_train_batch_size=3)
        args.__dict__["_found_place"] = place
        assert (args.n_gpu, args.train_batch_size) == (driven, 3 * driven)


def test_the_batch_counts_every_share_of_the_data() -> None:
    args = TrainingArguments(
        "out",
        use_cpu=True,
        deepspeed=STAGE_2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        parallelism_config={"sp_size": 2, "dp_replicate_size": 2},
    )
    settings, problems = settings_of_options(args)
    assert settings is not None
    assert not problems
    whole, problems = in_world(settings, args, 4)
    assert not problems
    assert whole.config["train_batch_size"] == 2 * 3 * 2
    assert whole.config["sequence_parallel_size"] == 2


def test_tensor_parallel_sizes_are_passed_on() -> None:
    settings, problems = settings_of_options(
        TrainingArguments("out", deepspeed=STAGE_2, parallelism_config={"tp_size": 2})
    )
    assert settings is not None
    assert not problems
    assert settings.config["tensor_parallel"] == {"autotp_size": 2, "vocab_parallel_lm_head": False}


def test_layers_may_be_divided_by_the_configuration_alone() -> None:
    args = TrainingArguments(
        "out", deepspeed={**STAGE_2, "tensor_parallel": {"autotp_size": 2}}, per_device_train_batch_size=3
    )
    settings, problems = settings_of_options(args)
    assert settings is not None
    assert not problems
    whole, problems = in_world(settings, args, 4)
    assert not problems
    assert whole.config["train_batch_size"] == 2 * 3
    sizes = whole.sizes(None, 4)
    assert sizes is not None
    assert (sizes.tp_size, sizes.data_size) == (2, 2)


def test_pieces_of_zero_plus_plus_divide_the_processes() -> None:
    args = TrainingArguments("out", deepspeed={"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 4}})
    settings, _ = settings_of_options(args)
    assert settings is not None
    assert not in_world(settings, args, 8)[1]
    (problem,) = in_world(settings, args, 6)[1]
    assert "which that does not divide" in str(problem)


def test_constructing_arguments_joins_no_processes_and_imports_no_torch() -> None:
    code = (
        "import sys, json; from mainspring import TrainingArguments;"
        f"a = TrainingArguments('out', deepspeed={STAGE_2!r}, bf16=True); a.hf_deepspeed_config.config; a.deepspeed_plugin.zero_stage;"
        "print([name for name in ('torch', 'deepspeed', 'transformers', 'accelerate') if name in sys.modules], '_found_place' in vars(a))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split("\n")[0] == "[] False"


# ---- how it is given ----


def test_every_way_to_give_a_configuration_is_the_same(tmp_path: Path) -> None:
    text = json.dumps(STAGE_2)
    file = tmp_path / "zero2.json"
    file.write_text(text)
    ways = [
        STAGE_2,
        text,
        str(file),
        file,
        base64.urlsafe_b64encode(text.encode()).decode(),
        door.HfDeepSpeedConfig(STAGE_2),
    ]
    found = [dict(filled(way).config) for way in ways]
    assert found == [found[0]] * len(ways)
    assert found[0]["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/nowhere/zero.json", "cannot be read"),
        ('{"zero_optimization": {"stage": 2}', "is not JSON"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[1]", "is JSON, but no object"),
        (3, "is a int"),
        ({1: 2}, "has a name that is a int"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_said(given: Any, said: str) -> None:
    with pytest.raises(OptionError, match="^deepspeed=") as refused:
        TrainingArguments("out", deepspeed=given)
    assert said in str(refused.value)


def test_arguments_can_be_copied_and_pickled() -> None:
    args = TrainingArguments("out", deepspeed=STAGE_3)
    for other in (copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert other.hf_deepspeed_config.is_zero3()
        assert other.deepspeed == STAGE_3


# ---- what a launcher says ----

LAUNCHED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    def launch(**environment: str) -> None:
        for name, value in {**LAUNCHED, **environment}.items():
            monkeypatch.setenv(name, value)

    return launch


def test_a_launcher_that_says_nothing_more_asks_for_stage_2(launched: Any) -> None:
    launched()
    assert filled(None).stage == 2


def test_what_a_launcher_says_is_taken_over(launched: Any) -> None:
    launched(
        ACCELERATE_DEEPSPEED_ZERO_STAGE="3",
        ACCELERATE_GRADIENT_ACCUMULATION_STEPS="2",
        ACCELERATE_GRADIENT_CLIPPING="0.5",
        ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="cpu",
        ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE="none",
        ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL="true",
        ACCELERATE_MIXED_PRECISION="bf16",
    )
    args = TrainingArguments("out", use_cpu=True)
    settings = deepspeed_settings(args)
    assert settings is not None
    assert dict(settings.config) == {
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "train_micro_batch_size_per_gpu": 8,
        "train_batch_size": 16,
        "bf16": {"enabled": True},
    }
    assert (args.gradient_accumulation_steps, args.max_grad_norm) == (2, 0.5)
    assert args._known_origins["max_grad_norm"].source == "derived from ACCELERATE_GRADIENT_CLIPPING"


def test_a_launchers_file_is_taken_over(launched: Any, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({**STAGE_3, "gradient_clipping": "auto", "wall_clock_breakdown": True}))
    launched(ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))
    alone = filled(None, max_grad_norm=0.7)
    assert (alone.stage, alone.config["gradient_clipping"]) == (3, 0.7)
    assert alone.said_by["zero_optimization.stage"] == "ACCELERATE_DEEPSPEED_CONFIG_FILE"
    both = filled({**STAGE_3, "gradient_clipping": 0.7}, max_grad_norm=0.7)
    assert both.config["wall_clock_breakdown"] is True
    with pytest.raises(OptionError) as refused:
        filled(STAGE_2)
    assert str(refused.value) == (
        "deepspeed zero_optimization.stage=2: the launcher says 3 (ACCELERATE_DEEPSPEED_CONFIG_FILE); say the same in both, "
        "or leave it out of one"
    )


@pytest.mark.parametrize(
    ("environment", "config", "options", "said"),
    [
        (
            {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            STAGE_2,
            {},
            "stage=2: the launcher says 3 (ACCELERATE_DEEPSPEED_ZERO_STAGE)",
        ),
        (
            {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},
            None,
            {"max_grad_norm": 2.0},
            "gradient_clipping (by ACCELERATE_GRADIENT_CLIPPING)=0.5: the options say 2.0 (max_grad_norm)",
        ),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            None,
            {"gradient_accumulation_steps": 2},
            "(by ACCELERATE_GRADIENT_ACCUMULATION_STEPS)=4: the options say 2",
        ),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "two"}, None, {}, "ACCELERATE_DEEPSPEED_ZERO_STAGE='two': cannot be read"),
        (
            {"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "Layer"},
            None,
            {},
            "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES='Layer': this is not available",
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            {"bf16": {"enabled": False}},
            {},
            "bf16.enabled=False: the options say True",
        ),
        (
            {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "/nowhere.json"},
            None,
            {},
            "ACCELERATE_DEEPSPEED_CONFIG_FILE='/nowhere.json'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) and value else "",
)
def test_a_launcher_that_says_otherwise_is_no_winner(
    environment: dict[str, str], config: Any, options: dict[str, Any], said: str, launched: Any
) -> None:
    launched(**environment)
    with pytest.raises(OptionError) as refused:
        TrainingArguments("out", deepspeed=config, **options)
    assert said in str(refused.value)


def test_without_the_launchers_wish_its_variables_say_nothing(launched: Any) -> None:
    launched(ACCELERATE_USE_DEEPSPEED="false", ACCELERATE_DEEPSPEED_ZERO_STAGE="3")
    args = TrainingArguments("out", use_cpu=True)
    assert deepspeed_settings(args) is None
    assert args.hf_deepspeed_config is None
    assert args.deepspeed_plugin is None


# ---- which one is in force ----


def test_a_configuration_is_in_force_while_somebody_keeps_it() -> None:
    kept = door.HfDeepSpeedConfig(STAGE_3)
    assert door.is_deepspeed_zero3_enabled()
    assert door.deepspeed_config() == STAGE_3
    newer = door.HfDeepSpeedConfig(STAGE_2)
    assert not door.is_deepspeed_zero3_enabled()
    del newer
    gc.collect()
    assert door.deepspeed_config() is None, "the former one came back"
    door.set_hf_deepspeed_config(kept)
    assert door.is_deepspeed_zero3_enabled()
    door.unset_hf_deepspeed_config()
    assert not door.is_deepspeed_zero3_enabled()


def test_arguments_keep_theirs_in_force() -> None:
    args = TrainingArguments("out", deepspeed={**STAGE_3, "train_batch_size": "auto"})
    assert door.is_deepspeed_zero3_enabled()
    assert door.deepspeed_config() is args.hf_deepspeed_config.config
    assert door.deepspeed_config()["train_batch_size"] == 8
    others = TrainingArguments("out")
    assert door.is_deepspeed_zero3_enabled(), "arguments that say nothing of DeepSpeed changed what is in force"
    del args
    gc.collect()
    assert not door.is_deepspeed_zero3_enabled()
    assert others.hf_deepspeed_config is None


def test_processes_that_a_launcher_announces_count_in_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    args = TrainingArguments("out", deepspeed=STAGE_2)
    assert args.hf_deepspeed_config.config["train_batch_size"] == 32


def test_transformers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("transformers.integrations.deepspeed")
    operations = pytest.importorskip("deepspeed.ops").__compatible_ops__
    monkeypatch.setitem(operations, "deepspeed_shm_comm", False)  # processes join, and nothing is compiled for it
    args = TrainingArguments("out", deepspeed=STAGE_3, bf16=True)
    assert theirs.is_deepspeed_zero3_enabled()
    assert theirs.deepspeed_config() is args.hf_deepspeed_config.config
    newer = TrainingArguments("out", deepspeed=STAGE_2)
    assert not theirs.is_deepspeed_zero3_enabled()
    del newer
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false")
    registry.unset_hf_deepspeed_config()
    untold = TrainingArguments("out", deepspeed=STAGE_3)
    assert untold.hf_deepspeed_config.is_zero3()
    assert not theirs.is_deepspeed_zero3_enabled(), "the launcher said that parameters are not divided at once"


def test_arguments_show_what_the_engine_started_with() -> None:
    args = TrainingArguments(
        "out", use_cpu=True, deepspeed={"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}
    )
    settings = deepspeed_settings(args)
    assert settings is not None
    assert args.hf_deepspeed_config.is_auto("zero_optimization.reduce_bucket_size")
    settings.completed(8, 10, 0)
    assert args.hf_deepspeed_config.get_value("zero_optimization.reduce_bucket_size") == 64


def test_the_older_doors_lead_to_the_same() -> None:
    import mainspring.deepspeed as older
    from mainspring import integrations

    for name in (name for name in door.__all__ if name != "is_deepspeed_available"):
        assert getattr(older, name) is getattr(integrations, name) is getattr(door, name)


# ---- what is shown ----


def test_every_value_is_shown_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(
        json.dumps({**BLOCKS["WarmupDecayLR"][0], **STAGE_2, "wandb": {"enabled": False, "team_token": "hf_secret"}})
    )
    args = TrainingArguments("out", deepspeed=str(file), learning_rate=3e-4, bf16=True)
    out = io.StringIO()
    args.explain(file=out)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.getvalue().splitlines() if line.strip()}
    assert rows["zero_optimization.stage"] == f"2 deepspeed ({file})"
    assert rows["scheduler.params.warmup_max_lr"] == "0.0003 learning_rate (keyword)"
    assert rows["scheduler.params.total_num_steps"] == "'auto' the updates of the run"
    assert rows["bf16.enabled"] == "True bf16 or bf16_full_eval (keyword)"
    assert rows["gradient_clipping"] == "1.0 max_grad_norm (default)"
    assert "filled in when training begins" in out.getvalue()
    assert "hf_secret" not in out.getvalue()


def test_what_a_launcher_says_is_shown_as_its(launched: Any) -> None:
    launched(ACCELERATE_DEEPSPEED_ZERO_STAGE="1")
    out = io.StringIO()
    TrainingArguments("out").explain(file=out)
    assert "environment ACCELERATE_DEEPSPEED_ZERO_STAGE" in out.getvalue()


NOTICED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 5}},
        {},
        "deepspeed zero_optimization.stage3_max_live_parameters=5: has no effect, because the stage is 2",
    ),
    (
        {"optimizer": ADAMW},
        {"optim": "sgd"},
        "optim='sgd': has no effect, because the DeepSpeed configuration has a section",
    ),
    (BLOCKS["WarmupLR auto"][0], {"lr_scheduler_type": "cosine"}, "lr_scheduler_type='cosine': has no effect"),
    (
        {"activation_checkpointing": {"partition_activations": True}},
        {},
        "deepspeed activation_checkpointing={'partition_activations': True}: has no effect in models that do not call",
    ),
    (
        {"zero_optimization": {"stage": 2}},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
        "accelerator_config={'gradient_accumulation_kwargs': {'sync_each_batch': True}}: has no effect: DeepSpeed sums",
    ),
]


@pytest.mark.parametrize(("config", "options", "said"), NOTICED, ids=[case[2].partition(":")[0] for case in NOTICED])
def test_what_does_nothing_is_warned_of(config: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.warns(UserWarning, match="has no effect") as caught:
        TrainingArguments("out", deepspeed=config, **options)
    assert any(str(one.message).startswith(said) for one in caught)
