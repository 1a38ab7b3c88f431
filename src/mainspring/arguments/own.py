"""The options that the reference does not have, and what they resolve to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.arguments.option import option


@dataclass(kw_only=True)
class OwnArguments:
    """What only this package has."""

    compat: str = option(
        "none",
        "Whose numbers: none, the right ones; 5, the newest reference's to the letter.",
        choices=("none", "5", "4.37"),
    )
    eval_loss_reduction: str = option(
        "auto",
        "Evaluation loss: token, a mean over label tokens; sample, a mean of batch means; auto, token unless compat.",
        choices=("auto", "token", "sample"),
    )
    resume_log_window: bool | None = option(
        None, "A resumed run goes on with the loss window of its checkpoint; default True, and False with compat='5'."
    )


@dataclass(frozen=True)
class OwnOptions:
    """The resolved values. The defaults are those of a foreign arguments object.

    Attributes:
        eval_loss_reduction: "auto" (by token where the loss is normalised by items), "token" or "sample".
        resume_log_window: Whether the loss window goes on after a resume.
        restore_callback_states: Whether callbacks go on after a resume.
        exact_position: Whether the position in the data is read from the checkpoint, rather than worked out from the
            number of updates.
        finish_short_updates: Whether an update steps when a stream ends inside it, rather than leaving its gradients to
            the next epoch's first update.
        cut_filling: Whether samples that only fill up the last evaluation batch over processes stay out of its loss.
        watch_normalisation: Whether a loss counts as normalised by the items of the whole update only where it really
            used their number, rather than wherever it could have.
        exact_label_count: Whether labels are counted as the model's loss counts them, rather than as its class declares.
    """

    eval_loss_reduction: str = "auto"
    resume_log_window: bool = True
    restore_callback_states: bool = True
    exact_position: bool = True
    finish_short_updates: bool = True
    cut_filling: bool = True
    watch_normalisation: bool = True
    exact_label_count: bool = True


def own_options(args: Any) -> OwnOptions:
    """Resolve our own options of `args`. On arguments that are not ours, only the reference's names are read."""
    ours = isinstance(args, OwnArguments)
    as_reference = ours and args.compat == "5"
    reduction = args.eval_loss_reduction if ours else "auto"
    window = args.resume_log_window if ours else None
    states = getattr(args, "restore_callback_states_from_checkpoint", None)
    if not ours:
        states = states or None  # there, False is only the default
    return OwnOptions(
        eval_loss_reduction="sample" if as_reference and reduction == "auto" else reduction,
        resume_log_window=not as_reference if window is None else window,
        restore_callback_states=not as_reference if states is None else states,
        exact_position=not as_reference,
        finish_short_updates=not as_reference,
        cut_filling=not as_reference,
        watch_normalisation=not as_reference,
        exact_label_count=not as_reference,
    )
