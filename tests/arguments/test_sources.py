"""Where each value came from is known, and whether the user gave it, whatever way it came in."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

from mainspring import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments.sources import newer_name
from mainspring.arguments.spellings import OLDER_NAMES, REFUSED, WITHOUT_EFFECT
from mainspring.errors import NotAvailableError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@dataclasses.dataclass
class Own(TrainingArguments):
    learning_rate: float = 1e-3
    extra: int = 3


@dataclasses.dataclass
class Changing(TrainingArguments):
    def __post_init__(self) -> None:
        self.logging_steps = 25
        super().__post_init__()
        self.save_steps = 12


class Handing(TrainingArguments):
    def __init__(self, output_dir: str, **kwargs: Any) -> None:
        super().__init__(output_dir, weight_decay=0.1, **kwargs)
        self.seed = 5


class Grandchild(Own):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(weight_decay=0.1, **kwargs)


def source(args: TrainingArguments, name: str) -> str | None:
    """The recorded source of a value; None where it is a default."""
    origin = args._known_origins.get(name)
    return None if origin is None else origin.source


def note(args: TrainingArguments, name: str) -> str:
    return args._known_origins[name].note


# ---- given or not ----


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments, Own, Changing, Handing])
def test_what_the_user_writes_is_given_even_if_it_is_the_default(cls: type) -> None:
    args = cls("out", max_steps=-1, bf16=False, warmup_ratio=0.1, no_cuda=True)
    for name in ("output_dir", "max_steps", "bf16", "warmup_steps", "use_cpu"):
        assert args._was_given(name), name
        assert source(args, name) == "keyword"
    for name in ("fp16", "eval_steps", "learning_rate", "dataloader_pin_memory"):
        assert not args._was_given(name), name


def test_an_older_spelling_that_sets_nothing_gives_nothing() -> None:
    args = TrainingArguments("out", group_by_length=False, jit_mode_eval=False)
    assert set(args._known_origins) - {"disable_tqdm"} == {"output_dir"}


def test_older_spellings_of_one_option_are_all_told() -> None:
    args = TrainingArguments("out", split_batches=False, dispatch_batches=False)
    assert note(args, "accelerator_config") == (
        "from the older spelling split_batches=False; from the older spelling dispatch_batches=False"
    )


@pytest.mark.parametrize("older", sorted(OLDER_NAMES))
def test_each_older_spelling_has_a_newer_one_or_none(older: str) -> None:
    newer = newer_name(older)
    assert (newer is None) == (older in WITHOUT_EFFECT or older in REFUSED)
    assert newer is None or newer in TrainingArguments.__dataclass_fields__


def test_a_default_of_a_subclass_is_not_given() -> None:
    args = Own("out")
    assert args.learning_rate == 1e-3
    assert not args._was_given("learning_rate")
    assert not args._was_given("extra")
    assert Own("out", extra=3)._was_given("extra")
    assert Own("out", learning_rate=1e-3)._was_given("learning_rate")


def test_a_constructor_of_a_subclass_gives_what_it_hands_on() -> None:
    args = Handing("out", learning_rate=1e-3)
    for name in ("weight_decay", "learning_rate"):
        assert (args._was_given(name), source(args, name)) == (True, "keyword")
    assert (args._was_given("seed"), source(args, "seed")) == (True, "set by Handing")


def test_a_constructor_above_a_generated_one_gives_what_it_hands_on() -> None:
    args = Grandchild(output_dir="out", max_grad_norm=0.5)
    for name in ("weight_decay", "max_grad_norm"):
        assert (args._was_given(name), source(args, name)) == (True, "set by Grandchild")
    assert not args._was_given("learning_rate")


def test_what_a_post_init_changes_is_set_by_the_class() -> None:
    args = Changing("out", save_steps=3, logging_steps=4)
    assert (args.logging_steps, args.save_steps) == (25, 12)
    assert source(args, "logging_steps") == source(args, "save_steps") == "set by Changing"
    assert args._was_given("logging_steps")


def test_what_follows_from_others_is_not_given_unless_it_was() -> None:
    args = TrainingArguments("out", use_cpu=True)
    assert source(args, "dataloader_pin_memory") == "derived from use_cpu"
    assert not args._was_given("dataloader_pin_memory")
    given = TrainingArguments("out", use_cpu=True, dataloader_pin_memory=True)
    assert given._was_given("dataloader_pin_memory")
    assert note(given, "dataloader_pin_memory") == "given as True"


def test_saved_options_are_all_given_and_still_say_nothing() -> None:
    saved = TrainingArguments("out", logging_strategy="epoch", save_strategy="no").to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = TrainingArguments(**saved)
    assert all(args._was_given(field.name) for field in dataclasses.fields(args))


# ---- the finished object ----


def test_an_assignment_is_a_source() -> None:
    args = TrainingArguments("out", seed=1)
    args.seed = 2
    args.learning_rate = 5e-5
    for name in ("seed", "learning_rate"):
        assert (args._was_given(name), source(args, name)) == (True, "set after construction")
    args.no_such_option = 1
    assert source(args, "no_such_option") is None


def test_a_setter_is_named_and_sets_its_group_alone() -> None:
    args = TrainingArguments("out").set_save(strategy="epoch")
    assert source(args, "save_strategy") == source(args, "save_steps") == "set after construction by set_save()"
    assert source(args, "report_to") is None


def test_a_setter_that_is_refused_leaves_the_sources_as_they_were() -> None:
    args = TrainingArguments("out")
    with pytest.raises(NotAvailableError):
        args.set_push_to_hub("me/model")
    assert source(args, "push_to_hub") is None
    assert not args._was_given("push_to_hub")


def test_an_older_spelling_may_be_assigned() -> None:
    args = TrainingArguments("out")
    args.warmup_ratio = 0.25
    assert source(args, "warmup_steps") == "set after construction"
    assert note(args, "warmup_steps") == "from the older spelling warmup_ratio=0.25"
    args.overwrite_output_dir = True
    assert note(args, "overwrite_output_dir").startswith("no effect any more: ")


def test_copies_know_what_the_original_knew_and_go_their_own_way() -> None:
    args = Own("out", seed=5, evaluation_strategy="epoch")
    for twin in (copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert twin._known_origins == args._known_origins
        twin.seed = 6
        assert (source(twin, "seed"), source(args, "seed")) == ("set after construction", "keyword")


def test_the_record_is_no_part_of_the_options() -> None:
    given, plain = TrainingArguments("out", seed=42), TrainingArguments("out")
    assert given._was_given("seed") != plain._was_given("seed")
    assert given == plain
    assert given.to_dict() == plain.to_dict()
    assert str(given) == str(plain)


# ---- command lines, files, mappings ----


def parse(*words: str, **options: Any) -> TrainingArguments:
    options.setdefault("look_for_args_file", False)
    return HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(list(words), **options)[0]


def test_options_of_a_command_line() -> None:
    words = "--output_dir out --learning-rate 1e-3 --seed 42 --bf16 --no_dataloader_pin_memory --warmup_ratio 0.1"
    args = parse(*words.split(), "--report_to", "none")
    for name in ("output_dir", "learning_rate", "seed", "bf16", "dataloader_pin_memory", "warmup_steps", "report_to"):
        assert (args._was_given(name), source(args, name)) == (True, "command line"), name
    assert not args._was_given("include_num_input_tokens_seen")  # argparse reads the text of a default as if written
    assert note(args, "warmup_steps") == "from the older spelling warmup_ratio=0.1"


def test_the_command_line_wins_over_files_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.args").write_text("--output_dir out --seed 1 --weight_decay 0.1 --max_steps 7 --no_log_on_each_node")
    Path("more.args").write_text("--seed 2 --weight_decay 0.2")
    words = ["--config", "more.args", "--seed", "3", "--max_steps", "7"]
    args = parse(*words, args_filename="run.args", args_file_flag="--config")
    assert (args.seed, args.weight_decay, args.max_steps) == (3, 0.2, 7)
    assert source(args, "output_dir") == source(args, "log_on_each_node") == "file run.args"
    assert source(args, "weight_decay") == "file more.args"
    assert note(args, "weight_decay") == "wins over 0.1 from file run.args"
    assert source(args, "seed") == source(args, "max_steps") == "command line"
    assert note(args, "seed") == "wins over 1 from file run.args, 2 from file more.args"
    assert note(args, "max_steps") == ""  # both say the same


def test_a_file_that_is_read_again_wins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.args").write_text("--output_dir out --seed 1")
    Path("b.args").write_text("--seed 2")
    words = ["--config", "a.args", "--config", "b.args", "--config", "a.args"]
    args = parse(*words, args_file_flag="--config")
    assert (args.seed, source(args, "seed")) == (1, "file a.args")
    assert note(args, "seed") == "wins over 2 from file b.args"


def test_a_file_called_as_the_script_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.args").write_text("--output_dir out")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py")])
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    assert source(args, "output_dir") == f"file {tmp_path / 'train.args'}"


def test_a_parser_reads_again_from_the_beginning(tmp_path: Path) -> None:
    file = tmp_path / "run.args"
    file.write_text("--output_dir out --seed 1")
    parser = HfArgumentParser(TrainingArguments)
    parser.parse_args_into_dataclasses(["--bf16"], args_filename=file)
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", "x"], look_for_args_file=False)
    assert source(args, "output_dir") == "command line"
    assert not args._was_given("bf16")
    (again,) = parser.parse_args_into_dataclasses([], args_filename=file)
    assert source(again, "seed") == f"file {file}"


def test_an_option_that_ends_a_file_does_not_take_the_command_lines_first_word(tmp_path: Path) -> None:
    (tmp_path / "run.args").write_text("--output_dir out --label_names a")
    parser = HfArgumentParser(TrainingArguments)
    parser.add_argument("stray")
    args, others = parser.parse_args_into_dataclasses(["b"], args_filename=tmp_path / "run.args")
    assert (args.label_names, others.stray) == (["a"], "b")


def test_a_default_that_a_script_changes_is_the_parsers() -> None:
    parser = HfArgumentParser(TrainingArguments)
    parser.set_defaults(learning_rate=1e-3)
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", "out"], look_for_args_file=False)
    assert (args.learning_rate, source(args, "learning_rate")) == (1e-3, "default of the parser")


def test_parsers_may_have_parents() -> None:
    parent = HfArgumentParser(Own, add_help=False)
    parent.parse_args_into_dataclasses(["--output_dir", "out"], look_for_args_file=False)
    child = HfArgumentParser(parents=[parent])
    assert child.parse_args(["--output_dir", "out", "--extra", "4"]).extra == 4


def test_options_of_mappings_and_files(tmp_path: Path) -> None:
    parser = HfArgumentParser((Own,))
    options = {"output_dir": "out", "extra": 3, "evaluation_strategy": "epoch"}
    (args,) = parser.parse_dict(options)
    assert source(args, "output_dir") == source(args, "extra") == source(args, "eval_strategy") == "mapping"
    for name, read in (("o.json", parser.parse_json_file), ("o.yaml", parser.parse_yaml_file)):
        file = tmp_path / name
        file.write_text('{"output_dir": "out", "extra": 3, "evaluation_strategy": "epoch"}')
        (args,) = read(file)
        assert source(args, "extra") == source(args, "eval_strategy") == f"file {file}"
        assert source(args, "learning_rate") is None


def test_arguments_that_others_build_meanwhile_are_not_taken_for_the_parsers() -> None:
    @dataclasses.dataclass
    class Outer(TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.inner = TrainingArguments("inner", seed=1)

    (args,) = HfArgumentParser(Outer).parse_dict({"output_dir": "out", "seed": 2})
    assert (source(args, "seed"), source(args.inner, "seed")) == ("mapping", "keyword")
