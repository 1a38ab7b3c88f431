"""Updates of which memory may not hold a whole micro-batch: tried, and made again of the same samples in smaller pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mainspring.loop import UpdateRunner
from mainspring.seeding import restore_rng
from mainspring.splitting import Beginning, extent_of, is_out_of_memory, release_memory
from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = get_logger(__name__)

_FITS, _TOO_LARGE, _HOPELESS = range(3)
"""What processes tell each other of a try."""


class FittingUpdates(UpdateRunner):
    """`run_update` that survives running out of memory.

    Each micro-batch of the loader is learned from in pieces, one after another. Where one of them does not fit, all that
    the update has changed is put back, and it begins anew, in twice as many pieces, of the same samples. Losses and
    counts are noted once it has come about, and callbacks hear of each micro-batch once.

    Several processes first try, each for itself, whether their micro-batches fit, whenever these are larger than any
    before: one that runs out of memory while the others wait for its gradients could not be helped.
    """

    _beginning: Beginning
    _rng_before: dict[str, Any]  # random states at the update's beginning
    _learned: list[tuple[Tensor, Any]]  # losses, and micro-batches, of the try under way
    _parts = 1  # what a mean over a micro-batch is divided by
    _told = 0  # micro-batches of the update that callbacks were told of
    _rows = 0  # of the piece under way
    _error: BaseException | None = None  # what a single row has raised

    def _accumulate(
        self, micro_batches: list[Any], idle: list[Any], num_items: Tensor | int | None, last: int | None
    ) -> bool:
        """As for whole micro-batches, as often as it takes."""
        trainer, done, made = self.trainer, self.done, super()._accumulate
        self._rng_before = trainer._random_states()
        self._beginning = Beginning(self.run.model)
        self._told = 0
        goes_on: list[bool] = []

        def attempt() -> None:
            self._prepare(micro_batches, len(micro_batches) + len(idle))
            self.done = done
            goes_on.append(made(micro_batches, idle, num_items, last))

        if trainer._engine.data_world_size > 1:
            self._try_together(micro_batches, idle, num_items)
            self._make_together(attempt)
        else:
            while not self._fits(attempt):
                self._begin_anew()
                self._halve()
        self._come_about(micro_batches)
        return goes_on[-1]

    # ---- a micro-batch in pieces ----

    def _backward_passes(self, micro_batches: list[Any], count: int) -> int:
        """As for whole micro-batches, times their pieces."""
        whole = super()._backward_passes(micro_batches, count)
        return whole * sum(map(self._pieces_of, micro_batches)) // len(micro_batches) if micro_batches else whole

    def _pieces_of(self, batch: Any) -> int:
        wanted = self.trainer._progress.pieces
        return min(wanted, self.trainer._fit.cutter.rows(batch)) if wanted > 1 else 1

    def _prepare(self, micro_batches: list[Any], count: int) -> None:
        self._learned = []
        self._parts = super()._backward_passes(micro_batches, count)
        self.trainer.current_gradient_accumulation_steps = self._backward_passes(micro_batches, count)

    def _learn(self, model: nn.Module, batch: Any, num_items: Tensor | int | None, closes: bool) -> None:
        trainer, losses = self.trainer, []
        trainer._fit.note_size(math.ceil(trainer._fit.cutter.rows(batch) / self._pieces_of(batch)))
        pieces = trainer._cut(batch, self._pieces_of(batch), self._parts)
        for piece in pieces:
            self._rows = piece.rows
            with (
                trainer._learning_from(None if piece.inputs is batch else piece),
                trainer._engine.accumulate(model, closes and piece is pieces[-1]),
            ):
                losses.append(self._training_step(model, piece.inputs, num_items))
        self._learned.append((sum(losses[1:], losses[0]), batch))

    def _idle(self, model: nn.Module, batch: Any, num_items: Tensor | int | None, closes: bool) -> None:
        """One piece is enough to take part with."""
        pieces = self.trainer._cut(batch, self._pieces_of(batch), self._parts)
        piece = max(pieces, key=lambda one: one.share)
        self._rows = piece.rows
        super()._idle(model, piece.inputs, num_items, closes)

    def _end_substep(self, position: int) -> None:
        """An update that begins anew is not told of twice."""
        if position >= self._told:
            self._told = position + 1
            super()._end_substep(position)

    # ---- when memory runs out ----

    def _fits(self, attempt: Callable[[], None]) -> bool:
        self._error = None
        try:
            attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._rows <= 1:  # kept only then: it holds on to all that the passes have left
                self._error = error
            return False
        return True

    def _begin_anew(self) -> None:
        """Put back what the try has changed."""
        self.trainer._engine.forget_gradients(self.run.model)
        self._beginning.put_back()
        restore_rng(self._rng_before, distributed=self.trainer._is_distributed())
        release_memory()

    def _halve(self) -> None:
        if self._error is not None:
            raise self.trainer._fit.hopeless() from self._error
        self.trainer._progress.pieces *= 2

    def _come_about(self, micro_batches: list[Any]) -> None:
        trainer, fit = self.trainer, self.trainer._fit
        for loss, batch in self._learned:
            self._count(loss, batch)
        self._learned = []
        fit.note_update()
        if fit.is_news(trainer._progress.pieces) and trainer.is_world_process_zero():
            rows = max(map(fit.cutter.rows, micro_batches), default=1)
            logger.warning(
                "memory ran out with micro-batches of %d rows: they are learned from %d rows at a time from update %d on. "
                "An update is made of the same samples as before, in %d backward passes instead of %d",
                rows,
                math.ceil(rows / trainer._progress.pieces),
                trainer.state.global_step + 1,
                trainer.current_gradient_accumulation_steps,
                self._parts,
            )

    # ---- several processes ----

    def _try_together(self, micro_batches: list[Any], idle: list[Any], num_items: Tensor | int | None) -> None:
        """Find pieces that fit in every process, where micro-batches are larger than what was found to fit."""
        engine, fit, model = self.trainer._engine, self.trainer._fit, self.run.model
        said = engine.each(extent_of([*micro_batches, *idle]))
        extent = max(elements for elements, _ in said), max(of_row for _, of_row in said)
        if fit.has_tried(extent):
            return

        def attempt() -> None:
            self._prepare(micro_batches, len(micro_batches) + len(idle))
            with engine.apart(model) as own:
                for batch in micro_batches:
                    self._learn(own, batch, num_items, False)
                for batch in idle:
                    self._idle(own, batch, num_items, False)

        while not self._fits_everywhere(attempt):
            self._halve()
        fit.note(extent)

    def _fits_everywhere(self, attempt: Callable[[], None]) -> bool:
        """Try for oneself, leave no trace of it, and hear how the others fared."""
        fits = self._fits(attempt)
        self._begin_anew()
        failure = _TOO_LARGE if self._error is None else _HOPELESS
        worst = max(answer for (answer,) in self.trainer._engine.each([_FITS if fits else failure]))
        if worst == _HOPELESS and self._error is None:
            raise self.trainer._fit.hopeless(elsewhere=True)
        return worst == _FITS

    def _make_together(self, attempt: Callable[[], None]) -> None:
        try:
            attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self.trainer._fit.unexpected(self.trainer._progress.pieces) from error
