"""Values as YAML and JSON hold them, and JSON that says where it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mainspring import HfArgumentParser, TrainingArguments
from mainspring.arguments.spellings import DYNAMO_BACKENDS, OLDER_NAMES
from mainspring.errors import NotAvailableError, OptionError


@pytest.mark.parametrize(("value", "read"), [(4.37, "4.37"), (5, "5"), (5.0, "5"), ("none", "none")])
def test_a_generation_may_be_a_number(value: Any, read: str) -> None:
    assert TrainingArguments("out", compat=value, report_to="none").compat == read


def test_no_without_quotes_in_yaml_is_no(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("eval_strategy: no\nsave_strategy: no\nlogging_strategy: no\ncompat: 4.37\nreport_to: none\n")
    (args,) = HfArgumentParser(TrainingArguments).parse_yaml_file(file)
    assert (args.eval_strategy, args.save_strategy, args.logging_strategy, args.compat) == ("no", "no", "no", "4.37")


@pytest.mark.parametrize(
    ("name", "value"), [("eval_strategy", True), ("optim", False), ("compat", True), ("compat", 6)]
)
def test_other_values_stay_no_choice(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name}=.*is not one of"):
        TrainingArguments("out", **{name: value})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"x', "is not JSON: .* at line 1, column 1"),
        ("[1,]", "is not JSON: a comma after the last item at line 1, column 3"),
        ("rate: 1", "is neither a file nor JSON: .* at line 1, column 1"),
        ('{"a": 1, "a": 2}', "is not JSON: 'a' is there twice"),
        ('{"b": {"a": 1, "a": 1}}', "is not JSON: 'a' is there twice"),
        ("[1]", "is JSON, but no object"),
        ("absent.json", "cannot be read"),
    ],
)
def test_json_says_where_it_breaks(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=f"^lr_scheduler_kwargs=.*: {said}"):
        TrainingArguments("out", lr_scheduler_kwargs=text)


def test_a_file_says_everything_once(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"seed": 1, "learning_rate": 0.1, "seed": 2}')
    with pytest.raises(ValueError, match="'seed' is there twice"):
        HfArgumentParser(TrainingArguments).parse_json_file(file)


@pytest.mark.parametrize("name", DYNAMO_BACKENDS)
def test_backends_of_the_older_name(name: str) -> None:
    assert len(DYNAMO_BACKENDS) == 10
    with pytest.warns(FutureWarning, match="torch_compile_backend"):
        args = TrainingArguments("out", torchdynamo=name)
    assert (args.torch_compile, args.torch_compile_backend) == (True, name)


def test_a_misspelt_backend() -> None:
    with pytest.raises(OptionError, match="^torchdynamo='induktor': .* did you mean 'inductor'"):
        TrainingArguments("out", torchdynamo="induktor")


@pytest.mark.parametrize("name", sorted(OLDER_NAMES - {"_n_gpu"}))
def test_every_older_name_reads_with_a_warning(name: str) -> None:
    args = TrainingArguments("out", use_cpu=True)
    with pytest.warns(FutureWarning, match=f"^{name} (is|has)") as caught:
        getattr(args, name)
    assert len(caught) == 1


def test_the_folder_of_logs_reads_as_it_did() -> None:
    args = TrainingArguments("out")
    with pytest.warns(FutureWarning):
        folder = args.logging_dir
    assert folder.startswith("out/runs/")
    assert args.logging_dir == folder
    assert args == TrainingArguments("out")


def test_tokens_among_settings(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"api_token": "hf_CANARY", "deep": [{"b_token": "hf_CANARY"}]}
    args = TrainingArguments("out", lr_scheduler_kwargs=settings)
    args.explain(everything=True)
    assert args.lr_scheduler_kwargs == settings
    said = [str(args), args.to_json_string(), str(args.to_sanitized_dict()), capsys.readouterr().out]
    for options in (
        {"lr_scheduler_kwargs": '{"api_token": "hf_CANARY",}'},
        {"fsdp_config": settings},
        {"parallelism_config": settings},
    ):
        with pytest.raises((OptionError, NotAvailableError)) as caught:
            TrainingArguments("out", **options)
        said.append(str(caught.value))
    assert [text for text in said if "CANARY" in text] == []
    assert args.to_dict()["lr_scheduler_kwargs"]["api_token"] == "<API_TOKEN>"
    again = TrainingArguments("out", lr_scheduler_kwargs=args.to_dict()["lr_scheduler_kwargs"])
    assert again.lr_scheduler_kwargs == {"api_token": None, "deep": [{"b_token": None}]}
