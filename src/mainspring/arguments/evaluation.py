"""When and how to evaluate."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.arguments.enums import IntervalStrategy
from mainspring.arguments.option import non_negative, option, positive, steps_or_share


def _part_of_output(index: int) -> str | None:
    return None if index == -1 or index > 0 else "is neither -1 nor above 0 (part 0 is the loss)"


@dataclass(kw_only=True)
class EvaluationArguments:
    """Evaluation and metrics."""

    eval_strategy: IntervalStrategy | str = option(
        IntervalStrategy.NO, "When to evaluate during training.", choices=IntervalStrategy
    )
    eval_steps: float | None = option(
        None, "Updates between two evaluations; below 1, a share of all; default logging_steps.", check=steps_or_share
    )
    eval_delay: float = option(
        0, "Updates or epochs, by strategy, before the first evaluation.", check=non_negative, none=0
    )
    eval_on_start: bool = option(False, "Evaluate before the first update.")
    eval_accumulation_steps: int | None = option(
        None, "Batches after which gathered outputs are moved to the host.", check=positive
    )
    prediction_loss_only: bool = option(False, "Evaluations return the loss only.")
    eval_do_concat_batches: bool = option(True, "Join the outputs of all batches; False keeps a list of them.")
    eval_use_gather_object: bool = option(False, "Gather outputs that are no tensors.")
    include_for_metrics: list[str] = option(
        default_factory=list, help="What compute_metrics gets besides predictions and labels: inputs, loss."
    )
    batch_eval_metrics: bool = option(False, "Call compute_metrics for every batch.")
    past_index: int = option(
        -1,
        "Part of the output, the loss being part 0, that is given to the next batch as `mems`; -1: none.",
        check=_part_of_output,
    )
    label_names: list[str] | None = option(None, "Keys of the batch that are labels; default: by the model's forward.")
