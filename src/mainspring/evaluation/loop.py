"""The evaluation loop: every batch through the model, once, and what is made of the outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mainspring.callbacks.ema import AveragesOfRun
from mainspring.evaluation.batches import Batch, padded_over_processes, rows_marked
from mainspring.evaluation.kept import Kept, Outputs, Shelf, Transfer
from mainspring.evaluation.losses import losses_of
from mainspring.evaluation.metric import metric_of
from mainspring.metrics import EvalLoopOutput, denumpify_detensorize, find_batch_size, has_length
from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    from torch import nn

    from mainspring.trainer import Trainer

logger = get_logger(__name__)


class EvaluationLoop:
    """One pass over an evaluation loader.

    Args:
        trainer: Its overridable methods are what is called.
        loader: The batches.
        loss_only: Whether the loss is all that is wanted.
        ignore_keys: Keys of the model's output to leave out.
        for_result: Whether the caller is given the predictions.
        shelf: Where they are kept.
    """

    def __init__(
        self,
        trainer: Trainer,
        loader: Any,
        loss_only: bool,
        ignore_keys: list[str] | None,
        for_result: bool,
        shelf: Shelf,
    ) -> None:
        self.trainer = trainer
        self.args = trainer.args
        self.loader = loader
        self.loss_only = loss_only
        self.ignore_keys = ignore_keys
        self.observed = 0
        self._knows_all_rows = True  # those of all processes, in every batch
        self.metric = metric_of(trainer)
        self.losses = losses_of(trainer)
        self.kept = Kept(shelf, self.args.eval_do_concat_batches, _length(loader))
        receivers: list[Any] = [self.kept] if for_result or self.metric.needs_arrays else []
        self.keeps = bool(receivers) or trainer._output is not None
        if trainer._output is not None:
            receivers += trainer._output.receivers()
        self.transfer = Transfer(receivers, self.args.eval_accumulation_steps)

    def run(self, model: nn.Module) -> None:
        """Go through the batches."""
        engine = self.trainer._engine
        for inputs, rows in engine.evaluation_batches(self.loader):
            held = find_batch_size(inputs) or 0
            self.observed += held if rows is None else sum(rows)
            self._knows_all_rows &= rows is not None or engine.world_size == 1
            self._one_batch(model, inputs, held, self._counted(rows, held))
            self.trainer._fire("on_prediction_step")
            self.trainer._heed_stop_in_evaluation()
        self.transfer.to_host()

    def _counted(self, rows: list[int] | None, held: int) -> int:
        """How many of this process's rows are no filling."""
        rank = self.trainer._engine.data_rank
        if rows is not None:
            return rows[rank]
        state = self.trainer.accelerator.gradient_state
        left = int(state.remainder) if state.end_of_dataloader else 0
        return min(max(left - rank * held, 0), held) if left > 0 else held

    def _one_batch(self, model: nn.Module, inputs: Any, held: int, counted: int) -> None:
        trainer, wanted = self.trainer, self.args.include_for_metrics
        trainer._eval_items = None
        loss, logits, labels = trainer.prediction_step(model, inputs, self.loss_only, ignore_keys=self.ignore_keys)
        if loss is not None:
            self.losses.add(loss, held, counted)
        outputs = Outputs(
            predictions=logits,
            labels=labels,
            inputs=self._main_input(inputs) if "inputs" in wanted else None,
            losses=loss.repeat(held or 1) if loss is not None and "loss" in wanted else None,
        )
        batch = Batch(trainer, self._made_ready(outputs, held), held, counted)
        self.metric.take(batch)
        if self.keeps and not (logits is None and labels is None):
            self.transfer.add(batch.gathered)

    def _made_ready(self, outputs: Outputs, held: int) -> Outputs:
        """What can be gathered, and is what the user's function makes of it."""
        trainer = self.trainer
        if self.args.eval_use_gather_object:
            outputs = Outputs(*(rows_marked(value, held) for value in outputs))
        predictions, labels, inputs, losses = outputs
        if self.keeps or self.metric.needs_gathered:
            predictions, labels, inputs = (padded_over_processes(trainer, value) for value in outputs[:3])
        if predictions is not None and trainer.preprocess_logits_for_metrics is not None:
            predictions = trainer.preprocess_logits_for_metrics(predictions, labels)
        return Outputs(predictions, labels, inputs, losses)

    def _main_input(self, inputs: Any) -> Any:
        name = getattr(self.trainer.model, "main_input_name", "input_ids")
        if name not in inputs:
            raise ValueError(
                f"include_for_metrics=['inputs']: the batch has no {name!r}, only {', '.join(inputs)}; set "
                "main_input_name on the model class"
            )
        return self.trainer._prepare_input(inputs[name])

    def finish(self, prefix: str) -> EvalLoopOutput:
        """Compute the metrics and hand out the arrays."""
        arrays = self.kept.arrays()
        metrics = denumpify_detensorize(self.metric.of_all(arrays))
        if (loss := self.losses.mean()) is not None:
            metrics[f"{prefix}_loss"] = loss
        if self.trainer._preparation_time is not None:
            metrics[f"{prefix}_model_preparation_time"] = self.trainer._preparation_time
        metrics = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in metrics.items()}
        return EvalLoopOutput(arrays.predictions, arrays.labels, metrics, self._num_samples())

    def _num_samples(self) -> int:
        if self._knows_all_rows:
            return self.observed
        known = _length(self.loader)
        if known is None and has_length(self.loader):
            known = self.trainer.num_examples(self.loader)
        return known or self.observed


def evaluation_loop(
    trainer: Trainer,
    loader: Any,
    description: str,
    prediction_loss_only: bool | None,
    ignore_keys: list[str] | None,
    prefix: str,
) -> EvalLoopOutput:
    """Run the model over `loader` and return predictions, labels and metrics. Works with and without labels."""
    args = trainer.args
    loss_only = args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
    model = trainer._model_for_evaluation()
    _announce(trainer, loader, description)
    model.eval()
    if callable(getattr(trainer.optimizer, "eval", None)):
        trainer.optimizer.eval()  # schedule-free optimizers swap in averaged weights
    trainer.callback_handler.eval_dataloader = loader
    phase = f"{description.lower()} after update {trainer.state.global_step}"
    engine, memory = trainer._engine, trainer._evaluation_memory()
    averages = AveragesOfRun(trainer.callback_handler.callbacks)
    with engine.during(phase), trainer._recurrence.apart(), averages.evaluated(), Shelf(memory) as shelf:
        evaluation = EvaluationLoop(trainer, loader, loss_only, ignore_keys, _for_result(trainer, description), shelf)
        evaluation.run(model)
        return evaluation.finish(prefix)


def _for_result(trainer: Trainer, description: str) -> bool:
    """Whether predictions are kept because they are the result: of a prediction, unless it is written to a file.

    An evaluation without any metric keeps them as well: whoever asks for its predictions has no other use for them.
    """
    if description == "Prediction":
        return trainer._output is None
    return trainer.compute_metrics is None


def _announce(trainer: Trainer, loader: Any, description: str) -> None:
    samples = trainer.num_examples(loader) if has_length(loader) else "unknown"
    logger.info("%s: %s examples, batch size %d", description, samples, trainer.args.eval_batch_size)


def _length(loader: Any) -> int | None:
    """Samples of the loader's data, where they are known."""
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if has_length(dataset) else None
