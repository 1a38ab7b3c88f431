"""Which engine a run gets, and what is refused: every rung of the ladder and every rule has its case."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mainspring import Trainer, TrainingArguments
from mainspring.arguments.deepspeed import DeepSpeedSettings
from mainspring.arguments.fsdp_config import FSDPConfig
from mainspring.arguments.parallel_sizes import ParallelSizes
from mainspring.engines import ENGINES, choice
from mainspring.engines.base import EngineOptions, WrapOptions
from mainspring.errors import OptionError
from tests.helpers import models

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "1"}
SAGEMAKER = {"SM_FRAMEWORK_PARAMS": '{"sagemaker_distributed_dataparallel_enabled": true}'}
FSDP = FSDPConfig()
ZERO = DeepSpeedSettings({"zero_optimization": {"stage": 2}})


def asked(processes: int = 1, environment: dict[str, str] | None = None, device: str = "cpu", **options: Any) -> Any:
    return choice.Asked(EngineOptions(**options), processes, device, environment or {})


LADDER = {
    "xla": [asked(device="xla"), asked(fsdp=FSDPConfig(xla=True))],
    "deepspeed": [
        asked(deepspeed=ZERO),
        asked(2, deepspeed=ZERO),
        asked(2, {"ACCELERATE_USE_DEEPSPEED": "true"}, deepspeed=ZERO),
        asked(2, deepspeed=ZERO, parallelism=ParallelSizes(sp_size=2)),
        asked(2, deepspeed=ZERO, parallelism=ParallelSizes(tp_size=2)),
    ],
    "sagemaker": [asked(2, SAGEMAKER)],
    "parallel": [
        asked(2, parallelism=ParallelSizes(tp_size=2)),
        asked(4, parallelism=ParallelSizes(tp_size=2, dp_shard_size=2), fsdp=FSDP),
        asked(2, parallelism=ParallelSizes(cp_size=2)),
    ],
    "fsdp": [
        asked(2, fsdp=FSDP),
        asked(1, LAUNCHED, fsdp=FSDP),
        asked(2, fsdp=FSDPConfig(version=1)),
        asked(4, fsdp=FSDP, parallelism=ParallelSizes(dp_replicate_size=2, dp_shard_size=2)),
        asked(2, {"ACCELERATE_USE_FSDP": "true"}, fsdp=FSDP),
    ],
    "ddp": [asked(2), asked(2, parallelism=ParallelSizes(dp_replicate_size=2)), asked(2, compiles=True, packs=True)],
    "data_parallel": [asked(devices=2)],
    "single": [asked(), asked(1, LAUNCHED), asked(parallelism=ParallelSizes()), asked(compiles=True, packs=True)],
}


def test_the_ladder_is_the_table_of_engines() -> None:
    names = [name for name, _ in choice.LADDER]
    assert sorted(names) == sorted(ENGINES.names())
    assert set(LADDER) == set(names)


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}-{n}") for name, cases in LADDER.items() for n, case in enumerate(cases)],
)
def test_the_first_rung_that_fits_is_taken(name: str, case: choice.Asked) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice.choose(case) == name


REFUSED = {
    "fsdp_needs_a_launcher": (asked(fsdp=FSDP, devices=2), "fsdp", "no launcher started.*torchrun"),
    "fsdp_or_deepspeed": (asked(2, fsdp=FSDP, deepspeed=ZERO), "fsdp", "DeepSpeed is asked for too"),
    "deepspeed_divides_in_its_own_ways": (
        asked(2, deepspeed=ZERO, parallelism=ParallelSizes(cp_size=2)),
        "parallelism_config",
        "does not divide sequences in this way; leave one of the two out",
    ),
    "deepspeed_has_no_rival": (asked(2, SAGEMAKER, deepspeed=ZERO), "deepspeed", "SageMaker.*runs the model itself"),
    "a_launcher_is_heeded": (
        asked(2, {"ACCELERATE_USE_FSDP": "true"}),
        "ACCELERATE_USE_FSDP",
        "do not have fsdp",
    ),
    "sizes_make_the_world": (
        asked(2, parallelism=ParallelSizes(tp_size=3)),
        "parallelism_config",
        "product of the sizes is 3, and the run has 2 processes",
    ),
    "shards_need_fsdp": (asked(2, parallelism=ParallelSizes(dp_shard_size=2)), "parallelism_config", "set fsdp=True"),
    "fsdp_needs_somebody_to_share_with": (
        asked(2, parallelism=ParallelSizes(tp_size=2), fsdp=FSDP),
        "fsdp",
        "hold parts of one model .tp.*dp_shard_size above 1",
    ),
    "splits_need_the_second_version": (
        asked(4, parallelism=ParallelSizes(tp_size=2, dp_shard_size=2), fsdp=FSDPConfig(version=1)),
        "fsdp_config",
        "flattens the parameters, and tp",
    ),
    "hooks_are_ddps": (asked(2, fsdp=FSDP, ddp=WrapOptions(comm_hook="fp16")), "ddp_comm_hook", "only DDP's.*'fsdp'"),
    "xla_shards_in_its_own_way": (asked(2, device="xla", fsdp=FSDP), "fsdp_config", "set xla to true"),
    "some_engines_split_nothing": (
        asked(2, SAGEMAKER, parallelism=ParallelSizes(tp_size=2)),
        "parallelism_config",
        "'sagemaker', splits no model",
    ),
    "sagemaker_shards_nothing": (asked(2, SAGEMAKER, fsdp=FSDP), "fsdp", "which shards nothing"),
    "replicas_are_not_compiled": (asked(devices=2, compiles=True), "torch_compile", "cannot be compiled"),
    "replicas_read_whole_rows": (asked(devices=2, packs=True), "pack_sequences", "packed rows do not allow"),
}


def test_every_rule_has_its_case() -> None:
    assert list(REFUSED) == [rule.__name__ for rule in choice.RULES]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_the_way_out(name: str) -> None:
    case, option, why = REFUSED[name]
    with pytest.raises(OptionError, match=f"(?s){why}") as refused:
        choice.choose(case)
    assert " ".join(problem.option for problem in refused.value.problems) == option
    assert all(problem.fix for problem in refused.value.problems)


@pytest.mark.parametrize(
    ("variable", "options"),
    [
        ("ACCELERATE_USE_DEEPSPEED", None),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", {"parallelism": ParallelSizes(dp_replicate_size=2)}),
        ("ACCELERATE_USE_MEGATRON_LM", None),
    ],
)
def test_what_a_launcher_asks_for_trains_or_nothing_does(variable: str, options: dict[str, Any] | None) -> None:
    with pytest.raises(OptionError, match=f"{variable}='True'.*it would train otherwise"):
        choice.choose(asked(2, {variable: "True"}))
    assert choice.choose(asked(2, {variable: "false"})) == "ddp"
    if options is not None:
        assert choice.choose(asked(2, {variable: "True"}, **options)) == "ddp"


def test_a_world_of_one_has_no_room_for_sizes() -> None:
    with pytest.raises(OptionError, match="has 1 process, as no launcher started more; start 2 processes"):
        choice.choose(asked(parallelism=ParallelSizes(tp_size=2)))


def test_all_that_is_wrong_is_said_at_once() -> None:
    case = asked(fsdp=FSDP, deepspeed=ZERO, parallelism=ParallelSizes(cp_size=2))
    with pytest.raises(OptionError) as refused:
        choice.choose(case)
    assert [problem.option for problem in refused.value.problems] == [
        "fsdp",
        "fsdp",
        "parallelism_config",
        "parallelism_config",
    ]


def test_options_of_ddps_are_idle_elsewhere() -> None:
    given = WrapOptions(bucket_cap_mb=3, static_graph=True, finds_unused=True)
    with pytest.warns(UserWarning, match="has no effect") as said:
        assert choice.choose(asked(2, fsdp=FSDP, ddp=given)) == "fsdp"
    texts = [str(one.message) for one in said]
    assert [text.partition("=")[0] for text in texts] == ["ddp_bucket_cap_mb", "ddp_static_graph"]
    assert all("the engine of this run is 'fsdp' and not DDP" in text for text in texts)


EVERYTHING = {
    "fsdp": [None, FSDP, FSDPConfig(version=1), FSDPConfig(xla=True)],
    "parallelism": [None, *(ParallelSizes(**{f"{way}_size": 2}) for way in ("dp_replicate", "dp_shard", "tp", "cp"))],
    "deepspeed": [None, ZERO],
    "devices": [1, 2],
    "compiles": [False, True],
    "packs": [False, True],
    "ddp": [WrapOptions(), WrapOptions(comm_hook="bf16")],
}
WORLDS = [
    (processes, environment, device)
    for processes in (1, 2)
    for environment in ({}, SAGEMAKER, {"ACCELERATE_USE_FSDP": "1"}, {"ACCELERATE_USE_DEEPSPEED": "1"})
    for device in ("cpu", "cuda", "xla")
]
DOES: dict[str, Callable[[choice.Asked], bool]] = {
    "deepspeed": lambda asked: (
        asked.options.fsdp is None
        and asked.device != "xla"
        and asked.split in ((), ("tp",), ("sp",))
        and (asked.options.ddp.comm_hook is None or asked.processes == 1)
    ),
    "xla": lambda asked: not asked.split and (asked.options.fsdp is None or asked.options.fsdp.xla),
    "sagemaker": lambda asked: not asked.split and asked.options.fsdp is None,
    "parallel": lambda asked: (
        asked.processes > 1
        and asked.options.ddp.comm_hook is None
        and (asked.options.fsdp is None or asked.split == ("cp",))
    ),
    "fsdp": lambda asked: not asked.split and asked.options.ddp.comm_hook is None,
    "ddp": lambda asked: asked.processes > 1 and not asked.split and asked.options.fsdp is None,
    "data_parallel": lambda asked: asked.processes == 1 and asked.options.fsdp is None and not asked.options.compiles,
    "single": lambda asked: asked.processes == 1 and asked.options.fsdp is None and asked.options.devices == 1,
}
"""What each engine can do of what is asked: for the one that is taken, this must be everything."""


@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("world", WORLDS, ids=[f"{n}-{device}-{'-'.join(given)}" for n, given, device in WORLDS])
def test_no_combination_is_trained_otherwise_than_asked(world: tuple[int, dict[str, str], str]) -> None:
    processes, environment, device = world
    chosen = 0
    for values in itertools.product(*EVERYTHING.values()):
        case = asked(processes, environment, device, **dict(zip(EVERYTHING, values, strict=True)))
        try:
            name = choice.choose(case)
        except OptionError:
            continue
        chosen += 1
        assert DOES[name](case), (name, case)
        assert (case.options.deepspeed is not None) == (name == "deepspeed")
        assert not case.says("ACCELERATE_USE_DEEPSPEED") or name == "deepspeed"
        assert case.options.parallelism is None or case.options.parallelism.total_size == processes
        assert not case.says("ACCELERATE_USE_FSDP") or case.options.fsdp is not None
    nobody = "ACCELERATE_USE_DEEPSPEED" in environment and device == "xla"
    assert (chosen == 0) == nobody


# ---- the model and what came with it ----


class Engine(SimpleNamespace):
    """What `check_subjects` asks of an engine."""

    def check_model(self, model: nn.Module) -> None:
        """This one takes any."""


def engine(kind: str = "single", replaces_parameters: bool = False) -> Any:
    return Engine(kind=kind, replaces_parameters=replaces_parameters, joins_optimizer=False)


def test_an_optimizer_of_parameters_that_go_away_is_refused() -> None:
    with pytest.raises(RuntimeError, match="optimizers=.*'fsdp', which replaces the parameters"):
        choice.check_subjects(engine("fsdp", True), nn.Linear(1, 1), given_optimizer=True)
    choice.check_subjects(engine("fsdp", True), nn.Linear(1, 1), given_optimizer=False)
    choice.check_subjects(engine("ddp"), nn.Linear(1, 1), given_optimizer=True)


def test_a_model_on_several_devices_is_for_one_process() -> None:
    model: Any = nn.Linear(1, 1)
    model.hf_device_map = {"a": 0, "b": 1, "c": "cpu"}
    with pytest.raises(ValueError, match=r"device map \(0, 1\), and the engine 'ddp' wants a whole one on each"):
        choice.check_subjects(engine("ddp"), model, given_optimizer=False)
    choice.check_subjects(engine(), model, given_optimizer=False)
    model.hf_device_map = {"a": 0, "b": "cpu", "c": "disk"}
    choice.check_subjects(engine("ddp"), model, given_optimizer=False)


def test_quantized_weights_want_adapters(tmp_path: Any) -> None:
    model = models.tiny_gpt2()
    model.is_quantized = True
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="quantized and cannot be trained: add adapters"):
        Trainer(model, args)
    model._hf_peft_config_loaded = True
    Trainer(model, args)
    del model._hf_peft_config_loaded
    model.hf_quantizer = SimpleNamespace(is_qat_trainable=True)
    Trainer(model, args)


def test_a_run_is_refused_when_it_is_built(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mainspring.arguments.runtime._driven", lambda kind: 2)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", torch_compile=True)
    with pytest.raises(OptionError, match="torch_compile=True: this process drives 2 GPUs"):
        Trainer(nn.Linear(1, 1), args, train_dataset=torch.utils.data.TensorDataset(torch.zeros(1)))
