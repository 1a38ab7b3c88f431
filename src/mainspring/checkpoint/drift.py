"""What changed between a checkpoint and the run that resumes from it, and what becomes of each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mainspring.errors import Problem

RESCALED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "max_tokens_per_batch",
    "pack_length",
)
"""The size of an update: the position in the data and the schedule are kept in samples."""

KEPT = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
"""What the optimizer's state carries: the checkpoint's value goes on."""

ORDER = (
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "num_examples",
    "dataloader_drop_last",
    "pack_sequences",
)
"""What decides which samples an epoch has left: a place inside an epoch means nothing once it has changed."""

OPTIMIZER = ("optim", "optim_target_modules")
"""The state of one optimizer is none for another."""

IRRELEVANT = frozenset(
    {"output_dir", "resume_from_checkpoint", "local_rank", "run_name", "logging_dir", "disable_tqdm"}
)
"""Options that every start of a run may set anew."""


@dataclass(frozen=True)
class Change:
    """An option, or a fact of the run, with its value in the checkpoint and its value now."""

    name: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.saved!r} in the checkpoint, {self.now!r} now"


@dataclass(frozen=True)
class Drift:
    """The changes, by what becomes of them.

    Attributes:
        safe: Take effect from here on.
        rescaled: Change the size of an update; the position and the schedule go on by samples.
        kept: Have no effect: the checkpoint's value goes on.
        refused: Cannot be, each with its reason and a way out.
        versions: Of Python and packages: results may differ in their last bits.
    """

    safe: list[Change] = field(default_factory=list)
    rescaled: list[Change] = field(default_factory=list)
    kept: list[Change] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)
    versions: list[Change] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """What users are told of the changes that are not refused, in a sentence each or for a class of them."""
        told = [f"{change}: the optimizer's state goes on with the checkpoint's value" for change in self.kept]
        told += [f"{change}: the position in the data is kept in samples" for change in self.rescaled]
        if self.safe:
            told.append(f"changed since the checkpoint was written, and in effect from here on: {_listed(self.safe)}")
        if self.versions:
            told.append(
                f"other versions than the checkpoint was written with: {_listed(self.versions)}. The run goes on, but not "
                f"to the bit as it would have with those"
            )
        return told


def drift(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    inside_epoch: bool,
    versions: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> Drift:
    """Sort what differs between two sets of options and facts.

    Args:
        saved: Those of the checkpoint. What it does not know is not compared.
        now: Those of this run.
        inside_epoch: Whether the run goes on inside an epoch, rather than with a new one.
        versions: Those of Python and packages that wrote the checkpoint, and those of now; of packages in both.
    """
    found = Drift(versions=_changes(*versions))
    for change in _changes(saved, now):
        name = change.name
        if name == "optim" and _without_way(change.saved) == _without_way(change.now):
            found.safe.append(change)
        elif name == "lr_groups":
            if list(change.saved or ()) == list(change.now or ()):  # their order is that of the groups
                found.kept.append(change)
            else:
                found.refused.append(_other_optimizer(change))
        elif name in RESCALED:
            found.rescaled.append(change)
        elif name in KEPT:
            found.kept.append(change)
        elif name in ORDER and inside_epoch:
            found.refused.append(_lost_place(change))
        elif name in OPTIMIZER:
            found.refused.append(_other_optimizer(change))
        else:
            found.safe.append(change)
    return found


def _changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    names = sorted(saved.keys() & now.keys() - IRRELEVANT)
    return [Change(name, saved[name], now[name]) for name in names if saved[name] != now[name]]


def _without_way(optim: object) -> str:
    """An optimizer's name without the word for its way of acting: inside the backward pass its states are the same."""
    return str(optim).removesuffix("_layerwise")


def _listed(changes: list[Change]) -> str:
    return "; ".join(map(str, changes))


def _lost_place(change: Change) -> Problem:
    return Problem(
        change.name,
        change.now,
        f"it is {change.saved!r} in the checkpoint, which was written inside an epoch: its place in the data means nothing "
        "in another order",
        "give the former value, or ignore_data_skip=True to begin the epoch anew",
    )


def _other_optimizer(change: Change) -> Problem:
    return Problem(
        change.name,
        change.now,
        f"it is {change.saved!r} in the checkpoint, whose optimizer state does not fit",
        "give the former value, or train a model loaded from the checkpoint as a new run",
    )
