"""Leaving out what a model does not take, before samples are made into a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mainspring.data.columns import ignored_columns_message, nothing_left


class RemoveColumnsCollator:
    """Leave out the entries of mapping samples that the model does not take, then collate.

    Args:
        data_collator: Collates what is left.
        signature_columns: The entries to keep.
        logger: Told once which entries are left out; needs ``model_name``.
        model_name: For the messages.
        description: Which set this is, such as ``"training"``; for the messages.

    Raises:
        ValueError: When called, if nothing is left of a sample.
    """

    def __init__(
        self,
        data_collator: Callable[[list[Any]], Any],
        signature_columns: Sequence[str],
        logger: Any = None,
        model_name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.data_collator = data_collator
        self.signature_columns = signature_columns
        self.logger = logger
        self.model_name = model_name
        self.description = description
        self.message_logged = False

    def __call__(self, features: list[Any]) -> Any:
        """Collate the reduced samples; samples that are no dicts pass as they are."""
        kept = frozenset(self.signature_columns)
        return self.data_collator([self._reduced(feature, kept) for feature in features])

    def _reduced(self, feature: Any, kept: frozenset[str]) -> Any:
        if not isinstance(feature, dict) or feature.keys() <= kept:
            return feature
        reduced = {key: value for key, value in feature.items() if key in kept}
        ignored = [key for key in feature if key not in kept]
        if not reduced:
            raise nothing_left(ignored, self.signature_columns, self.model_name or "the model", self.description)
        self._tell_once(ignored)
        return reduced

    def _tell_once(self, ignored: list[str]) -> None:
        if self.logger and self.model_name and not self.message_logged:
            self.message_logged = True
            self.logger.info(ignored_columns_message(ignored, self.model_name, self.description))
