"""Command lines and files of options, read beside the installed reference: the same arguments, or refused by both.

Where only one of the two takes what is written, the table says why.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import transformers

from mainspring import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments.parser import HfArg

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PAIR = ((HfArgumentParser, TrainingArguments), (transformers.HfArgumentParser, transformers.TrainingArguments))

OTHERWISE = {"restore_callback_states_from_checkpoint", "accelerator_config"}
"""Options that read back otherwise; `test_surface.py` says why."""

REFUSED = "refused"


def outcome(parse: Callable[[], Any]) -> Any:
    """What the parsed arguments hold, or that they were refused."""
    try:
        (args,) = parse()
    except SystemExit as exit_:
        return f"exit {exit_.code}"
    except Exception as error:  # noqa: BLE001 - the reference lets errors of many kinds through
        return REFUSED if isinstance(error, (ValueError, TypeError, OSError, LookupError)) else _of_yaml(error)
    names = {field.name for field in dataclasses.fields(transformers.TrainingArguments)} - OTHERWISE
    values = {name: getattr(args, name) for name in names}
    return {**values, "accelerator_config": str(args.accelerator_config)}


def _of_yaml(error: Exception) -> str:
    assert type(error).__module__.startswith("yaml"), repr(error)
    return REFUSED


def outcomes(parse: Callable[[Any, Any], Any]) -> list[Any]:
    return [outcome(lambda parser=parser, cls=cls: parse(parser, cls)) for parser, cls in PAIR]


# ---- command lines ----

LINES = r"""
--learning_rate 1e-4 --per_device_train_batch_size 4 --num_train_epochs 2.5 --seed 7
--learning-rate 1e-4 --max-steps 10 --warmup-steps 0.1
--eval_strategy steps --eval_steps 10 --save_strategy steps --save_steps 20 --load_best_model_at_end
--bf16 --do_train --do_eval True --do_predict false
--bf16 --bf16 false
--do_train 1 --do_eval 0 --do_predict t
--do_train=yes
--do_train=maybe
--no_remove_unused_columns --no-dataloader-pin-memory --no_logging_nan_inf_filter
--no-eval-do-concat-batches --no_average_tokens_across_devices --no_log_on_each_node
--no_bf16
--tf32 0
--tf32 false
--tf32 no
--tf32 maybe
--disable_tqdm yes
--greater_is_better no --metric_for_best_model loss
--ddp_find_unused_parameters false --ddp_broadcast_buffers yes
--gradient_checkpointing --logging_steps 0.1 --logging_first_step
--gradient_checkpointing true --logging_first_step true
--gradient_checkpointing false
--activation_checkpointing true --torch_compile_mode default
--torch_compile --torch_compile_backend eager
--lr_scheduler_type cosine --optim sgd --optim_args momentum=0.9
--lr_scheduler_type COSINE
--lr_scheduler_kwargs '{"num_cycles":2}'
--lr_scheduler_kwargs '{"a": "1", "b": "true", "c": {"d": 0.5}, "e": "text"}'
--gradient_checkpointing_kwargs '{"use_reentrant":false}'
--activation_checkpointing_kwargs '{"every_n_layers":2}' --activation_checkpointing
--accelerator_config '{"non_blocking": true}'
--label_names labels start_positions --include_for_metrics inputs loss
--label_names
--include_for_metrics
--report_to none --log_level info --ddp_timeout 60
--log_level nosuch
--metric_for_best_model accuracy --greater_is_better true --save_total_limit 2
--include_num_input_tokens_seen
--include_num_input_tokens_seen true
--resume_from_checkpoint checkpoint-5 --run_name "a run"
--run_name=a=b
--dataloader_num_workers 2 --dataloader_prefetch_factor 4 --dataloader_persistent_workers
--dataloader_multiprocessing_context spawn --dataloader_num_workers 1 --no_dataloader_in_order
--dataloader_multiprocessing_context thread --dataloader_num_workers 1
--train_sampling_strategy sequential --dataloader_drop_last --data-seed 3
--eval-strategy epoch --save-strategy best
--eval_strategy sometimes
--save_steps 0.25 --logging_steps 20 --eval_delay 5
--prediction_loss_only --eval_accumulation_steps 4 --batch_eval_metrics --eval_on_start
--optim nosuch
--learning_rate fast
--learning_rate=3e-4
--learning_rate 3e-4 --learning-rate 4e-4
--learning_rate -1e-5
--weight_decay .1 --max_grad_norm 0 --label_smoothing_factor 0.1
--max_grad_norm inf
--max_steps 1.5
--max_steps 1e3
--max_steps 1_000
--max_steps -5
--seed
--seed ""
--nosuch 1
-x 1
stray
--warmup_ 5
--fp16_
--num_train 5
--warmup 5
--logging_steps 0
--logging_steps 1.5
--warmup_steps 2.5
--fp16 --bf16
--warmup_steps -1
--dataloader_prefetch_factor 4
--torch_empty_cache_steps 0
--torch_empty_cache_steps 4
--load_best_model_at_end
--output_dir other --local-rank 0
--hub_strategy nosuch
--ddp_backend nosuch
""".strip().splitlines()
"""What both read alike, or both refuse in the same way."""

MORE = {
    "--tf32": "a truth value that may be left open may stand bare, as all others",
    "--no_tf32": "and can be denied like them",
    "--no-tf32": "as above",
    "--disable_tqdm": "as above",
    "--no_disable_tqdm": "as above",
    "--greater_is_better": "as above",
    "--no-greater-is-better": "as above",
    "--no_ddp_find_unused_parameters": "as above",
    "--no_gradient_checkpointing": "as above",
    "--include_num_input_tokens_seen all": "the reference reads only the first type of a union, here truth values",
    "--include_num_input_tokens_seen non_padding": "as above",
    "--fsdp false": "no words for what is off",
    "--ddp_backend gloo": "the reference joins the processes when its arguments are built",
    '--debug ""': "nothing to debug",
    "--evaluation_strategy epoch": "an older spelling",
    "--no_cuda": "as above",
    "--warmup_ratio 0.1": "as above",
    "--per_gpu_train_batch_size 4": "as above",
    "--overwrite_output_dir": "as above",
    "--half_precision_backend auto --fp16_opt_level O2 --torchdynamo eager": "as above",
}
"""What only ours reads, and why."""

LESS = {
    "--learning_rate nan": "no number",
    "--learning_rate inf": "not a rate",
    "--learning_rate -1": "not a rate",
    "--per_device_train_batch_size 0": "an empty batch",
    "--adam_beta1 1.5": "diverges",
    "--optim_args momentum": "not of the form key=value",
    "--lr_scheduler_kwargs absent.json": "no such file: the reference keeps the text, and fails when training begins",
    "--lr_scheduler_type constant --warmup_steps nan": "no number",
}
"""What only the reference takes, and why. Options that are not available yet are in `test_not_yet.py`."""


def parse_line(parser: Any, cls: Any, line: str) -> Any:
    words = ["--output_dir", "out", "--use_cpu", *shlex.split(line)]
    return parser(cls).parse_args_into_dataclasses(words, look_for_args_file=False)


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_is_read_as_by_the_reference(line: str) -> None:
    ours, theirs = outcomes(lambda parser, cls: parse_line(parser, cls, line))
    assert ours == theirs


@pytest.mark.parametrize("line", MORE)
def test_what_only_ours_reads(line: str) -> None:
    ours, theirs = outcomes(lambda parser, cls: parse_line(parser, cls, line))
    assert isinstance(ours, dict)
    assert theirs in ("exit 2", REFUSED)


@pytest.mark.parametrize("line", LESS)
def test_what_only_the_reference_takes(line: str) -> None:
    ours, theirs = outcomes(lambda parser, cls: parse_line(parser, cls, line))
    assert ours == REFUSED
    assert isinstance(theirs, dict)


# ---- files and mappings ----

FILES: list[tuple[str, str]] = [
    ("json", '{"output_dir": "out", "learning_rate": 1e-4, "eval_strategy": "epoch", "label_names": ["a"]}'),
    ("json", '{"output_dir": "out", "lr_scheduler_kwargs": {"num_cycles": 2}, "report_to": "none", "do_train": true}'),
    ("json", '{"output_dir": null, "max_steps": -1, "eval_steps": 0.2, "eval_strategy": "steps", "tf32": null}'),
    ("json", '{"output_dir": "out", "accelerator_config": {"non_blocking": true}, "include_for_metrics": ["loss"]}'),
    ("json", '{"output_dir": "out", "gradient_checkpointing": true, "gradient_checkpointing_kwargs": {"debug": true}}'),
    ("json", '{"output_dir": "out", "warmup_steps": 0.1, "optim": "adafactor", "lr_scheduler_type": "constant"}'),
    ("json", "{}"),
    ("json", '{"output_dir": "out", "lr_scheduler_kwargs": "{\\"a\\": \\"1\\"}"}'),
    ("json", '{"output_dir": "out", "nosuch": 1}'),
    ("json", '{"output_dir": "out", "optim": "nosuch"}'),
    ("json", '{"output_dir": "out", "fp16": true, "bf16": true}'),
    ("json", '{"output_dir": "out",}'),
    ("json", "{'output_dir': 'out'}"),
    ("json", '{"output_dir": "out"'),
    ("json", '{"output_dir": "out"} // a comment'),
    ("json", ""),
    ("yaml", "output_dir: out\nlearning_rate: 0.0001\neval_strategy: epoch\nlabel_names: [a, b]\n"),
    ("yaml", "output_dir: out\nlr_scheduler_kwargs:\n  num_cycles: 2\ndo_train: yes\n"),
    ("yaml", "# what\noutput_dir: out\ntf32: ~\nlogging_steps: 0.25\nsave_strategy: 'no'\n"),
    ("yaml", "output_dir: &name out\nrun_name: *name\nmax_steps: 1_000\n"),
    ("yaml", "output_dir: out\naccelerator_config: {non_blocking: true}\nmax_grad_norm: .inf\n"),
    ("yaml", '{"output_dir": "out", "seed": 3}'),
    ("yaml", "output_dir: out\nnosuch: 1\n"),
    ("yaml", "output_dir: out\n  seed: 3\n"),
    ("yaml", "output_dir: out\nlabel_names: [a\n"),
    ("yaml", "output_dir: out\nseed: !!python/object:os.system x\n"),
    ("dict", '{"output_dir": "out", "learning_rate": 0.001, "label_names": ["a"], "save_strategy": "epoch"}'),
    ("dict", '{"output_dir": "out", "lr_scheduler_kwargs": {"a": "1"}, "logging_steps": 10.0}'),
    ("dict", '{"output_dir": "out", "nosuch": 1}'),
    ("dict", '{"output_dir": "out", "eval_strategy": "sometimes"}'),
]

FILES_MORE: list[tuple[str, str, str]] = [
    ("json", '{"output_dir": "out", "evaluation_strategy": "epoch", "no_cuda": true}', "older spellings"),
    ("json", '\ufeff{"output_dir": "out"}', "the mark that some editors put first"),
    ("yaml", "output_dir: out\nwarmup_ratio: 0.1\n", "an older spelling"),
]

FILES_LESS: list[tuple[str, str, str]] = [
    ("json", '{"output_dir": "out", "learning_rate": NaN}', "no number"),
    ("json", '{"output_dir": "out", "label_names": "labels"}', "no list: the reference would look for single letters"),
    ("json", '{"output_dir": "out", "seed": "many"}', "the reference fails when training begins"),
    ("json", '{"output_dir": "out", "do_train": "maybe"}', "to the reference any text is true"),
    ("yaml", "output_dir: out\ndo_train: 'off-ish'\n", "as above"),
    ("yaml", "output_dir: out\nlr_scheduler_kwargs: {on: 1}\n", "YAML takes `on` for True, which is no name"),
]


def parse_file(parser: Any, cls: Any, kind: str, text: str, folder: Path) -> Any:
    if kind == "dict":
        return parser(cls).parse_dict({"use_cpu": True, **json.loads(text)})
    file = folder / f"options.{kind}"
    file.write_text(text, encoding="utf-8")
    return getattr(parser(cls), f"parse_{kind}_file")(file)


@pytest.mark.parametrize(("kind", "text"), FILES)
def test_a_file_is_read_as_by_the_reference(kind: str, text: str, tmp_path: Path) -> None:
    ours, theirs = outcomes(lambda parser, cls: parse_file(parser, cls, kind, text, tmp_path))
    assert ours == theirs


@pytest.mark.parametrize(("kind", "text", "why"), FILES_MORE)
def test_a_file_that_only_ours_reads(kind: str, text: str, why: str, tmp_path: Path) -> None:
    ours, theirs = outcomes(lambda parser, cls: parse_file(parser, cls, kind, text, tmp_path))
    assert isinstance(ours, dict)
    assert theirs == REFUSED


@pytest.mark.parametrize(("kind", "text", "why"), FILES_LESS)
def test_a_file_that_only_the_reference_takes(kind: str, text: str, why: str, tmp_path: Path) -> None:
    ours, theirs = outcomes(lambda parser, cls: parse_file(parser, cls, kind, text, tmp_path))
    assert ours == REFUSED
    assert isinstance(theirs, dict)


# ---- several dataclasses, groups, files of words ----


@dataclasses.dataclass
class Model:
    _argument_group_name = "model"
    model_name_or_path: str = HfArg(aliases=["-m", "--model"], help="Which one.")
    revision: Optional[str] = None  # noqa: UP045 - as scripts write it
    layers: Union[int, None] = None  # noqa: UP007
    dtype: Literal["auto", "bfloat16"] = "auto"


@dataclasses.dataclass
class Data:
    files: list[str]
    share: float = 1.0
    shuffle: bool = True
    columns: list[int] | None = None
    extra: dict[str, Any] | str | None = None


TOGETHER = [
    "-m tiny --files a b --output_dir out",
    "--model tiny --files a --share 0.5 --no_shuffle --learning_rate 1e-3",
    "--model_name_or_path tiny --files a --columns 1 2 --revision main --layers 3 --dtype bfloat16",
    "--model-name-or-path tiny --files a --no-shuffle",
    "--model tiny --files a --shuffle no --extra {}",
    "--model tiny",
    "--files a",
    "--model tiny --files a --dtype float16",
    "--model tiny --files a --columns one",
    "--model tiny --files a --nosuch 1",
]


def parse_together(parser: Any, cls: Any, words: list[str] | None, **options: Any) -> Any:
    model, data, args, *rest = parser([Model, Data, cls]).parse_args_into_dataclasses(words, **options)
    return (
        model,
        data,
        {name: getattr(args, name) for name in ("output_dir", "learning_rate", "seed", "max_steps")},
        rest,
    )


@pytest.mark.parametrize("remaining", [False, True])
@pytest.mark.parametrize("line", TOGETHER)
def test_several_dataclasses_are_filled_as_by_the_reference(line: str, remaining: bool) -> None:
    def parse(parser: Any, cls: Any) -> Any:
        words = ["--use_cpu", *line.split()]
        options = {"look_for_args_file": False, "return_remaining_strings": remaining}
        try:
            return parse_together(parser, cls, words, **options)
        except (SystemExit, ValueError) as error:
            return error.code if isinstance(error, SystemExit) else REFUSED

    ours, theirs = (parse(parser, cls) for parser, cls in PAIR)
    assert ours == theirs


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--seed", "9"], {}),
        (["--seed", "9", "--files", "z"], {"args_filename": "other.args"}),
        (["--model", "b", "--files", "z"], {"args_filename": "absent.args"}),
        (["--config", "one.args", "--seed", "9"], {"args_file_flag": "--config"}),
        (["--config", "one.args", "--config", "two.args"], {"args_file_flag": "--config"}),
        (["--config", "two.args", "--config", "one.args"], {"args_file_flag": "--config", "look_for_args_file": True}),
        (["--model", "b", "--files", "z"], {"look_for_args_file": False}),
    ],
)
def test_files_of_words_are_read_as_by_the_reference(
    words: list[str], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py"), "--seed", "5"])
    Path("script.args").write_text("--model script --files a b\n--learning_rate 1e-3 --seed 1")
    Path("other.args").write_text("--model other --seed 2 --max-steps 7")
    Path("one.args").write_text("--model one --files c --max_steps 3")
    Path("two.args").write_text("--max_steps 4 --no_shuffle")
    ours, theirs = (parse_together(parser, cls, words or None, **options) for parser, cls in PAIR)
    assert ours == theirs


# ---- help ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (TrainingArguments, transformers.TrainingArguments),
        (Seq2SeqTrainingArguments, transformers.Seq2SeqTrainingArguments),
    ],
)
def test_the_help_shows_every_option_string_of_the_reference(ours: Any, theirs: Any) -> None:
    def shown(parser: Any) -> set[str]:
        listed = {text for action in parser._actions for text in action.option_strings}
        assert all(text in parser.format_help() for text in listed)
        return listed

    assert shown(transformers.HfArgumentParser(theirs)) <= shown(HfArgumentParser(ours))
