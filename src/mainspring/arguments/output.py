"""Where a run writes, how long it is, and how large its batches are."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.arguments.option import file_name, finite, option, positive


@dataclass
class OutputFolder:
    """Output, duration, batch."""

    # Positional for who reads the class, and by what `construction` does. In the generated constructor it is a keyword:
    # a subclass can then add options that have no default. (dataclasses.KW_ONLY would do, were it not that Python 3.10
    # cannot resolve it as an annotation.)
    output_dir: str | None = option(
        None, "Folder of checkpoints and results; default `trainer_output`.", check=file_name, keyword=True
    )


@dataclass(kw_only=True)
class OutputArguments(OutputFolder):
    """Output, duration, batch."""

    do_train: bool = option(False, "For scripts: whether to train.")
    do_eval: bool = option(False, "For scripts: whether to evaluate; set by an eval_strategy.")
    do_predict: bool = option(False, "For scripts: whether to predict.")
    per_device_train_batch_size: int = option(8, "Training samples per device and micro-batch.", check=positive)
    per_device_eval_batch_size: int = option(8, "Evaluation samples per device and batch.", check=positive)
    num_train_epochs: float = option(3.0, "Passes over the data; may be fractional.", check=finite)
    max_steps: int = option(-1, "Number of updates, above the epochs; -1 leaves it to them.")
    gradient_accumulation_steps: int = option(1, "Micro-batches per update.", check=positive)
    average_tokens_across_devices: bool = option(
        True, "Normalise the loss by the label tokens of all devices, not of each alone."
    )
