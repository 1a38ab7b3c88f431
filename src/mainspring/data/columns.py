"""Leaving out the columns that a model does not take."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "label_ids")
"""Columns that collators rename to ``labels``: kept for every model, though its forward has no such argument."""


def is_table(dataset: object) -> bool:
    """Whether ``dataset`` is a ``datasets.Dataset`` whose columns can be removed before it is read.

    That is not so where a transform makes the samples: it takes columns that the model does not, and gives others.
    """
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


def remove_unused_columns(
    dataset: Any, signature_columns: Sequence[str], model_name: str, description: str | None = None
) -> Any:
    """A ``datasets.Dataset`` without the columns that are no argument of the model; anything else as it is.

    Args:
        dataset: The dataset.
        signature_columns: Arguments of the model's forward, and the names of the labels.
        model_name: For the log.
        description: Which set this is, such as ``"training"``; for the log.

    Raises:
        ValueError: If no column is left.
    """
    if not is_table(dataset):
        return dataset
    ignored = [name for name in dataset.column_names if name not in set(signature_columns)]
    if not ignored:
        return dataset
    if len(ignored) == len(dataset.column_names):
        raise nothing_left(ignored, signature_columns, model_name, description)
    logger.info("%s", ignored_columns_message(ignored, model_name, description))
    return dataset.remove_columns(ignored)


def ignored_columns_message(ignored: Iterable[str], model_name: str, description: str | None) -> str:
    """Say which columns of which set are not passed on."""
    where = f"{description} set" if description else "dataset"
    return f"Columns of the {where} left out because {model_name}.forward does not take them: {', '.join(ignored)}."


def nothing_left(
    ignored: Collection[str], signature_columns: Iterable[str], model_name: str, description: str | None
) -> ValueError:
    """The error for data of which no column reaches the model."""
    where = f"{description} set" if description else "dataset"
    taken = [name for name in signature_columns if name not in LABEL_COLUMNS]
    return ValueError(
        f"remove_unused_columns=True leaves no column of the {where}: it has {', '.join(map(str, ignored))}, but "
        f"{model_name}.forward takes {', '.join(taken) or 'no argument'}; "
        "rename the columns or set remove_unused_columns=False"
    )
