"""The configuration that the options fill in, beside the reference's, live; and our words beside DeepSpeed's."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mainspring import TrainingArguments
from mainspring.arguments.deepspeed import deepspeed_settings, words
from mainspring.arguments.deepspeed.hf import HfDeepSpeedConfig, HfTrainerDeepSpeedConfig
from mainspring.errors import OptionError
from mainspring.integrations import deepspeed as door

pytest.importorskip("deepspeed")
reference = pytest.importorskip("transformers.integrations.deepspeed")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "WORLD_SIZE", "RANK"))]:
        monkeypatch.delenv(name)
    yield
    door.unset_hf_deepspeed_config()
    reference.unset_hf_deepspeed_config()


def outcome(
    config: Any, options: dict[str, Any], hidden_size: int | None, steps: int, kind: Any, arguments: Any
) -> Any:
    """The configuration after both moments; or the settings that contradict the options, or cannot be filled in."""
    model = SimpleNamespace(config=SimpleNamespace(**({} if hidden_size is None else {"hidden_size": hidden_size})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = arguments("out", use_cpu=True, report_to=[], **options)
    made = kind(copy.deepcopy(config))
    made.trainer_config_process(args)
    started = copy.deepcopy(made.config)
    try:
        made.trainer_config_finalize(args, model, steps)
    except OptionError as refused:
        return started, sorted(problem.option.removeprefix("deepspeed ") for problem in refused.problems)
    except ValueError as refused:
        return started, sorted(said_by_reference(str(refused)))
    return started, made.config, str(made.dtype())


def said_by_reference(message: str) -> Iterator[str]:
    for line in message.splitlines():
        if line.startswith("- ds "):
            yield line.removeprefix("- ds ").partition("=")[0]
        elif "auto" in line and "[" in line:
            yield from json.loads(line[line.index("[") : line.index("]") + 1].replace("'", '"'))


def check_same(config: Any, options: dict[str, Any], hidden_size: int | None = 64, steps: int = 100) -> None:
    ours = outcome(config, options, hidden_size, steps, HfTrainerDeepSpeedConfig, TrainingArguments)
    theirs = outcome(
        config, options, hidden_size, steps, reference.HfTrainerDeepSpeedConfig, transformers.TrainingArguments
    )
    assert ours == theirs


# ---- a grid ----

AUTO = "auto"
SCHEDULE_AUTO = {"warmup_min_lr": AUTO, "warmup_max_lr": AUTO, "warmup_num_steps": AUTO}
CONFIGS: dict[str, Any] = {
    "nothing": {},
    "batches": {
        "train_batch_size": AUTO,
        "train_micro_batch_size_per_gpu": AUTO,
        "gradient_accumulation_steps": AUTO,
        "gradient_clipping": AUTO,
    },
    "batches explicit": {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3},
    "clipping explicit": {"gradient_clipping": 1.0},
    "optimizer": {
        "optimizer": {"type": "AdamW", "params": {"lr": AUTO, "betas": AUTO, "eps": AUTO, "weight_decay": AUTO}}
    },
    "optimizer explicit": {"optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-6}}},
    "WarmupLR": {"scheduler": {"type": "WarmupLR", "params": SCHEDULE_AUTO}},
    "WarmupLR explicit": {
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": 1e-6, "warmup_max_lr": 1e-3, "warmup_num_steps": 10},
        }
    },
    "WarmupDecayLR": {
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {**SCHEDULE_AUTO, "total_num_steps": AUTO, "last_batch_iteration": -1},
        }
    },
    "WarmupDecayLR explicit": {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 100}}},
    "precisions": {"fp16": {"enabled": AUTO, "loss_scale": 0}, "bf16": {"enabled": AUTO}},
    "bf16 explicit": {"bf16": {"enabled": True}},
    "fp16 explicit": {"fp16": {"enabled": True, "hysteresis": 2}},
    "stage 2": {"zero_optimization": {"stage": 2, "reduce_bucket_size": AUTO, "overlap_comm": True}},
    "stage 3": {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": AUTO,
            "stage3_prefetch_bucket_size": AUTO,
            "stage3_param_persistence_threshold": AUTO,
            "sub_group_size": 1e9,
        }
    },
    "stage 3 explicit": {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 5,
            "stage3_prefetch_bucket_size": 6,
            "stage3_param_persistence_threshold": 7,
        }
    },
    "communication": {"communication_data_type": "fp32", "steps_per_print": 5},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "batches": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    "no clipping": {"max_grad_norm": 0.0},
    "rates": {"learning_rate": 1e-3, "warmup_steps": 10},
    "share of warm-up": {"warmup_steps": 0.1, "weight_decay": 0.1},
    "Adam": {"adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6},
    "bf16": {"bf16": True},
    "evaluations in bf16": {"bf16_full_eval": True},
    "evaluations in fp16": {"fp16_full_eval": True},
    "each node": {"save_on_each_node": True},
}


@pytest.mark.parametrize(("config", "options"), [*itertools.product(CONFIGS, OPTIONS)])
def test_the_reference_fills_in_the_same(config: str, options: str) -> None:
    check_same(CONFIGS[config], OPTIONS[options])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("hidden_size", "steps"), [(None, 100), (768, 1), (4097, 33)])
def test_model_and_length_of_the_run_tell_the_same(config: str, hidden_size: int | None, steps: int) -> None:
    check_same(CONFIGS[config], {"warmup_steps": 0.03}, hidden_size, steps)


# ---- made-up ones ----


def section(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=known)


def auto_or(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([AUTO, AUTO, *values])


MADE_UP = section(
    train_batch_size=auto_or(8, 12, 16),
    train_micro_batch_size_per_gpu=auto_or(4, 8),
    gradient_accumulation_steps=auto_or(1, 2),
    gradient_clipping=auto_or(1.0, 0.5, 1),
    optimizer=section(
        type=st.just("AdamW"),
        params=section(
            lr=auto_or(5e-5, 1e-3),
            betas=auto_or([0.9, 0.999], [0.8, 0.99]),
            eps=auto_or(1e-8, 1e-6),
            weight_decay=auto_or(0.0, 0.1),
        ),
    ),
    scheduler=section(
        type=st.just("WarmupDecayLR"),
        params=section(
            warmup_min_lr=auto_or(0, 1e-6),
            warmup_max_lr=auto_or(5e-5, 1e-3),
            warmup_num_steps=auto_or(1, 10, 20),
            total_num_steps=auto_or(10, 100),
        ),
    ),
    fp16=section(enabled=auto_or(True, False)),
    bf16=section(enabled=auto_or(True, False)),
    zero_optimization=section(
        stage=st.sampled_from([0, 1, 2, 3]),
        reduce_bucket_size=auto_or(10**6),
        stage3_prefetch_bucket_size=auto_or(10**5),
        stage3_param_persistence_threshold=auto_or(10**4),
    ),
)
CHOSEN = section(
    per_device_train_batch_size=st.sampled_from([4, 8]),
    gradient_accumulation_steps=st.sampled_from([1, 2]),
    max_grad_norm=st.sampled_from([0.0, 0.5, 1.0]),
    learning_rate=st.sampled_from([5e-5, 1e-3]),
    adam_beta1=st.sampled_from([0.8, 0.9]),
    adam_epsilon=st.sampled_from([1e-8, 1e-6]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    warmup_steps=st.sampled_from([0, 0.1, 0.125, 10, 20]),
    bf16=st.booleans(),
    bf16_full_eval=st.booleans(),
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(
    config=MADE_UP,
    options=CHOSEN,
    hidden_size=st.sampled_from([1, 64, 768, 4097]),
    steps=st.sampled_from([1, 10, 100]),
)
def test_made_up_configurations_come_to_the_same(
    config: dict[str, Any], options: dict[str, Any], hidden_size: int, steps: int
) -> None:
    check_same(config, options, hidden_size, steps)


# ---- the object ----

TREE = {"a": {"b": 1, "c": "auto", "x": {"y": 2}, "none": None, "off": False}, "fp16": {"enabled": True}}
CALLS: dict[str, Callable[[Any], Any]] = {
    "value": lambda c: c.get_value("a.b"),
    "no value": lambda c: c.get_value("a.z"),
    "no value, default": lambda c: c.get_value("q.z.r", 7),
    "null": lambda c: (c.get_value("a.none", 3), c.is_false("a.none"), c.is_true("a.none"), c.is_auto("a.none")),
    "auto": lambda c: (c.is_auto("a.c"), c.is_auto("a.b"), c.is_auto("z")),
    "true": lambda c: (c.is_true("fp16.enabled"), c.is_true("a.b"), c.is_true("a.q"), c.is_true("a.off")),
    "false": lambda c: (c.is_false("fp16.enabled"), c.is_false("a.q"), c.is_false("a.off"), c.is_false("a.b")),
    "node": lambda c: (c.find_config_node("a.x.y"), c.find_config_node("n.x.y"), c.find_config_node("a.n")),
    "cut": lambda c: (c.del_config_sub_tree("a.x"), c.config),
    "cut nothing": lambda c: (c.del_config_sub_tree("a.nn"), c.del_config_sub_tree("nn.x.y"), c.config),
    "cut what must be": lambda c: c.del_config_sub_tree("nn.x", must_exist=True),
    "fill": lambda c: (c.fill_only("a.c", 4), c.fill_only("a.new", 4), c.fill_only("a.b", 4), c.config),
    "fill what must match": lambda c: (
        c.fill_match("a.b", 5, "k"),
        c.fill_match("a.c", 5, "k"),
        len(c.mismatches),
        c.config,
    ),
    "fill what need not match": lambda c: (c.fill_match("a.b", 5, must_match=False), c.mismatches, c.config),
    "type": lambda c: c.dtype(),
    "stages": lambda c: (c.is_zero2(), c.is_zero3(), c.is_offload()),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_object_answers_as_the_references(call: str) -> None:
    def answer(kind: Any) -> Any:
        try:
            return CALLS[call](kind(copy.deepcopy(TREE)))
        except ValueError:
            return "refused"

    assert answer(HfTrainerDeepSpeedConfig) == answer(reference.HfTrainerDeepSpeedConfig)


@pytest.mark.parametrize("stage", [0, 1, 2, 3, None])
@pytest.mark.parametrize("what", ["offload_param", "offload_optimizer"])
@pytest.mark.parametrize("place", [{"device": "cpu"}, {"device": "nvme"}, {"device": "none"}, {}, None], ids=str)
def test_stages_and_offloads_are_told_alike(stage: int | None, what: str, place: Any) -> None:
    config = {"zero_optimization": {what: place, **({} if stage is None else {"stage": stage})}}
    ours, theirs = HfDeepSpeedConfig(config), reference.HfDeepSpeedConfig(config)
    assert [ours.is_zero2(), ours.is_zero3(), ours.is_offload()] == [
        theirs.is_zero2(),
        theirs.is_zero3(),
        theirs.is_offload(),
    ]


@pytest.mark.parametrize(
    "config", [{"train_batch_size": "auto"}, {"train_micro_batch_size_per_gpu": 3, "train_batch_size": 5}, {}]
)
def test_a_batch_that_is_found_by_trying_wins(config: dict[str, Any]) -> None:
    found = []
    for kind, arguments in (
        (HfTrainerDeepSpeedConfig, TrainingArguments),
        (reference.HfTrainerDeepSpeedConfig, transformers.TrainingArguments),
    ):
        made = kind(copy.deepcopy(config))
        made.trainer_config_process(arguments("out", use_cpu=True, report_to=[]), auto_find_batch_size=True)
        found.append((made.config, len(made.mismatches)))
    assert found[0] == found[1]


# ---- which one is in force ----


def life(arguments: Any, module: Any) -> list[Any]:
    """Whether stage 3 is in force, after each of several steps in the life of configurations and arguments."""
    seen: list[Any] = []
    stage_3 = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"}
    stage_2 = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}

    def note() -> None:
        gc.collect()
        found = module.deepspeed_config()
        seen.append((module.is_deepspeed_zero3_enabled(), None if found is None else found["zero_optimization"]))

    def make(config: Any = None) -> Any:
        return arguments("out", use_cpu=True, report_to=[], deepspeed=copy.deepcopy(config))

    note()
    held: list[Any] = [module.HfDeepSpeedConfig(stage_3)]
    note()
    held.append(module.HfDeepSpeedConfig(stage_2))
    note()
    held.pop()
    note()
    module.set_hf_deepspeed_config(held[0])
    note()
    held.append(make(stage_2))
    note()
    held.append(make(stage_3))
    note()
    held.append(make())  # which says nothing of it
    note()
    held.pop()
    note()
    held.pop()
    note()
    held.clear()
    note()
    module.HfDeepSpeedConfig(stage_3)  # which nobody keeps
    note()
    held.append(make(stage_3))
    module.unset_hf_deepspeed_config()
    note()
    return seen


def test_configurations_live_as_the_references() -> None:
    ours, theirs = life(TrainingArguments, door), life(transformers.TrainingArguments, reference)
    assert ours == theirs
    assert [zero3 for zero3, _ in ours] == [
        False,
        True,
        False,
        False,
        True,
        False,
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_the_plugin_reads_as_accelerates() -> None:
    config = {
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
    }
    ours = TrainingArguments("out", use_cpu=True, deepspeed=copy.deepcopy(config), gradient_accumulation_steps=2)
    theirs = transformers.TrainingArguments(
        "out", use_cpu=True, report_to=[], deepspeed=copy.deepcopy(config), gradient_accumulation_steps=2
    )
    assert ours.deepspeed_plugin is not None
    for name in (
        "zero_stage",
        "offload_optimizer_device",
        "offload_param_device",
        "zero3_init_flag",
        "zero3_save_16bit_model",
    ):
        assert getattr(ours.deepspeed_plugin, name) == getattr(theirs.deepspeed_plugin, name), name
    assert ours.deepspeed_plugin.deepspeed_config["gradient_accumulation_steps"] == 2
    assert ours.deepspeed_plugin.is_zero3_init_enabled() == theirs.deepspeed_plugin.is_zero3_init_enabled()
    assert math.isclose(
        ours.deepspeed_plugin.gradient_clipping, theirs.deepspeed_plugin.deepspeed_config["gradient_clipping"]
    )


def test_what_is_left_to_a_launcher_that_does_not_say_it() -> None:
    """The file that Accelerate documents: it fills in what its launcher has words for."""
    offload = {"device": "auto", "nvme_path": "auto"}
    zero = {
        "stage": "auto",
        "stage3_gather_16bit_weights_on_model_save": "auto",
        "offload_optimizer": offload,
        "offload_param": offload,
    }
    found = []
    for arguments in (TrainingArguments, transformers.TrainingArguments):
        config = copy.deepcopy({"zero_optimization": zero, "train_batch_size": "auto"})
        args = arguments("out", use_cpu=True, report_to=[], deepspeed=config)
        found.append(args.hf_deepspeed_config.config["zero_optimization"])
    assert found[0] == found[1]
    assert found[0]["stage"] == 2


def test_arguments_of_the_reference_are_filled_in_as_ours() -> None:
    config = {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto", "warmup_max_lr": "auto"}},
        "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": "auto"},
    }
    found = []
    for arguments in (TrainingArguments, transformers.TrainingArguments):
        args = arguments(
            "out",
            use_cpu=True,
            report_to=[],
            deepspeed=copy.deepcopy(config),
            bf16=True,
            max_grad_norm=0.5,
            warmup_steps=5,
        )
        made = deepspeed_settings(args)
        assert made is not None
        found.append(made.completed(32, 100, 5))
        assert args.hf_deepspeed_config.config == found[-1]
    assert found[0] == found[1]


# ---- our words, and those of the installed DeepSpeed ----


def keys_of(model: Any) -> set[str]:
    fields = model.model_fields
    return {*fields, *(field.alias for field in fields.values() if field.alias)}


def test_our_words_are_those_of_deepspeed() -> None:
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero import config as zero, offload_config

    models = {
        "zero_optimization": zero.DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
        "fp16": precision_config.DeepSpeedFP16Config,
        "bf16": precision_config.DeepSpeedBF16Config,
        "tensor_parallel": TPTrainingConfig,
    }
    for path, model in models.items():
        assert set(words.SECTIONS[path]) == keys_of(model), path


def test_our_schedules_and_optimizers_are_those_of_deepspeed() -> None:
    import inspect

    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    for name, parameters in words.SCHEDULES.items():
        known = list(inspect.signature(getattr(lr_schedules, name).__init__).parameters)[2:]
        assert sorted(parameters) == sorted(known), name
    assert {name.lower() for name in words.OPTIMIZERS} == set(DEEPSPEED_OPTIMIZERS)


class _Noticing(dict[str, Any]):
    """A configuration that notes which keys are asked for."""

    asked: set[Any]

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def test_deepspeed_asks_for_no_other_key_at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    noticing = _Noticing({"train_batch_size": 1})
    noticing.asked = set()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("deepspeed.runtime.config.dist.get_rank", lambda: 0)
    monkeypatch.setattr("deepspeed.runtime.config.dist.get_world_size", lambda: 1)
    DeepSpeedConfig(noticing)
    assert noticing.asked == set(words.TOP)


def test_the_launchers_file_reads_as_accelerate_reads_it(tmp_path: Path) -> None:
    """Every variable that Accelerate's launcher sets for DeepSpeed is read, or refused."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    from mainspring.arguments.deepspeed import launcher

    text = (
        "--use_deepspeed --zero_stage 3 --gradient_clipping 0.5 --gradient_accumulation_steps 2 --offload_optimizer_device nvme "
        "--offload_optimizer_nvme_path /disk --offload_param_device cpu --zero3_init_flag true --zero3_save_16bit_model true "
        "--deepspeed_moe_layer_cls_names Layer --num_processes 1 --num_machines 1 --mixed_precision no script.py"
    )
    parsed = launch_command_parser().parse_args(text.split())
    parsed.deepspeed_fields_from_accelerate_config = ""
    parsed.multi_gpu, parsed.use_xpu, parsed.main_process_port = False, False, 29511
    _, environment = prepare_deepspeed_cmd_env(parsed)
    found = {name for name in environment if "DEEPSPEED" in name or name.startswith("ACCELERATE_GRADIENT")}
    known = {variable for variable, _ in launcher._VARIABLES.values()} | {
        launcher.ASKS,
        launcher._FILE,
        launcher._ZERO_INIT,
    }
    assert found - known <= {*launcher._UNKNOWN, "ACCELERATE_CONFIG_DS_FIELDS"}, sys.version
