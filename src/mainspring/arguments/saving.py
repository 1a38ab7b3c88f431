"""Checkpoints, the best model, resuming, and the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.arguments.enums import HubStrategy, SaveStrategy
from mainspring.arguments.option import option, steps_or_share


@dataclass(kw_only=True)
class SavingArguments:
    """Saving and resuming."""

    save_strategy: SaveStrategy | str = option(SaveStrategy.STEPS, "When to save.", choices=SaveStrategy)
    save_steps: float = option(500, "Updates between two checkpoints; below 1, a share of all.", check=steps_or_share)
    save_total_limit: int | None = option(None, "Checkpoints to keep; the newest and the best always stay.")
    save_only_model: bool = option(False, "Save nothing that resuming needs.")
    save_on_each_node: bool = option(False, "With several machines, save on each.")
    enable_jit_checkpoint: bool = option(False, "Listen to stop_signals although save_strategy is 'no'.")
    load_best_model_at_end: bool = option(False, "End with the best checkpoint's weights.")
    metric_for_best_model: str | None = option(None, "What best means; default the loss.")
    greater_is_better: bool | None = option(
        None, "Whether a larger metric is better; default: unless its name ends in loss."
    )
    ignore_data_skip: bool = option(False, "A resumed run begins its epoch anew.")
    restore_callback_states_from_checkpoint: bool | None = option(
        None, "Resuming restores the callbacks; default True, and False with compat='5' or '4.37'."
    )
    resume_from_checkpoint: str | None = option(
        None,
        "Checkpoint that train() resumes from, unless told otherwise; True is the newest valid one in output_dir, and 'auto' "
        "the same, or a fresh start where there is none.",
        also=(bool,),
    )


@dataclass(kw_only=True)
class HubArguments:
    """The Hub."""

    push_to_hub: bool = option(False, "Push the model at every save.")
    hub_token: str | None = option(None, "Token; default: the cached one.", secret=True)
    hub_private_repo: bool | None = option(None, "Whether a new repository is private.")
    hub_model_id: str | None = option(None, "Repository.")
    hub_strategy: HubStrategy | str = option(HubStrategy.EVERY_SAVE, "What is pushed, and when.", choices=HubStrategy)
    hub_always_push: bool = option(False, "Push although the last push is under way.")
    hub_revision: str | None = option(None, "Branch.")
