"""Building arguments: who may be positional, how subclasses behave, what it costs, and how they are printed and saved."""

from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest

from mainspring import Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments.construction import UnknownOptionError
from mainspring.arguments.enums import IntervalStrategy
from mainspring.errors import OptionError


@dataclasses.dataclass
class WithDefault(TrainingArguments):
    extra: int = 3
    learning_rate: float = 1e-3


@dataclasses.dataclass
class WithoutDefault(TrainingArguments):
    extra: int


@dataclasses.dataclass(kw_only=True)
class KeywordOnly(TrainingArguments):
    extra: int


@dataclasses.dataclass
class OwnPostInit(TrainingArguments):
    extra: str = "text"
    eval_strategy: str = "steps"

    def __post_init__(self) -> None:
        self.extra = self.extra.upper()


@dataclasses.dataclass
class CallingPostInit(TrainingArguments):
    doubled: int = 1

    def __post_init__(self) -> None:
        self.logging_steps = 25
        super().__post_init__()
        self.doubled *= 2


class OwnConstructor(TrainingArguments):
    def __init__(self, output_dir: str, extra: int = 1, **kwargs: Any) -> None:
        super().__init__(output_dir, **kwargs)
        self.extra = extra


class Anything(TrainingArguments):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Measured(abc.ABC):
    @abc.abstractmethod
    def measure(self) -> int: ...


@dataclasses.dataclass
class Mixed(TrainingArguments, Measured):
    def measure(self) -> int:
        return 5


# ---- positional and unknown ----


@pytest.mark.parametrize(
    "cls", [TrainingArguments, Seq2SeqTrainingArguments, WithDefault, OwnPostInit, OwnConstructor, Anything, Mixed]
)
def test_the_folder_may_be_positional(cls: type) -> None:
    assert cls("here").output_dir == "here"
    assert cls(output_dir="here", seed=5).seed == 5


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments, WithDefault, Anything])
def test_nothing_else_is_positional(cls: type) -> None:
    with pytest.raises(TypeError, match="one positional argument, output_dir"):
        cls("here", True)
    with pytest.raises(TypeError, match="output_dir twice"):
        cls("here", output_dir="there")


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments, WithDefault, OwnConstructor, Anything])
def test_an_unknown_option_is_refused_with_a_hint(cls: type) -> None:
    with pytest.raises(UnknownOptionError, match="learning_rat=1: is no option.*did you mean 'learning_rate'") as error:
        cls("out", learning_rat=1)
    assert isinstance(error.value, TypeError)
    assert isinstance(error.value, OptionError)


def test_all_unknown_options_come_together() -> None:
    with pytest.raises(UnknownOptionError) as error:
        TrainingArguments("out", one=1, two=2)
    assert [problem.option for problem in error.value.problems] == ["one", "two"]


def test_the_signature_shows_the_options() -> None:
    parameters = inspect.signature(TrainingArguments).parameters
    assert next(iter(parameters)) == "output_dir"
    assert parameters["output_dir"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert parameters["learning_rate"].default == 5e-5
    assert "extra" in inspect.signature(WithDefault).parameters
    assert list(inspect.signature(OwnConstructor).parameters) == ["output_dir", "extra", "kwargs"]


def test_the_docstring_tells_every_option() -> None:
    for cls in (TrainingArguments, Seq2SeqTrainingArguments):
        text = inspect.getdoc(cls)
        assert text is not None
        for field in dataclasses.fields(cls):
            assert f"    {field.name} ({field.type}): {field.metadata['help']}" in text
    assert TrainingArguments("out").__doc__ == TrainingArguments.__doc__


# ---- subclasses ----


def test_fields_of_a_subclass_may_lack_a_default() -> None:
    assert WithoutDefault("out", extra=4).extra == 4
    assert KeywordOnly("out", extra=4).extra == 4
    with pytest.raises(TypeError, match="extra"):
        WithoutDefault("out")


def test_a_default_of_a_subclass_counts_and_is_checked() -> None:
    assert WithDefault("out").learning_rate == 1e-3
    assert WithDefault("out", learning_rate="1e-4").learning_rate == 1e-4
    with pytest.raises(OptionError, match="learning_rate"):
        WithDefault("out", learning_rate=-1)


def test_options_are_validated_after_a_post_init_that_does_not_call_ours() -> None:
    args = OwnPostInit("out", logging_steps=7)
    assert args.extra == "TEXT"
    assert args.eval_strategy is IntervalStrategy.STEPS
    assert args.eval_steps == 7
    with pytest.raises(OptionError, match="seed"):
        OwnPostInit("out", seed=-1)


def test_a_post_init_may_change_options_before_and_after_ours() -> None:
    args = CallingPostInit("out", doubled=4, eval_strategy="steps")
    assert (args.logging_steps, args.eval_steps, args.doubled) == (25, 25, 8)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("cls", [WithDefault, OwnPostInit, OwnConstructor, Anything, Mixed])
def test_older_spellings_work_in_subclasses(cls: type) -> None:
    args = cls("out", evaluation_strategy="epoch", no_cuda=True)
    assert (args.eval_strategy, args.use_cpu) == ("epoch", True)


def test_abstract_classes_can_be_mixed_in() -> None:
    assert Mixed("out").measure() == 5

    class StillAbstract(TrainingArguments, Measured):
        pass

    with pytest.raises(TypeError, match="abstract"):
        StillAbstract("out")


# ---- reading values ----


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"learning_rate": "5e-4"}, 5e-4),
        ({"seed": "7"}, 7),
        ({"seed": 7.0}, 7),
        ({"bf16": "true"}, True),
        ({"bf16": 1}, True),
        ({"do_train": "no"}, False),
        ({"logging_steps": "10"}, 10),
        ({"logging_steps": 10.0}, 10),
        ({"max_grad_norm": None}, 0.0),
        ({"eval_delay": None}, 0),
        ({"save_total_limit": 0}, None),
        ({"report_to": None}, []),
        ({"report_to": "none"}, []),
        ({"lr_scheduler_kwargs": '{"num_cycles": 2}'}, {"num_cycles": 2}),
        ({"lr_scheduler_kwargs": '{"rate": "1e-5", "deep": {"on": "true"}}'}, {"rate": 1e-5, "deep": {"on": True}}),
    ],
    ids=str,
)
def test_a_value_becomes_its_options_type(given: dict[str, object], read: object) -> None:
    (name,) = given
    value = getattr(TrainingArguments("out", **given), name)
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("seed", 7.5, "is a float, not int"),
        ("seed", True, "is a bool, not int"),
        ("seed", None, "is a NoneType, not int"),
        ("bf16", "maybe", "is a str, not bool"),
        ("learning_rate", "fast", "is a str, not float"),
        ("eval_strategy", "step", "did you mean 'steps'"),
        ("lr_scheduler_kwargs", "{'a': 1}", "is not JSON"),
        ("lr_scheduler_kwargs", "absent.json", "cannot be read"),
        ("lr_scheduler_kwargs", "[1]", "is JSON, but no object"),
        ("label_names", "labels", "is a str, not None or list"),
        ("ddp_backend", "ncll", "did you mean 'nccl'"),
    ],
)
def test_what_cannot_be_read_is_a_problem(option: str, value: object, said: str) -> None:
    with pytest.raises(OptionError, match=said) as error:
        TrainingArguments("out", **{option: value})
    assert [problem.option for problem in error.value.problems] == [option]


def test_a_mapping_may_come_from_a_file(tmp_path: Any) -> None:
    file = tmp_path / "schedule.json"
    file.write_text('{"num_cycles": "2"}')
    assert TrainingArguments("out", lr_scheduler_kwargs=file).lr_scheduler_kwargs == {"num_cycles": "2"}
    file.write_text("[1, 2]")
    with pytest.raises(OptionError, match="no object"):
        TrainingArguments("out", lr_scheduler_kwargs=str(file))


def test_no_progress_bars_below_the_level_of_warnings() -> None:
    from mainspring.utils import logging

    before = logging.get_verbosity()
    try:
        shown = []
        for level in (logging.INFO, logging.WARNING, logging.ERROR):
            logging.set_verbosity(level)
            shown.append(TrainingArguments("out").disable_tqdm)
        assert shown == [False, False, True]
        assert TrainingArguments("out", disable_tqdm=False).disable_tqdm is False
    finally:
        logging.set_verbosity(before)


# ---- purity ----

GUARD = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "accelerate", "numpy", "transformers"}:
            raise ImportError(name + " is not needed yet")
sys.meta_path.insert(0, Block())
"""

BUILD = """
from mainspring import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
for cls in (TrainingArguments, Seq2SeqTrainingArguments):
    args = cls("out", bf16=True, eval_strategy="steps", eval_steps=0.1, save_steps=0.2, load_best_model_at_end=True)
    args.to_dict(), args.to_json_string(), str(args), cls.__doc__
    args.set_training(batch_size=4).set_save("epoch")
    parser = HfArgumentParser(cls)
    parser.parse_args_into_dataclasses(["--output_dir", "out", "--bf16"], look_for_args_file=False)
    parser.parse_dict({"output_dir": "out", "accelerator_config": {"non_blocking": True}})
    parser.format_help()
    args.explain(everything=True)
    for mistake in ({"seed": -1, "fp16": True, "bf16": True}, {"learning_rat": 1}, {"push_to_hub": True}):
        try:
            cls("out", **mistake)
        except ValueError as error:
            str(error)
"""

WATCH = """
import socket, sys
import mainspring.utils.logging
from mainspring import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
TrainingArguments("out").explain(), HfArgumentParser(TrainingArguments).format_help()
try:
    TrainingArguments("out", learning_rat=1)
except ValueError:
    pass
TouchedError = type("TouchedError", (BaseException,), {})
def audit(event, details):
    if event == "open" or event.partition(".")[0] in {"os", "shutil", "tempfile", "glob", "pathlib", "subprocess", "socket"}:
        raise TouchedError(event, details)
sys.addaudithook(audit)
"""

FORBID = """
import torch, torch.distributed, types
def touch(*args, **kwargs):
    raise AssertionError("device")
for module in (torch.cuda, torch.distributed, torch.accelerator, torch.backends.mps, torch.xpu):
    for name, value in list(vars(module).items()):
        if isinstance(value, types.FunctionType):
            setattr(module, name, touch)
"""


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_building_needs_no_torch() -> None:
    run(GUARD + BUILD)


def test_building_touches_neither_disk_nor_network_nor_processes() -> None:
    run(WATCH + BUILD)


@pytest.mark.parametrize(
    "touching",
    [
        "open('/dev/null')",
        "__import__('os').listdir('/')",
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.getaddrinfo('localhost', 9)",
        "__import__('subprocess').run(['true'])",
    ],
)
def test_the_watch_sees_disk_network_and_processes(touching: str) -> None:
    with pytest.raises(AssertionError, match="TouchedError"):
        run(WATCH + touching)


def test_building_touches_neither_a_device_nor_the_process_group() -> None:
    run(FORBID + BUILD)
    with pytest.raises(AssertionError, match="device"):
        run(FORBID + BUILD + "args.device")


# ---- copies ----


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments, WithDefault, OwnPostInit, OwnConstructor])
def test_copies_are_equal(cls: type) -> None:
    args = cls("out", eval_strategy="epoch", lr_scheduler_kwargs={"a": 1}, use_cpu=True)
    assert args.world_size == 1  # what was looked up is not copied: it is true of one process
    for twin in (copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert type(twin) is cls
        assert twin == args
        assert twin.eval_strategy is IntervalStrategy.EPOCH
        assert "_found_place" not in vars(twin)
    deep = copy.deepcopy(args)
    deep.lr_scheduler_kwargs["a"] = 2
    assert args.lr_scheduler_kwargs == {"a": 1}


def test_an_option_is_replaced() -> None:
    args = TrainingArguments("out", learning_rate=1e-3, eval_strategy="epoch", metric_for_best_model="accuracy")
    other = dataclasses.replace(args, learning_rate=2e-3)
    assert (other.learning_rate, other.eval_strategy, other.greater_is_better) == (2e-3, "epoch", True)
    assert args.learning_rate == 1e-3
    with pytest.raises(OptionError, match="seed"):
        dataclasses.replace(args, seed=-1)
    assert dataclasses.replace(args, activation_checkpointing=True).gradient_checkpointing is True


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments])
def test_saved_options_build_the_same_arguments(cls: type) -> None:
    args = cls(
        "out", eval_strategy="steps", eval_steps=0.2, optim="sgd", label_names=["a"], lr_scheduler_kwargs={"b": 1}
    )
    assert cls(**args.to_dict()) == args
    assert cls(**json.loads(args.to_json_string())) == args


# ---- printed and saved forms ----


@dataclasses.dataclass
class WithToken(TrainingArguments):
    service_token: str | None = None


def test_tokens_are_masked_everywhere() -> None:
    args = WithToken("out", service_token="secret")
    args.hub_token = "secret"
    plain = TrainingArguments("out")
    plain.hub_token = "secret"
    assert args.to_dict()["service_token"] == "<SERVICE_TOKEN>"
    for masked in (args, plain):
        assert masked.to_dict()["hub_token"] == "<HUB_TOKEN>"
        for text in (str(masked), repr(masked), masked.to_json_string(), str(masked.to_sanitized_dict())):
            assert "secret" not in text
    assert "service_token='<SERVICE_TOKEN>'" in repr(args)  # not the one that the dataclass would make


def test_a_subclass_may_print_itself() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        def __repr__(self) -> str:
            return "mine"

    @dataclasses.dataclass
    class Further(Mine):
        more: int = 1

    assert repr(Mine("out")) == repr(Further("out")) == "mine"


def test_plain_values_are_saved() -> None:
    options = TrainingArguments("out", eval_strategy="epoch", report_to="none", lr_scheduler_kwargs={"a": 1}).to_dict()
    assert type(options["eval_strategy"]) is str
    assert json.loads(json.dumps(options)) == options


def test_a_generation_configuration_is_saved_as_its_settings() -> None:
    from transformers import GenerationConfig

    args = Seq2SeqTrainingArguments("out", use_cpu=True)
    args.generation_config = GenerationConfig(max_length=7, num_beams=2)
    saved = args.to_dict()["generation_config"]
    assert saved == args.generation_config.to_dict()
    assert (saved["max_length"], saved["num_beams"]) == (7, 2)
    assert json.loads(args.to_json_string())["generation_config"] == json.loads(json.dumps(saved))
    assert "'max_length': 7" in str(args)
    assert type(args.to_sanitized_dict()["generation_config"]) is str


def test_loggers_get_plain_values() -> None:
    options = TrainingArguments(
        "out", per_device_train_batch_size=5, label_names=["a"], use_cpu=True
    ).to_sanitized_dict()
    assert {type(value) for value in options.values()} <= {bool, int, float, str}
    assert (options["train_batch_size"], options["eval_batch_size"]) == (5, 8)
    assert options["label_names"] == "['a']"


def test_an_absent_attribute_is_an_attribute_error() -> None:
    args = TrainingArguments("out")
    assert getattr(args, "no_such_option", None) is None
    with pytest.raises(AttributeError, match="learning_rat") as error:
        args.learning_rat  # noqa: B018 - the look-up is what is tested
    assert (error.value.name, error.value.obj) == ("learning_rat", args)  # from which Python says what was meant


# ---- everything that is wrong is said at once ----


def problems_of(**options: Any) -> dict[str, Any]:
    with pytest.raises(OptionError) as error:
        TrainingArguments("out", **options)
    return {problem.option: problem.why for problem in error.value.problems}


def test_types_limits_rules_and_missing_machinery_come_in_one_error() -> None:
    found = problems_of(learning_rate=-1, seed="x", fp16=True, bf16=True, push_to_hub=True)
    assert set(found) == {"learning_rate", "seed", "fp16", "push_to_hub"}


def test_unknown_options_come_with_all_other_problems() -> None:
    with pytest.raises(UnknownOptionError) as error:
        TrainingArguments("out", learning_rat=1, seed=-1, fp16=True, bf16=True, sharded_ddp="simple")
    assert [problem.option for problem in error.value.problems] == ["learning_rat", "sharded_ddp", "seed", "fp16"]


def test_a_rule_says_nothing_of_options_that_could_not_be_read() -> None:
    assert set(problems_of(eval_strategy="stpes", load_best_model_at_end=True)) == {"eval_strategy"}
    asked = {"eval_strategy": "steps", "load_best_model_at_end": True, "save_steps": 30}
    assert set(problems_of(logging_steps="often", **asked)) == {"logging_steps"}
    assert set(problems_of(logging_steps=20, **asked)) == {"save_steps"}


def test_problems_are_found_without_the_subclass_s_own_code() -> None:
    @dataclasses.dataclass
    class Loud(TrainingArguments):
        needed: int

        def __post_init__(self) -> None:
            raise AssertionError("not to be run")

    with pytest.raises(UnknownOptionError) as error:
        Loud("out", seed=-1, sed=3)
    assert [problem.option for problem in error.value.problems] == ["sed", "seed"]


@pytest.mark.parametrize("options", [{"hub_token": "canary"}, {"hub_tokn": "canary"}, {"hub_token": ["canary"]}])
def test_errors_show_no_token(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as error:
        TrainingArguments("out", **options)
    assert "canary" not in str(error.value)


def test_a_masked_token_is_none() -> None:
    assert TrainingArguments("out", hub_token="<HUB_TOKEN>").hub_token is None


# ---- values from elsewhere ----


def test_scalars_of_numpy_and_torch_are_numbers() -> None:
    import numpy as np
    import torch

    args = TrainingArguments(
        "out",
        learning_rate=np.float32(0.5),
        max_steps=np.int64(3),
        bf16=np.bool_(True),
        weight_decay=torch.tensor(0.25),
    )
    assert (args.learning_rate, args.max_steps, args.bf16, args.weight_decay) == (0.5, 3, True, 0.25)
    assert [type(v) for v in (args.learning_rate, args.max_steps, args.bf16)] == [float, int, bool]


def test_a_tuple_is_a_list() -> None:
    assert TrainingArguments("out", label_names=("labels", "other")).label_names == ["labels", "other"]


def test_the_newest_checkpoint_may_be_asked_for() -> None:
    assert TrainingArguments("out", resume_from_checkpoint=True).resume_from_checkpoint is True


def test_type_checkers_see_one_positional_option(tmp_path: Any) -> None:
    """They read the declaration, not the constructor."""
    from mypy import api

    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from mainspring.arguments import TrainingArguments\n"
        "@dataclass\n"
        "class Mine(TrainingArguments):\n"
        "    extra: int = 3\n"
        "TrainingArguments('out', learning_rate=1e-4).learning_rate + 1\n"
        "Mine('out', extra=4).extra + 1\n"
        "TrainingArguments('out', True)\n"
        "TrainingArguments('out', learning_rat=1)\n"
    )
    said, _, _ = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(script)])
    assert [line.split(":")[1] for line in said.splitlines() if " error: " in line] == ["8", "9"], said
