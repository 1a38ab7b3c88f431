"""Dataclasses on the command line: what is parsed beside the installed reference, and what only ours can."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, List, Literal, Optional, Union  # noqa: UP035 - as scripts write them

import pytest
import transformers

from mainspring import HfArgumentParser, TrainingArguments
from mainspring.arguments.parser import HfArg
from mainspring.errors import MissingPackageError, OptionError


class Colour(Enum):
    red = "red"
    blue = "blue"
    seven = 7


@dataclass
class Plain:
    name: str
    count: int = 1
    rate: float = 0.5
    path: Path = Path("here")
    note: Optional[str] = None  # noqa: UP045
    limit: int | None = None
    ratio: Union[float, None] = 0.1  # noqa: UP007


@dataclass
class Flags:
    bare: bool
    off: bool = False
    on_by_default: bool = True
    maybe: bool | None = None
    maybe_on: Optional[bool] = True  # noqa: UP045


@dataclass
class Choices:
    colour: Colour = Colour.red
    shape: Literal["round", "square", 4] = "round"
    size: str = field(default="m", metadata={"choices": ["s", "m", "l"], "help": "100%% cotton"})
    mode: Colour | str = "blue"
    level: Literal["low", "high"] | None = None

    def __post_init__(self) -> None:
        self.colour = Colour(self.colour)


@dataclass
class Several:
    sizes: list[str] = field(default_factory=list, metadata={"choices": ["s", "m", "l"]})


@dataclass
class Many:
    words: list[str] = field(default_factory=lambda: ["a", "b"])
    numbers: List[int] = field(default_factory=list)  # noqa: UP006
    shares: list[float] | None = None
    targets: None | str | list[str] = None  # noqa: RUF036 - the one order that the reference reads
    settings: dict[str, Any] | str | None = None


@dataclass
class Grouped:
    _argument_group_name = "special"
    kept: str = "x"
    made: int = field(default=3, init=False)
    short: str = field(default="y", metadata={"aliases": ["-s", "--brief"]})


@dataclass
class Required:
    must: int
    list_of: list[int]
    choice: Literal["a", "b"]


def outcome(parse: Callable[[], Any]) -> Any:
    """What a call returns as plain data, or the kind of its failure."""
    try:
        return [vars(item) if hasattr(item, "__dict__") else item for item in parse()]
    except SystemExit as exit_:
        return f"exit {exit_.code}"
    except ValueError:
        return "ValueError"


CORPUS: list[tuple[Any, str]] = [
    (Plain, "--name x"),
    (Plain, "--name x --count 3 --rate 1e-3 --path a/b --note hello --limit 5 --ratio 2"),
    (Plain, "--name=x --count=3"),
    (Plain, "--count 3"),
    (Plain, "--name x --count three"),
    (Plain, "--name x --count 1.5"),
    (Plain, "--name x --count 1 --count 2"),
    (Plain, "--name x --unknown 1"),
    (Plain, "--name x stray"),
    (Plain, "--nam x"),
    (Flags, ""),
    (Flags, "--bare --off --on_by_default --maybe yes --maybe_on"),
    (Flags, "--bare true --off True --on_by_default false --maybe no --maybe_on no"),
    (Flags, "--bare 0 --off 1 --on-by-default t --maybe-on f"),
    (Flags, "--no_on_by_default --no_maybe_on"),
    (Flags, "--no-on-by-default --no-maybe-on"),
    (Flags, "--off --off false"),
    (Flags, "--no_on_by_default --on_by_default"),
    (Flags, "--off maybe"),
    (Flags, "--no_off"),
    (Choices, ""),
    (Choices, "--colour blue --shape square --size l --mode red --level high"),
    (Choices, "--colour 7 --shape 4 --mode 7"),
    (Choices, "--colour green"),
    (Choices, "--shape 5"),
    (Choices, "--size xl"),
    (Choices, "--level middle"),
    (Several, ""),
    (Several, "--sizes s m"),
    (Several, "--sizes l"),
    (Several, "--sizes s xl"),
    (Many, ""),
    (Many, "--words x y z --numbers 1 2 --shares 0.5 1"),
    (Many, "--words x --numbers 1 --targets all"),
    (Many, "--numbers a"),
    (Many, "--words"),
    (Many, "--settings {"),
    (Many, '--settings {"a":1}'),
    (Grouped, "--kept z -s 1"),
    (Grouped, "--brief 2"),
    (Grouped, "--made 2"),
    (Required, ""),
    (Required, "--must 1 --list_of 1 2 --choice a"),
    ((Plain, Flags), "--name x --bare --limit 3"),
    ([Flags, Many], "--words q --no_on_by_default"),
]


@pytest.mark.parity
@pytest.mark.parametrize(("classes", "line"), CORPUS, ids=str)
def test_a_command_line_is_parsed_as_by_the_reference(classes: Any, line: str) -> None:
    for remaining in (False, True):
        ours, theirs = (
            outcome(
                lambda parser=parser, remaining=remaining: parser(classes).parse_args_into_dataclasses(
                    line.split(), look_for_args_file=False, return_remaining_strings=remaining
                )
            )
            for parser in (HfArgumentParser, transformers.HfArgumentParser)
        )
        assert ours == theirs


def parse(classes: Any, line: str, **options: Any) -> tuple[Any, ...]:
    return HfArgumentParser(classes).parse_args_into_dataclasses(line.split(), look_for_args_file=False, **options)


# ---- beyond the reference ----


@dataclass
class Wider:
    tf32: bool | None = None
    id: int | str | None = None
    either: bool | str = "auto"
    kwargs: dict[str, Any] | None = None
    shards: bool | str | list[str] | None = None
    levels: list[Literal["low", "high"]] = field(default_factory=list)
    anything: Any = None


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--tf32", {"tf32": True}),
        ("--no_tf32", {"tf32": False}),
        ("--id 5", {"id": 5}),
        ("--id main", {"id": "main"}),
        ("--either", {"either": True}),
        ("--either no", {"either": False}),
        ("--either all", {"either": "all"}),
        ('--kwargs {"a":1}', {"kwargs": {"a": 1}}),
        ("--shards", {"shards": True}),
        ("--shards false", {"shards": False}),
        ("--shards full", {"shards": "full"}),
        ("--shards full offload", {"shards": ["full", "offload"]}),
        ("--levels low high", {"levels": ["low", "high"]}),
        ("--anything goes", {"anything": "goes"}),
    ],
)
def test_types_that_the_reference_does_not_read(line: str, value: dict[str, Any]) -> None:
    (parsed,) = parse(Wider, line)
    assert vars(parsed) == {**vars(Wider()), **value}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--colour blu", "did you mean 'blue'"),
        ("--level hihg", "did you mean 'high'"),
    ],
)
def test_a_wrong_choice_is_told_the_nearest(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Choices, line)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("line", "said"), [("--kwargs [1]", "no object"), ("--kwargs {", "not JSON")])
def test_a_mapping_must_be_one(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Wider, line)
    assert said in capsys.readouterr().err


def test_unknown_options_are_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean '--learning_rate'") as error:
        parse(TrainingArguments, "--learnin_rate=1 --xyzzy")
    assert str(error.value).splitlines()[1] == "--xyzzy: there is no such option; leave it out"
    with pytest.raises(ValueError, match="'stray' belongs to no option"):
        parse(TrainingArguments, "--seed 1 stray")


def test_problems_of_values_come_together() -> None:
    with pytest.raises(OptionError) as error:
        parse(TrainingArguments, "--learning_rate -1 --seed -1")
    assert len(error.value.problems) == 2


def test_mutable_defaults_are_not_shared() -> None:
    parser = HfArgumentParser(Many)
    (one,), (two,) = (parser.parse_args_into_dataclasses([], look_for_args_file=False) for _ in range(2))
    one.words.append("c")
    assert two.words == ["a", "b"]


def test_an_abbreviation_is_of_an_option_that_help_shows() -> None:
    """Hidden ones that begin alike do not make it ambiguous."""
    (args,) = parse(TrainingArguments, "--warmup_ 5 --fp16_")
    assert (args.warmup_steps, args.fp16_full_eval) == (5, True)


def test_an_older_spelling_may_be_abbreviated_where_no_other_begins_alike() -> None:
    with pytest.warns(FutureWarning, match="evaluation_strategy is now eval_strategy"):
        (args,) = parse(TrainingArguments, "--evaluation_ epoch")
    assert args.eval_strategy == "epoch"


# ---- older spellings ----


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--evaluation_strategy epoch", {"eval_strategy": "epoch"}),
        ("--evaluation-strategy epoch", {"eval_strategy": "epoch"}),
        ("--no_cuda", {"use_cpu": True}),
        ("--no_cuda false", {"use_cpu": False}),
        ("--per_gpu_train_batch_size 2", {"per_device_train_batch_size": 2}),
        ("--warmup_ratio 0.1", {"warmup_steps": 0.1}),
        ("--warmup_ratio 0", {"warmup_steps": 0}),
        ("--adafactor", {"optim": "adafactor"}),
        ("--overwrite_output_dir", {"overwrite_output_dir": True}),
        ("--logging_dir logs", {"logging_dir": "logs"}),
        ("--half_precision_backend auto --save_safetensors", {}),
        ("--past_index -1", {}),
    ],
)
def test_older_spellings_are_options_too(line: str, value: dict[str, Any]) -> None:
    (args,) = parse(TrainingArguments, line)
    for name, read in value.items():
        assert getattr(args, name) == read


def test_older_spellings_are_not_in_the_help() -> None:
    parser = HfArgumentParser(TrainingArguments)
    parser.parse_known_args([])
    text = parser.format_help()
    assert "evaluation_strategy" not in text
    assert "warmup_ratio" not in text


def test_a_script_may_call_its_own_arguments_as_older_options_were() -> None:
    @dataclass
    class Script:
        logging_dir: str = "mine"

    parser = HfArgumentParser((TrainingArguments, Script))
    parser.add_argument("--overwrite_output_dir", action="store_true")
    words = ["--logging_dir", "other", "--overwrite_output_dir"]
    args, script, others = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    assert script.logging_dir == "other"
    assert others.overwrite_output_dir is True
    assert "logging_dir" not in vars(args)


# ---- together with argparse ----


def test_further_arguments_come_back_in_a_namespace() -> None:
    for parser_class in (HfArgumentParser, transformers.HfArgumentParser):
        parser = parser_class([Plain, Flags], description="A script.")
        parser.add_argument("--extra", type=int, default=3)
        plain, flags, others, rest = parser.parse_args_into_dataclasses(
            ["--name", "x", "--off", "--more"], return_remaining_strings=True, look_for_args_file=False
        )
        assert (plain.name, flags.off, vars(others), rest) == ("x", True, {"extra": 3}, ["--more"])


def test_without_dataclasses_it_is_an_argument_parser() -> None:
    parser = HfArgumentParser()
    parser.add_argument("--extra", type=int)
    assert parser.parse_args(["--extra", "2"]).extra == 2
    assert isinstance(parser, argparse.ArgumentParser)


def test_defaults_can_be_changed_on_the_parser() -> None:
    parser = HfArgumentParser((Plain, TrainingArguments))
    parser.set_defaults(count=9, learning_rate=1e-3)
    plain, args = parser.parse_args_into_dataclasses(["--name", "x"], look_for_args_file=False)
    assert (plain.count, args.learning_rate) == (9, 1e-3)


def test_groups_in_the_help() -> None:
    text = HfArgumentParser((TrainingArguments, Grouped)).format_help()
    titles = ["Output, duration, batch:", "Optimizer, schedule, regularisation:", "special:"]
    assert [text.index(title) for title in titles] == sorted(text.index(title) for title in titles)
    assert "Peak learning rate of the schedule. (default: 5e-05)" in text


def test_own_options_of_a_subclass_are_options() -> None:
    @dataclass
    class Mine(TrainingArguments):
        beta: float = HfArg(default=0.1, aliases=["-b"], help="Weight of the penalty.")

    (args,) = parse(Mine, "--output_dir out -b 0.2 --seed 3")
    assert (args.beta, args.seed) == (0.2, 3)
    assert "Mine:" in HfArgumentParser(Mine).format_help()


def test_the_references_own_arguments_are_options() -> None:
    (args,) = parse(transformers.TrainingArguments, "--output_dir out --use_cpu --gradient_checkpointing --fsdp")
    assert isinstance(args, transformers.TrainingArguments)
    assert args.gradient_checkpointing is True


@pytest.mark.parametrize("classes", [int, (Plain, int), object])
def test_only_dataclasses_are_taken(classes: Any) -> None:
    with pytest.raises(TypeError, match="not a dataclass"):
        HfArgumentParser(classes)


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    class Local:
        pass

    @dataclass
    class Lost:
        thing: Local | None = None

    with pytest.raises(TypeError, match="Lost has an annotation that cannot be resolved.*Local"):
        HfArgumentParser(Lost)


def test_help_of_a_field() -> None:
    made = HfArg(default=1, aliases="-e", help="What.", metadata={"metavar": "N"}, repr=False)
    assert (made.default, dict(made.metadata), made.repr) == (
        1,
        {"metavar": "N", "aliases": "-e", "help": "What."},
        False,
    )
    assert HfArg(default_factory=list).default_factory is list


def test_torch_is_not_imported() -> None:
    script = (
        "import sys; from mainspring import HfArgumentParser, TrainingArguments; "
        "HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(['--output_dir', 'x']); "
        "assert {'torch', 'yaml', 'accelerate', 'numpy'}.isdisjoint(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- files ----


def test_files_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the script, named in the program, named on the command line: the later wins, the command line last."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.args").write_text("--name script --count 1 --rate 1\n--limit 1")
    (tmp_path / "other.args").write_text("--name other --count 2")
    (tmp_path / "one.cfg").write_text("--count 3 --rate 3")
    (tmp_path / "two.cfg").write_text("--rate 4")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py"), "--limit", "9"])
    calls: list[dict[str, Any]] = [
        {},
        {"args": ["--rate", "7"]},
        {"args_filename": "other.args"},
        {"args_filename": "other.args", "args": ["--count", "5"]},
        {"args_filename": "absent.args", "args": ["--name", "x"]},
        {"args": ["--cfg", "one.cfg", "--cfg", "two.cfg", "--limit", "5"], "args_file_flag": "--cfg"},
        {"args": ["--cfg", "one.cfg"], "args_filename": "other.args", "args_file_flag": "--cfg"},
        {"args": ["--name", "x"], "look_for_args_file": False},
        {"args": ["--name", "x", "--cfg", "one.cfg"], "look_for_args_file": False, "args_file_flag": "--cfg"},
    ]
    for options in calls:
        ours, theirs = (
            parser(Plain).parse_args_into_dataclasses(**options)
            for parser in (HfArgumentParser, transformers.HfArgumentParser)
        )
        assert ours == theirs


def test_a_named_file_must_exist() -> None:
    with pytest.raises(ValueError, match="--cfg='absent.cfg': there is no such file"):
        parse(Plain, "--cfg absent.cfg", args_file_flag="--cfg")


def test_a_mapping_fills_the_dataclasses() -> None:
    values = {"name": "x", "count": 3, "off": True, "bare": False}
    for parser_class in (HfArgumentParser, transformers.HfArgumentParser):
        plain, flags = parser_class([Plain, Flags]).parse_dict(values)
        assert (plain, flags) == (Plain("x", 3), Flags(False, True))
        with pytest.raises(ValueError, match="cuont"):
            parser_class([Plain, Flags]).parse_dict({**values, "cuont": 1})
        assert parser_class(Plain).parse_dict({"name": "x", "cuont": 1}, allow_extra_keys=True) == (Plain("x"),)
    with pytest.raises(ValueError, match="cuont: there is no such option; leave it out; did you mean 'count'"):
        HfArgumentParser(Plain).parse_dict({"name": "x", "cuont": 1})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_mapping_may_use_older_spellings() -> None:
    (args,) = HfArgumentParser(TrainingArguments).parse_dict({"output_dir": "out", "evaluation_strategy": "epoch"})
    assert args.eval_strategy == "epoch"


def test_files_of_values(tmp_path: Path) -> None:
    values = {
        "output_dir": "out",
        "learning_rate": 1e-4,
        "eval_strategy": "epoch",
        "label_names": ["a"],
        "use_cpu": True,
    }
    json_file, yaml_file = tmp_path / "values.json", tmp_path / "values.yaml"
    json_file.write_text(json.dumps(values))
    yaml_file.write_text(
        "output_dir: out\nlearning_rate: 1e-4\neval_strategy: epoch\nlabel_names: [a]\nuse_cpu: true\n"
    )
    wanted = TrainingArguments(**values)
    parser = HfArgumentParser(TrainingArguments)
    for file in (json_file, str(json_file)):
        assert parser.parse_json_file(file) == (wanted,)
    assert parser.parse_yaml_file(yaml_file) == (wanted,)  # YAML takes 1e-4 for text; the option does not
    saved = tmp_path / "saved.json"
    saved.write_text(wanted.to_json_string())
    assert parser.parse_json_file(saved) == (wanted,)


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    parser, file = HfArgumentParser(Plain), tmp_path / f"values.{kind}"
    read = getattr(parser, f"parse_{kind}_file")
    for text, said in (
        ("[1, 2]", "holds a list"),
        ("{'a': ", f"not {kind.upper()}"),
        ('{"name": "x", "b": 1}', "^b: there"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read(file)
    assert read(file, allow_extra_keys=True) == (Plain("x"),)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")


def test_yaml_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingPackageError, match="pip install pyyaml"):
        HfArgumentParser(Plain).parse_yaml_file(tmp_path / "values.yaml")
