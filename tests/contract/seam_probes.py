"""The probes: one mixin per overridable method and signature. Each notes that it was called and changes something.

They are written as scripts write them, without annotations.
"""

# mypy: ignore-errors

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, SequentialSampler

from tests.helpers import data

MARK = "written_by_the_probe"


class Probe:
    """Base of the probes.

    Attributes:
        hits: Calls of the overridden method, counted on the composed class (a method may be called while constructing).
        changes: Parts of the outcome that must differ from the plain Trainer's.
        setting: The way to run that reaches the method (see `SETTINGS` in `seams.py`).
        first_generation: Whether the signature is 4.37's and the newest reference does not call it so.
    """

    hits: ClassVar[int] = 0
    changes: ClassVar[tuple[str, ...]] = ()
    setting: ClassVar[str] = "train"
    first_generation: ClassVar[bool] = False

    def hit(self) -> None:
        """Note a call."""
        type(self).hits += 1

    def mark(self: Any, folder: str | None = None) -> None:
        """Leave a file in `folder`, the output folder by default."""
        path = Path(folder or self.args.output_dir)
        path.mkdir(parents=True, exist_ok=True)
        (path / MARK).touch()


def _doubled(inputs: Any) -> Any:
    return {**inputs, "x": inputs["x"] * 2}


def _zero(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


# --- the loss and the step -------------------------------------------------------------------------------------------


class ComputeLoss(Probe):
    changes = ("weights", "logs")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.hit()
        outputs = model(**inputs)
        loss = 3 * outputs["loss"]
        return (loss, outputs) if return_outputs else loss


class ComputeLossFirstGeneration(Probe):
    changes = ("weights", "logs")
    first_generation = True

    def compute_loss(self, model, inputs, return_outputs=False):
        self.hit()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return (3 * loss, outputs) if return_outputs else 3 * loss


class TrainingStep(Probe):
    changes = ("weights", "logs")

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.hit()
        return super().training_step(model, _doubled(inputs), num_items_in_batch)


class TrainingStepFirstGeneration(Probe):
    changes = ("weights", "logs")
    first_generation = True

    def training_step(self, model, inputs):
        self.hit()
        return super().training_step(model, _doubled(inputs))


class TrainingStepOwnBody(Probe):
    """A body copied from the documentation: prepare, loss, `accelerator.backward`."""

    changes = ("weights", "logs")

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.hit()
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(2 * loss)
        return loss.detach() / self.args.gradient_accumulation_steps


class PrepareInputs(Probe):
    changes = ("weights", "logs")

    def _prepare_inputs(self, inputs):
        self.hit()
        return super()._prepare_inputs(_doubled(inputs))


class PrepareInput(Probe):
    changes = ("weights", "logs")

    def _prepare_input(self, data):
        self.hit()
        prepared = super()._prepare_input(data)
        return prepared * 2 if isinstance(prepared, torch.Tensor) else prepared


class PrepareContextParallelInputs(Probe):
    changes = ("weights", "logs")

    def _prepare_context_parallel_inputs(self, model, inputs):
        self.hit()
        return super()._prepare_context_parallel_inputs(model, _doubled(inputs))


class ComputeLossContextManager(Probe):
    changes = ("weights", "logs")

    def compute_loss_context_manager(self):
        self.hit()
        return torch.autocast("cpu", dtype=torch.bfloat16)


class AutocastSmartContextManager(Probe):
    changes = ("weights", "logs")

    def autocast_smart_context_manager(self, cache_enabled=True):
        self.hit()
        return torch.autocast("cpu", dtype=torch.bfloat16)


class ClipGradNorm(Probe):
    changes = ("weights", "logs")
    setting = "clip"

    def _clip_grad_norm(self, model):
        self.hit()
        super()._clip_grad_norm(model)
        for parameter in model.parameters():
            parameter.grad.zero_()
        return torch.tensor(42.0)


class GetGradNorm(Probe):
    changes = ("logs",)

    def _get_grad_norm(self, model, grad_norm=None):
        self.hit()
        return 42.0


class GetLearningRate(Probe):
    changes = ("logs",)

    def _get_learning_rate(self):
        self.hit()
        return super()._get_learning_rate() + 1


class GetBatchSamples(Probe):
    changes = ("weights", "logs")

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self.hit()
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        return [_doubled(sample) for sample in samples], count


class GetNumItemsInBatch(Probe):
    changes = ("weights", "logs")
    setting = "counted"

    def _get_num_items_in_batch(self, batch_samples, device):
        self.hit()
        return super()._get_num_items_in_batch(batch_samples, device) * 2


class FloatingPointOps(Probe):
    changes = ("counters",)

    def floating_point_ops(self, inputs):
        self.hit()
        return 1000


class TrackNumInputTokens(Probe):
    changes = ("counters",)

    def _track_num_input_tokens(self, inputs):
        self.hit()
        self.state.num_input_tokens_seen += 5


class StoreFlos(Probe):
    changes = ("counters",)

    def store_flos(self):
        self.hit()
        self.state.total_flos = 7


# --- data ------------------------------------------------------------------------------------------------------------


class GetTrainSampler(Probe):
    changes = ("weights", "logs")

    def _get_train_sampler(self, train_dataset=None):
        self.hit()
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


class GetTrainSamplerFirstGeneration(Probe):
    changes = ("weights", "logs")
    first_generation = True

    def _get_train_sampler(self):
        self.hit()
        super()._get_train_sampler()
        return SequentialSampler(self.train_dataset)


class GetTrainDataloaderPlain(Probe):
    changes = ("weights", "logs")

    def get_train_dataloader(self):
        self.hit()
        return DataLoader(self.train_dataset, batch_size=2, collate_fn=self.data_collator)


class GetTrainDataloaderPrepared(Probe):
    changes = ("weights", "logs")

    def get_train_dataloader(self):
        self.hit()
        loader = DataLoader(self.train_dataset, batch_size=2, shuffle=False, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


class GetEvalDataloader(Probe):
    changes = ("logs",)
    setting = "evaluate"

    def get_eval_dataloader(self, eval_dataset=None):
        self.hit()
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.accelerator.prepare(
            DataLoader(dataset, batch_size=2, collate_fn=lambda b: _doubled(self.data_collator(b)))
        )


class GetTestDataloader(Probe):
    changes = ("output",)
    setting = "predict"

    def get_test_dataloader(self, test_dataset):
        self.hit()
        rows = [test_dataset[index] for index in range(6)]
        return super().get_test_dataloader(data.Items(rows))


class GetDataloader(Probe):
    changes = ("weights", "logs")

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ):
        self.hit()
        return super()._get_dataloader(dataset, description, 2, sampler_fn, is_training, dataloader_key)


class GetEvalSampler(Probe):
    changes = ("logs",)
    setting = "evaluate"

    def _get_eval_sampler(self, eval_dataset):
        self.hit()
        return SequentialSampler(range(4))


class SetSignatureColumnsIfNeeded(Probe):
    changes = ("columns",)

    def _set_signature_columns_if_needed(self):
        self.hit()
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "note"]


class GetCollatorWithRemovedColumns(Probe):
    changes = ("columns",)

    def _get_collator_with_removed_columns(self, data_collator, description=None):
        self.hit()
        return data_collator


class RemoveUnusedColumns(Probe):
    changes = ("columns",)
    setting = "table"

    def _remove_unused_columns(self, dataset, description=None):
        self.hit()
        return dataset


class NumExamples(Probe):
    """What it returns goes into messages and rates only, so being called is what can be seen."""

    def num_examples(self, dataloader):
        self.hit()
        return super().num_examples(dataloader)


class GetTotalTrainBatchSize(Probe):
    """As above."""

    def get_total_train_batch_size(self, args):
        self.hit()
        return super().get_total_train_batch_size(args)


# --- optimizer, schedule, model --------------------------------------------------------------------------------------


class CreateOptimizer(Probe):
    changes = ("weights",)

    def create_optimizer(self, model=None):
        self.hit()
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD((model or self.model).parameters(), lr=1e-3)
        return self.optimizer


class CreateOptimizerFirstGeneration(Probe):
    changes = ("weights",)

    def create_optimizer(self):
        self.hit()
        optimizer = super().create_optimizer()
        optimizer.param_groups[0]["momentum"] = 0.9
        return optimizer


class CreateScheduler(Probe):
    changes = ("weights", "logs")

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.hit()
        optimizer = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
        self._created_lr_scheduler = True
        return self.lr_scheduler


class CreateOptimizerAndScheduler(Probe):
    """4.37's loop asks this method for both; the newest reference asks for each."""

    changes = ("weights", "logs")
    first_generation = True

    def create_optimizer_and_scheduler(self, num_training_steps):
        self.hit()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)


class GetOptimizerClsAndKwargs(Probe):
    changes = ("weights",)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        GetOptimizerClsAndKwargs.hits += 1
        return torch.optim.SGD, {"lr": args.learning_rate, "momentum": 0.9}


class GetDecayParameterNames(Probe):
    changes = ("weights",)
    setting = "decay"

    def get_decay_parameter_names(self, model):
        self.hit()
        return []


class CallModelInit(Probe):
    changes = ("weights", "logs")
    setting = "model_init"

    def call_model_init(self, trial=None):
        self.hit()
        return _zero(super().call_model_init(trial))


class MoveModelToDevice(Probe):
    changes = ("weights", "logs")

    def _move_model_to_device(self, model, device):
        self.hit()
        super()._move_model_to_device(_zero(model), device)


class WrapModel(Probe):
    changes = ("weights", "logs")

    def _wrap_model(self, model, training=True, dataloader=None):
        self.hit()
        return super()._wrap_model(_zero(model), training=training, dataloader=dataloader)


class CreateAcceleratorAndPostprocess(Probe):
    """Runs in the constructor; what it makes is the accelerator itself."""

    def create_accelerator_and_postprocess(self):
        self.hit()
        super().create_accelerator_and_postprocess()


class BuildAcceleratorArgs(Probe):
    """As above."""

    def _build_accelerator_args(self, **kwargs):
        self.hit()
        return super()._build_accelerator_args(**kwargs)


class ValidateArgs(Probe):
    """A subclass adds a check of its own."""

    def _validate_args(self):
        self.hit()
        super()._validate_args()


class HpSearchSetup(Probe):
    """Called by every `train`, with no trial outside a search."""

    def _hp_search_setup(self, trial):
        self.hit()
        super()._hp_search_setup(trial)


# --- evaluation ------------------------------------------------------------------------------------------------------


class PredictionStep(Probe):
    changes = ("logs",)
    setting = "evaluate"

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        self.hit()
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        return loss + 7, logits, labels


class Evaluate(Probe):
    changes = ("counters",)
    setting = "evaluate"

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self.hit()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return {**metrics, "eval_loss": -1.0}


class EvaluationLoop(Probe):
    changes = ("logs",)
    setting = "evaluate"

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self.hit()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        return output._replace(metrics={**output.metrics, f"{metric_key_prefix}_extra": 1.0})


class EvaluateInTraining(Probe):
    changes = ("logs",)
    setting = "evaluate"

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
        self.hit()
        return {"eval_loss": 0.0}


class DetermineBestMetric(Probe):
    changes = ("counters",)
    setting = "evaluate"

    def _determine_best_metric(self, metrics, trial):
        self.hit()
        self.state.best_metric = -1.0
        return False


# --- the run ---------------------------------------------------------------------------------------------------------


class Log(Probe):
    changes = ("logs",)

    def log(self, logs, start_time=None):
        self.hit()
        super().log({**logs, "extra": 1.0}, start_time)


class LogFirstGeneration(Probe):
    changes = ("logs",)
    first_generation = True

    def log(self, logs):
        self.hit()
        super().log({**logs, "extra": 1.0})


class InnerTrainingLoop(Probe):
    changes = ("output",)

    def _inner_training_loop(
        self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None
    ):
        self.hit()
        output = super()._inner_training_loop(
            batch_size=batch_size,
            args=args,
            resume_from_checkpoint=resume_from_checkpoint,
            trial=trial,
            ignore_keys_for_eval=ignore_keys_for_eval,
        )
        return output._replace(training_loss=42.0)


class MaybeLogSaveEvaluate(Probe):
    changes = ("logs",)

    def _maybe_log_save_evaluate(
        self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None
    ):
        self.hit()
        self.control.should_log = False
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
        )


class SetInitialTrainingValues(Probe):
    changes = ("weights", "logs", "counters")

    def set_initial_training_values(self, args, dataloader):
        self.hit()
        *values, max_steps = super().set_initial_training_values(args, dataloader)
        return (*values, max_steps - 2)


class InitTrainingState(Probe):
    changes = ("weights", "logs")

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        self.hit()
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        return 1, 0


class PrepareForTraining(Probe):
    changes = ("weights", "logs")

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        self.hit()
        model, loader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        _zero(model)
        return model, loader


class RunEpoch(Probe):
    changes = ("weights", "logs")

    def _run_epoch(self, model, epoch, **kwargs):
        self.hit()
        super()._run_epoch(model=_zero(model), epoch=epoch, **kwargs)


class FinalizeTraining(Probe):
    changes = ("output",)

    def _finalize_training(self, trial, num_train_samples, start_time):
        self.hit()
        return super()._finalize_training(trial, num_train_samples, start_time)._replace(training_loss=42.0)


# --- saving and resuming ---------------------------------------------------------------------------------------------


class SaveCheckpoint(Probe):
    changes = ("files",)
    setting = "save"

    def _save_checkpoint(self, model, trial):
        self.hit()
        super()._save_checkpoint(model, trial)
        self.mark()


class SaveCheckpointFirstGeneration(Probe):
    changes = ("files",)
    setting = "save"
    first_generation = True

    def _save_checkpoint(self, model, trial, metrics=None):
        self.hit()
        super()._save_checkpoint(model, trial, metrics=metrics)
        self.mark()


class SaveModel(Probe):
    changes = ("files",)
    setting = "save"

    def save_model(self, output_dir=None, _internal_call=False):
        self.hit()
        super().save_model(output_dir, _internal_call=_internal_call)
        self.mark(output_dir)


class Save(Probe):
    changes = ("files",)
    setting = "save"

    def _save(self, output_dir=None, state_dict=None):
        self.hit()
        super()._save(output_dir, state_dict=state_dict)
        self.mark(output_dir)


class SaveRngState(Probe):
    changes = ("files",)
    setting = "save"

    def _save_rng_state(self, output_dir):
        self.hit()
        super()._save_rng_state(output_dir)
        self.mark(output_dir)


class SaveOptimizerAndScheduler(Probe):
    changes = ("files",)
    setting = "save"

    def _save_optimizer_and_scheduler(self, output_dir):
        self.hit()
        super()._save_optimizer_and_scheduler(output_dir)
        self.mark(output_dir)


class SaveScaler(Probe):
    changes = ("files",)
    setting = "save"

    def _save_scaler(self, output_dir):
        self.hit()
        super()._save_scaler(output_dir)
        self.mark(output_dir)


class GetOutputDir(Probe):
    changes = ("files",)
    setting = "save"

    def _get_output_dir(self, trial):
        self.hit()
        return str(Path(super()._get_output_dir(trial)) / "run-probe")


class LoadFromCheckpoint(Probe):
    changes = ("weights",)
    setting = "resume"

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.hit()


class LoadOptimizerAndScheduler(Probe):
    changes = ("weights", "logs")
    setting = "resume"

    def _load_optimizer_and_scheduler(self, checkpoint):
        self.hit()


class LoadRngState(Probe):
    changes = ("weights",)
    setting = "resume"

    def _load_rng_state(self, checkpoint):
        self.hit()


class LoadScaler(Probe):
    """Without a scaler there is nothing to load."""

    setting = "resume"

    def _load_scaler(self, checkpoint):
        self.hit()
        super()._load_scaler(checkpoint)


class LoadCallbackState(Probe):
    """Called by every resume; it restores nothing unless asked to."""

    setting = "resume"

    def _load_callback_state(self):
        self.hit()
        super()._load_callback_state()


class IssueWarningsAfterLoad(Probe):
    """Told which keys were missing or left over."""

    setting = "resume"

    def _issue_warnings_after_load(self, load_result):
        self.hit()
        super()._issue_warnings_after_load(load_result)


class LoadBestModel(Probe):
    changes = ("weights",)
    setting = "best"

    def _load_best_model(self):
        self.hit()
        _zero(self.model)


PROBES: tuple[type[Probe], ...] = tuple(Probe.__subclasses__())
