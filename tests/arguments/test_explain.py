"""`explain` tells every value, its source, and what was adjusted or does nothing, and why."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import subprocess
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from mainspring import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments import not_yet
from mainspring.arguments.docstring import default_of
from mainspring.arguments.explain import ENVIRONMENT, Row, explanation
from mainspring.arguments.option import groups_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

VARIABLES = (
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_USE_CPU",
    "LOCAL_RANK",
    "MAINSPRING_VERBOSITY",
    "RANK",
    "WORLD_SIZE",
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def row(args: TrainingArguments, name: str) -> Row:
    (found,) = [row for row in explanation(args).rows if row.option == name]
    return found


def table(args: TrainingArguments, everything: bool = False) -> str:
    out = io.StringIO()
    args.explain(everything=everything, file=out)
    return out.getvalue()


# ---- sources ----


@dataclasses.dataclass
class Own(TrainingArguments):
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    extra: int = 3
    service_token: str | None = None


@dataclasses.dataclass
class Further(Own):
    seed: int = 7


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments, Own, Further])
def test_there_is_one_row_for_each_option_in_the_order_of_the_groups(cls: type) -> None:
    rows = explanation(cls("out", overwrite_output_dir=True)).rows
    wanted = [(title, field.name) for title, fields in groups_of(cls).items() for field in fields]
    assert [(row.group, row.option) for row in rows] == [*wanted, ("Older options", "overwrite_output_dir")]
    assert {name for _, name in wanted} == {field.name for field in dataclasses.fields(cls)}


CANDIDATES = (
    True,
    False,
    1,
    2,
    0.5,
    "text",
    "key=1",
    "2:4",
    "underflow_overflow",
    ["loss"],
    ["text"],
    {"key": 1},
    {"key": {"lr": 1}},
    {"non_blocking": True},
    {"version": 1},
    {"zero_optimization": {"stage": 2}},
    {"tp_size": 2},
    {"use_reentrant": True},
    ["SIGTERM"],
)
BESIDES: tuple[dict[str, Any], ...] = ({}, {"dataloader_num_workers": 1}, {"eval_strategy": "steps"})


def built_with(name: str) -> TrainingArguments | None:
    """Arguments with another value than the default for one option; None where every one is refused."""
    (field,) = [field for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.name == name]
    values = [value for value in field.metadata["choices"] or CANDIDATES if value != default_of(field)]
    for value in values:
        for others in BESIDES:
            with contextlib.suppress(ValueError):
                args = Seq2SeqTrainingArguments(**{"output_dir": "out", **others, name: value})
                if getattr(args, name) != getattr(Seq2SeqTrainingArguments(), name):
                    return args
    return None


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)])
def test_an_option_that_is_given_came_by_keyword(name: str) -> None:
    args = built_with(name)
    if args is None:
        assert name in not_yet.OPTIONS | {"report_to"}
        return
    value = getattr(args, name)
    found = row(args, name)
    assert (found.source, found.usual) == ("keyword", False)
    assert found.value == (value.value if isinstance(value, Enum) else args.to_dict()[name])
    assert f"  {name} " in table(args)


DERIVED: list[tuple[dict[str, Any], str, Any, str]] = [
    ({"eval_strategy": "steps", "logging_steps": 7}, "eval_steps", 7, "logging_steps"),
    ({"eval_strategy": "epoch"}, "do_eval", True, "eval_strategy"),
    (
        {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
        "metric_for_best_model",
        "loss",
        "load_best_model_at_end",
    ),
    (
        {"eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"},
        "metric_for_best_model",
        "loss",
        "lr_scheduler_type",
    ),
    (
        {"eval_strategy": "epoch", "metric_for_best_model": "accuracy"},
        "greater_is_better",
        True,
        "metric_for_best_model",
    ),
    ({"use_cpu": True}, "dataloader_pin_memory", False, "use_cpu"),
    ({"torch_compile_mode": "default"}, "torch_compile", True, "torch_compile_mode"),
    ({"torch_compile_backend": "eager"}, "torch_compile", True, "torch_compile_backend"),
    ({"torch_compile": True}, "torch_compile_backend", "inductor", "torch_compile"),
    ({"gradient_checkpointing": True}, "activation_checkpointing", True, "gradient_checkpointing"),
    ({"activation_checkpointing": True}, "gradient_checkpointing", True, "activation_checkpointing"),
    (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        "activation_checkpointing_kwargs",
        {"use_reentrant": False},
        "gradient_checkpointing_kwargs",
    ),
    ({"compat": "4.37"}, "run_name", "out", "compat"),
]


@pytest.mark.parametrize(("given", "name", "value", "by"), DERIVED)
def test_a_value_that_follows_from_another_names_it(given: dict[str, Any], name: str, value: Any, by: str) -> None:
    args = TrainingArguments("out", **given)
    found = row(args, name)
    assert (found.value, found.source, found.usual) == (value, f"derived from {by}", False)
    given_too = TrainingArguments("out", **{**given, name: value})
    assert row(given_too, name).source == "keyword"


def test_a_value_that_lost_to_another_option_is_told() -> None:
    found = row(
        TrainingArguments("out", gradient_checkpointing=True, activation_checkpointing=False), "gradient_checkpointing"
    )
    assert (found.value, found.source, found.notes) == (
        False,
        "derived from activation_checkpointing",
        ("given as True",),
    )


def test_progress_bars_follow_the_log_level() -> None:
    from mainspring.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.ERROR)
        found = row(TrainingArguments("out"), "disable_tqdm")
    finally:
        logging.set_verbosity(before)
    assert (found.value, found.source) == (True, "derived from the library's log level")


def test_defaults_of_subclasses() -> None:
    args = Further("out")
    sources = {row.option: (row.source, row.usual) for row in explanation(args).rows}
    assert sources["learning_rate"] == ("default of Own", False)
    assert sources["seed"] == ("default of Further", False)
    assert sources["weight_decay"] == ("default of Own", True)  # which is ours
    assert sources["extra"] == ("default of Own", True)  # nothing else would be usual
    assert sources["max_steps"] == ("default", True)
    assert row(Further("out", extra=4), "extra").usual is False


def test_a_default_of_a_subclass_may_be_adjusted() -> None:
    @dataclasses.dataclass
    class Keeping(TrainingArguments):
        save_total_limit: int | None = 0

    found = row(Keeping("out"), "save_total_limit")
    assert (found.source, found.notes) == ("default of Keeping", ("given as 0: every checkpoint is kept",))


def test_a_replaced_copy_shows_what_is_not_a_default() -> None:
    args = dataclasses.replace(TrainingArguments("out", seed=5), weight_decay=0.1)
    assert {row.source for row in explanation(args).rows} == {"keyword"}
    assert [row.option for row in explanation(args).rows if not row.usual] == ["output_dir", "weight_decay", "seed"]


# ---- the environment ----


@pytest.mark.parametrize(
    ("variables", "options", "shown"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            {},
            [("mixed_precision", "bf16", "ACCELERATE_MIXED_PRECISION", "neither bf16 nor fp16 is set")],
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            {"bf16": True},
            [("mixed_precision", "bf16", "ACCELERATE_MIXED_PRECISION=fp16", "has no effect, because bf16 is set")],
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {}, []),
        ({"ACCELERATE_USE_CPU": "true"}, {}, [("device", "cpu", "ACCELERATE_USE_CPU", "wins over use_cpu=False")]),
        ({"ACCELERATE_USE_CPU": "true"}, {"use_cpu": True}, []),
        ({"ACCELERATE_USE_CPU": "false"}, {}, []),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, {}, [("device", "meta", "ACCELERATE_TORCH_DEVICE", "")]),
        (
            {"ACCELERATE_TORCH_DEVICE": "meta", "ACCELERATE_USE_CPU": "1"},
            {"use_cpu": True},
            [("device", "meta", "ACCELERATE_TORCH_DEVICE", "wins over use_cpu=True")],
        ),
        (
            {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"},
            {"local_rank": 2},
            [
                ("world_size", 4, "WORLD_SIZE", ""),
                ("process_index", 3, "RANK", ""),
                ("local_process_index", 1, "LOCAL_RANK", "wins over local_rank=2"),
            ],
        ),
        ({"LOCAL_RANK": "1"}, {"local_rank": 1}, [("local_process_index", 1, "LOCAL_RANK", "")]),
        (
            {"MAINSPRING_VERBOSITY": "info"},
            {},
            [("the library's log level", "info", "MAINSPRING_VERBOSITY", "")],
        ),
    ],
)
def test_what_the_environment_decides(
    variables: dict[str, str], options: dict[str, Any], shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    args = TrainingArguments("out", **options)
    found = [row for row in explanation(args).rows if row.group == ENVIRONMENT]
    assert [(row.option, row.value, row.source, "; ".join(row.notes)) for row in found] == [
        (name, value, f"environment {variable}", note) for name, value, variable, note in shown
    ]


@pytest.mark.parametrize(
    ("variable", "value", "options"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", {}),
        ("ACCELERATE_MIXED_PRECISION", "fp16", {"bf16": True}),
        ("ACCELERATE_USE_CPU", "true", {}),
        ("ACCELERATE_TORCH_DEVICE", "meta", {"use_cpu": True}),
    ],
)
def test_what_is_told_of_the_environment_is_what_comes_about(
    variable: str, value: str, options: dict[str, Any]
) -> None:
    script = f"""
import os
os.environ[{variable!r}] = {value!r}
from mainspring import TrainingArguments
from mainspring.arguments.explain import explanation
args = TrainingArguments("out", **{options!r})
told = {{row.option: row.value for row in explanation(args).rows}}
for name in ("mixed_precision", "device"):
    if name in told:
        assert str(getattr(args, name)) == told[name], (name, told[name])
        print(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("mixed_precision", "device")


# ---- adjusted, ignored, impossible ----


def notes(name: str, cls: type = TrainingArguments, **options: Any) -> tuple[str, ...]:
    return row(cls("out", **options), name).notes


@pytest.mark.parametrize(
    ("name", "given", "note"),
    [
        ("save_total_limit", {"save_total_limit": 0}, "given as 0: every checkpoint is kept"),
        ("max_grad_norm", {"max_grad_norm": None}, "None stands for 0.0"),
        ("hub_token", {"hub_token": "<HUB_TOKEN>"}, "the mask of a token, not a token"),
        ("eval_strategy", {"evaluation_strategy": "epoch"}, "from the older spelling evaluation_strategy='epoch'"),
        ("warmup_steps", {"warmup_ratio": 0.1}, "from the older spelling warmup_ratio=0.1"),
        (
            "warmup_steps",
            {"warmup_steps": 10, "warmup_ratio": 0.1},
            "warmup_ratio=0.1 was given too, and does not count",
        ),
        (
            "include_for_metrics",
            {"include_for_metrics": ["loss"], "include_inputs_for_metrics": True},
            "include_inputs_for_metrics=True is joined to it",
        ),
        ("optim", {"adafactor": True}, "from the older spelling adafactor=True"),
        (
            "save_safetensors",
            {"save_safetensors": False},
            "no effect any more: weights are always saved as safetensors",
        ),
        (
            "adam_beta1",
            {"adam_beta1": 0.8, "optim": "sgd"},
            "has no effect, because optim='sgd' does not read it; give what the optimizer has in optim_args",
        ),
        (
            "warmup_steps",
            {"warmup_steps": 10, "max_steps": 5},
            (
                "max_steps is 5: the run ends before the learning rate reaches its peak; make it smaller, or give a "
                "share below 1"
            ),
        ),
    ],
)
def test_what_was_adjusted_or_does_nothing_is_said(name: str, given: dict[str, Any], note: str) -> None:
    assert notes(name, **given) == (note,)
    assert f"\n      {note}\n" in table(TrainingArguments("out", **given))


def test_a_home_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = row(TrainingArguments("~/out"), "output_dir")
    assert (found.value, found.notes) == ("/home/me/out", ("given as '~/out': ~ is a home folder",))


def test_a_file_that_holds_one_option_is_told(tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    file.write_text('{"num_cycles": 2}')
    assert notes("lr_scheduler_kwargs", lr_scheduler_kwargs=str(file)) == (f"read from {file}",)
    assert notes("lr_scheduler_kwargs", lr_scheduler_kwargs='{"num_cycles": 2}') == ()
    assert notes("lr_scheduler_kwargs", lr_scheduler_kwargs={"num_cycles": 2}) == ()


def test_notes_come_together() -> None:
    assert len(notes("warmup_steps", warmup_ratio=0.1, lr_scheduler_type="constant")) == 2


def test_what_setters_and_assignments_made_impossible_is_said() -> None:
    args = TrainingArguments("out", eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)
    args.set_save(strategy="steps")
    (note,) = row(args, "load_best_model_at_end").notes
    assert note.startswith("cannot be: save_strategy is 'steps' but eval_strategy is 'epoch'; give both the same")
    args = TrainingArguments("out")
    args.push_to_hub = True
    assert row(args, "push_to_hub").notes == ("cannot be: this option is not available yet; leave it out",)
    args.max_steps = "many"  # rules could not compare it
    assert row(args, "max_steps").notes == ("cannot be: is a str, not int; give int",)


def test_tokens_are_masked() -> None:
    args = Own("out", service_token="canary")
    args.hub_token = "canary"
    assert (row(args, "service_token").value, row(args, "hub_token").value) == ("<SERVICE_TOKEN>", "<HUB_TOKEN>")
    assert "canary" not in table(args, everything=True)
    assert "canary" not in repr(explanation(args))
    parser = HfArgumentParser(Own)
    file = io.StringIO()
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", "out", "--service_token", "canary"])
    args.explain(file=file)
    assert "canary" not in file.getvalue()


def test_a_token_that_lost_is_masked(tmp_path: Path) -> None:
    (tmp_path / "run.args").write_text("--output_dir out --service_token canary")
    parser = HfArgumentParser(Own)
    words = ["--service_token", "bird"]
    (args,) = parser.parse_args_into_dataclasses(words, args_filename=tmp_path / "run.args")
    assert row(args, "service_token").notes == (f"wins over '<SERVICE_TOKEN>' from file {tmp_path / 'run.args'}",)


# ---- the table ----

TABLE = """\
Output, duration, batch
  output_dir         'out'       keyword
  do_eval            True        derived from eval_strategy

Optimizer, schedule, regularisation
  lr_scheduler_type  'constant'  keyword
  warmup_steps       0.1         keyword
      from the older spelling warmup_ratio=0.1
      has no effect, because the schedule 'constant' has no warm-up; use 'constant_with_warmup' or another schedule, or leave it out

Evaluation and metrics
  eval_strategy      'steps'     keyword
  eval_steps         20          set after construction

The other {count} options of TrainingArguments have their default values.
"""


def test_the_table() -> None:
    given = {"warmup_ratio": 0.1, "lr_scheduler_type": "constant", "eval_strategy": "steps"}
    args = TrainingArguments("out", **given)
    args.eval_steps = 20
    assert table(args) == TABLE.format(count=len(dataclasses.fields(TrainingArguments)) - 6)


def test_everything() -> None:
    args = TrainingArguments("out", weight_decay=0.1)
    lines = table(args, everything=True).splitlines()
    for field in dataclasses.fields(args):
        assert sum(line.startswith(f"  {field.name} ") for line in lines) == 1
    assert lines[-2].split() == ["max_time", "None", "default"]
    assert "default values" not in lines[-1]


def test_nothing_given() -> None:
    count = len(dataclasses.fields(TrainingArguments))
    assert table(TrainingArguments()) == f"All {count} options of TrainingArguments have their default values.\n"


def test_long_values_are_cut_in_the_table_alone() -> None:
    args = TrainingArguments("out", run_name="x" * 100)
    assert row(args, "run_name").value == "x" * 100
    (line,) = [line for line in table(args).splitlines() if "run_name" in line]
    assert line.split()[1:] == [f"'{'x' * 58}…", "keyword"]


def test_it_prints_on_standard_output_and_returns_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    args = TrainingArguments("out")
    assert args.explain() is None
    assert capsys.readouterr().out == table(args)


def test_it_changes_nothing_and_warns_of_nothing() -> None:
    args = TrainingArguments("out", save_steps=7, save_strategy="epoch", warmup_ratio=0.1, use_cpu=True)
    before = dict(vars(args))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table(args, everything=True)
    assert vars(args) == before


def test_nothing_is_imported_or_touched() -> None:
    script = """
import io, socket, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "accelerate", "numpy", "transformers"}:
            raise ImportError(name + " is not needed yet")
sys.meta_path.insert(0, Block())
from mainspring import TrainingArguments
out = io.StringIO()
args = TrainingArguments("out", eval_strategy="epoch", use_cpu=True)
args.explain(file=out)
TouchedError = type("TouchedError", (BaseException,), {})
def audit(event, details):
    if event in ("open", "os.mkdir", "os.listdir", "os.scandir", "subprocess.Popen") or event.startswith("socket."):
        raise TouchedError(event, details)
sys.addaudithook(audit)
args.lr_scheduler_kwargs = "/etc/hostname"
args.explain(everything=True, file=out)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
