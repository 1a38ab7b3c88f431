"""The checkpoint on disk is the reference's: the same files, the same state, and a run goes on in the other library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mainspring.checkpoint import reseal
from tests.helpers.data import Items, collate_text, points, ragged_text
from tests.helpers.models import Regressor, tiny_gpt2
from tests.helpers.sides import REFERENCE, SUBJECT, Side

# The only differences: arguments as JSON instead of a pickle, and what is resumable beyond the reference's files.
DROPPED = set() if SUBJECT.is_reference else {"training_args.bin"}
ADDED = set() if SUBJECT.is_reference else {"training_args.json"}
ADDED_TO_CHECKPOINTS = ADDED if SUBJECT.is_reference else {*ADDED, "progress.json", "manifest.json"}

OWN = Side("mainspring", "mainspring")
"""Ours with its own defaults, for what the reference does not promise at all."""

CLOCKS = ("runtime", "per_second", "preparation_time", "wait_fraction")
BATCHES = 5


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def lora() -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny_gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))


@dataclass(frozen=True)
class Run:
    """A short training: what it trains, and on what."""

    model: Callable[[], Any]
    text: bool = True
    tokenizer: bool = False

    def trainer(self, side: Side, folder: Path, trainer_class: Any = None, /, **options: Any) -> Any:
        defaults = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
        arguments = side.arguments(folder, **{**defaults, **options})
        torch.manual_seed(0)
        inputs: dict[str, Any] = {"model": self.model()}
        if self.text:
            inputs |= {"train_dataset": Items(ragged_text(4 * BATCHES)), "data_collator": collate_text}
        else:
            inputs |= {"train_dataset": Items(points(4 * BATCHES))}
        if self.tokenizer:
            inputs["processing_class"] = tokenizer()
        return (trainer_class or side.api.Trainer)(args=arguments, **inputs)


PRETRAINED = Run(lambda: tiny_gpt2(dropout=0.1))
PLAIN = Run(lambda: Regressor(dropout=0.1), text=False)
RUNS = {
    "pretrained": PRETRAINED,
    "plain": PLAIN,
    "tokenizer": Run(tiny_gpt2, tokenizer=True),
    "adapter": Run(lora),
}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def without_clocks(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if not key.endswith(CLOCKS)} for entry in logs]


def shape_of(value: Any) -> Any:
    """What a saved object is made of: keys, types and tensor shapes, without the numbers."""
    if isinstance(value, Mapping):
        return {key: shape_of(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(shape_of(entry) for entry in value[:4])]
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    return type(value).__name__


# ---- files ----


@pytest.mark.parametrize("options", [{}, {"save_only_model": True}], ids=["whole", "model only"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_checkpoint_has_the_references_files(tmp_path: Path, run: Run, options: dict[str, Any]) -> None:
    for side, name in ((REFERENCE, "theirs"), (SUBJECT, "ours")):
        run.trainer(side, tmp_path / name, **options).train()
    theirs, ours = files(tmp_path / "theirs/checkpoint-3"), files(tmp_path / "ours/checkpoint-3")
    assert ours == theirs - DROPPED | ADDED_TO_CHECKPOINTS
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"checkpoint-3"}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_saved_model_has_the_references_files(tmp_path: Path, run: Run) -> None:
    for side, name in ((REFERENCE, "theirs"), (SUBJECT, "ours")):
        trainer = run.trainer(side, tmp_path / name)
        trainer.save_model()
        trainer.save_state()
    assert files(tmp_path / "ours") == files(tmp_path / "theirs") - DROPPED | ADDED


def test_checkpoints_open_with_from_pretrained(tmp_path: Path) -> None:
    trainer = PRETRAINED.trainer(SUBJECT, tmp_path)
    trainer.train()
    opened = type(trainer.model).from_pretrained(tmp_path / "checkpoint-3")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value), name


def test_the_state_is_written_as_the_reference_writes_it(tmp_path: Path) -> None:
    states = []
    for side, name in ((REFERENCE, "theirs"), (SUBJECT, "ours")):
        PRETRAINED.trainer(side, tmp_path / name).train()
        text = (tmp_path / name / "checkpoint-3/trainer_state.json").read_text()
        state = json.loads(text)
        assert text == json.dumps(state, indent=2, sort_keys=True) + "\n"
        state["log_history"] = without_clocks(state["log_history"])
        states.append(state)
    theirs, ours = states
    assert set(ours) == set(theirs)
    assert ours == theirs


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_saved_states_have_the_references_structure(tmp_path: Path, name: str) -> None:
    shapes = []
    for side, folder in ((REFERENCE, "theirs"), (SUBJECT, "ours")):
        PRETRAINED.trainer(side, tmp_path / folder).train()
        shapes.append(shape_of(torch.load(tmp_path / folder / "checkpoint-3" / name, weights_only=False)))
    assert shapes[1] == shapes[0]


# ---- going on in the other library ----


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"])
@pytest.mark.parametrize(("writer", "reader"), [(REFERENCE, SUBJECT), (SUBJECT, REFERENCE), (SUBJECT, SUBJECT)])
@pytest.mark.parametrize("run", [PRETRAINED, PLAIN], ids=["pretrained", "plain"])
def test_a_run_goes_on_in_the_other_library(
    tmp_path: Path, run: Run, writer: Side, reader: Side, options: dict[str, Any]
) -> None:
    options = {"max_steps": 8, "save_steps": 4, "lr_scheduler_type": "cosine", "warmup_steps": 2, **options}
    uninterrupted = run.trainer(REFERENCE, tmp_path / "whole", **options)
    uninterrupted.train()
    run.trainer(writer, tmp_path / "begun", **options).train()

    resumed = run.trainer(reader, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "begun/checkpoint-4"))

    expected, actual = (without_clocks(trainer.state.log_history) for trainer in (uninterrupted, resumed))
    assert [entry["step"] for entry in actual if "loss" in entry] == list(range(1, 9))
    for before, after in zip(expected, actual, strict=True):
        # train_loss is a mean over the updates of one call of train(): the reference does not carry it over
        assert {**before, "train_loss": None} == {**after, "train_loss": None}
    for name, value in uninterrupted.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_an_adapter_run_goes_on_in_the_other_library(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_steps": 3}
    losses = []
    for writer, reader in ((REFERENCE, SUBJECT), (SUBJECT, REFERENCE)):
        folder = tmp_path / writer.name
        begun = RUNS["adapter"].trainer(writer, folder / "begun", **options)
        begun.train()
        resumed = RUNS["adapter"].trainer(reader, folder / "resumed", **options)
        resumed.train(resume_from_checkpoint=str(folder / "begun/checkpoint-3"))
        for trainer in (begun, resumed):
            losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 6
    assert all(series == losses[0] for series in losses)


# ---- files of others in the folder ----


def test_files_that_a_subclass_puts_into_the_checkpoint_first_stay(tmp_path: Path) -> None:
    class Trainer(SUBJECT.api.Trainer):  # type: ignore[misc]
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}", "extra")
            folder.mkdir(parents=True)
            (folder / "notes.txt").write_text("first")
            super()._save_checkpoint(model, trial)
            (folder / "more.txt").write_text("afterwards")

    PLAIN.trainer(SUBJECT, tmp_path, Trainer).train()
    assert {"extra/notes.txt", "extra/more.txt", "model.safetensors", "trainer_state.json"} <= files(
        tmp_path / "checkpoint-3"
    )


def test_a_save_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    """The reference leaves a half-written folder under the checkpoint's name here."""

    class Trainer(OWN.api.Trainer):  # type: ignore[misc]
        def _save_rng_state(self, output_dir: str) -> None:
            if self.state.global_step == 2:
                raise OSError(28, "No space left on device")
            super()._save_rng_state(output_dir)

    trainer = PLAIN.trainer(OWN, tmp_path, Trainer, save_steps=1, save_failure="raise")
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    resumed = PLAIN.trainer(OWN, tmp_path, save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


# ---- what is not trusted ----


class Malicious:
    """Unpickling it creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.marker,))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_malicious_state_executes_nothing_and_is_refused_by_name(tmp_path: Path, name: str) -> None:
    PLAIN.trainer(OWN, tmp_path, max_steps=6).train()
    torch.save(Malicious(tmp_path / "executed"), tmp_path / "checkpoint-3" / name)
    reseal(tmp_path / "checkpoint-3")  # who can write the file can write the manifest
    with pytest.raises(ValueError, match=rf"{name} was refused, and nothing in it was executed"):
        PLAIN.trainer(OWN, tmp_path, max_steps=6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not (tmp_path / "executed").exists()


def test_pickled_arguments_are_never_opened(tmp_path: Path) -> None:
    PLAIN.trainer(REFERENCE, tmp_path, max_steps=6).train()
    torch.save(Malicious(tmp_path / "executed"), tmp_path / "checkpoint-3/training_args.bin")
    trainer = PLAIN.trainer(OWN, tmp_path / "resumed", max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == 6
    assert not (tmp_path / "executed").exists()


def test_a_broken_checkpoint_is_refused_with_every_reason(tmp_path: Path) -> None:
    PLAIN.trainer(OWN, tmp_path).train()
    weights = tmp_path / "checkpoint-3/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "checkpoint-3/trainer_state.json").unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint-3 was not valid: model\.safetensors has .*trainer_state\.json is missing"
    ):
        PLAIN.trainer(OWN, tmp_path).train(resume_from_checkpoint=True)
