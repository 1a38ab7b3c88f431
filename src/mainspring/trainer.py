"""`Trainer`: every method that users override, each a short body. What they stand on lives in the rooms beside.

The names and signatures are the reference's; helpers of our own are underscored and called from the seams only.
The training loop is in `mainspring.loop`, the evaluation loop in `mainspring.evaluation.loop`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, SequentialSampler

from mainspring import checkpoint as ckpt, evaluation, guarding, loop, model as models
from mainspring.arguments.accelerator_config import settings_of
from mainspring.arguments.enums import ParallelMode, SaveStrategy
from mainspring.arguments.foreign import check_foreign
from mainspring.arguments.measuring import measuring_options
from mainspring.arguments.own import (
    ema_decay,
    evaluation_memory,
    leaves_logits_out,
    optimizer_options,
    own_options,
    packing_options,
    saving_options,
)
from mainspring.arguments.training_arguments import TrainingArguments
from mainspring.callbacks.base import CallbackHandler
from mainspring.callbacks.early_stopping import is_exhausted
from mainspring.callbacks.ema import AveragesOfRun, EMACallback
from mainspring.callbacks.flow import DefaultFlowCallback
from mainspring.callbacks.preemption import StopInsideEvaluation, StopRequests, shield_worker
from mainspring.callbacks.profiling import ProfilerCallback
from mainspring.callbacks.progress import PrinterCallback, ProgressCallback
from mainspring.chunked_loss import LossHead, loss_head
from mainspring.data.collators import DataCollatorWithPadding, RemoveColumnsCollator, default_data_collator
from mainspring.data.columns import is_table, remove_unused_columns
from mainspring.data.epoch_order import EpochOrder
from mainspring.data.foreign_loaders import start_of_epoch
from mainspring.data.grouping import LengthGroupedSampler
from mainspring.data.lengths import Lengths
from mainspring.data.loaders import READERS, LoaderOptions, build_loader
from mainspring.data.orders import BudgetBatches, GroupedOrder, RebalancedBatches, Specification
from mainspring.data.packing import (
    TOKENS,
    PackedOrder,
    Packing,
    check_isolation,
    column_collator,
    layout_for,
    tried_samples,
)
from mainspring.data.padding import PaddingCount, padding_fraction
from mainspring.data.position import batches_from, capture_position, is_own_place
from mainspring.data.random_stream import DataStream
from mainspring.data.samplers import EpochRandomSampler, IterableShard
from mainspring.data.splitting import share_of_batch
from mainspring.data.steady import GlobalOrder
from mainspring.data.uneven import Agreed, UnevenBatches, may_end_apart, most_batches, reads_its_own
from mainspring.engines.choice import check_subjects
from mainspring.errors import OptionError, Problem, did_you_mean
from mainspring.fitting import FittingUpdates
from mainspring.inspection import Inspection
from mainspring.legacy import OlderNames
from mainspring.loss import LabelSmoother, WatchedCount, count_items, loss_of, weights_of
from mainspring.measuring.memory import TrainerMemoryTracker
from mainspring.measuring.optimizer_state import tell_after_first_step
from mainspring.measuring.peaks import format_of, peak_of
from mainspring.measuring.speed import Peak, Speed
from mainspring.measuring.waiting import Loading
from mainspring.metrics import (
    EvalLoopOutput,
    LossWindow,
    PredictionOutput,
    TrainOutput,
    children_of,
    has_length,
    log_metrics,
    metrics_format,
    nested_detach,
    number_of_arguments,
    rebuilt,
    save_metrics,
    speed_metrics,
)
from mainspring.model_features import liger, recompute
from mainspring.numerics import nonfinite_parameters, refuse_nonfinite, refuse_untrainable
from mainspring.optimizers import (
    build_optimizer,
    decay_parameter_names,
    decay_parameter_names_of_4_37,
    into_backward,
    is_optimizer_factory,
    optimizer_class_and_kwargs,
    parameter_groups,
)
from mainspring.optimizers.in_backward import UpdatesInBackward
from mainspring.optimizers.limits import RunOfOptimizer, check_made, check_run
from mainspring.schedulers import check_options, follows_metric, get_scheduler
from mainspring.seams import adapt, takes
from mainspring.seeding import capture_rng, enable_full_determinism, restore_rng, seed_worker, set_seed
from mainspring.splitting import Cutter, Fit, Piece, check_pieces, naming_evaluation_batch
from mainspring.state import (
    Progress,
    TrainerControl,
    TrainerState,
    TrainPlan,
    export_states,
    load_state_dicts,
    plan_training,
    read_object,
    restore_callbacks,
    state_dicts,
)
from mainspring.utils.logging import get_logger, is_progress_bar_enabled, set_verbosity

_LoaderParts = tuple[Any, Callable[..., Any], Sampler[Any] | None]
"""Data, collator, order."""

if TYPE_CHECKING:
    from mainspring.diagnostics.aids import DebuggingAids
    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.engines.base import EngineOptions, SingleProcess

logger = get_logger(__name__)

_SLOW_DISK = 100e6
"""Bytes per second that the first save of a run with `max_time` is expected to be written at."""

_EVALUATION_KEYS = frozenset({"loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"})


class Trainer(Inspection, OlderNames):
    """Train, evaluate and predict with a PyTorch model.

    Args:
        model: The model, any `nn.Module`. Its forward takes the batch as keywords and returns a mapping with `loss`,
            or a tuple that starts with it. Exactly one of `model` and `model_init` is needed.
        args: The options; None stands for `TrainingArguments("tmp_trainer")`. Arguments derived from the reference's
            class are read by its names only.
        data_collator: Makes a batch of a list of samples. Default: padding where `processing_class` is a tokenizer or
            a feature extractor, else stacking.
        train_dataset: Map-style or iterable; without a length, `max_steps` must be set.
        eval_dataset: One data set, or a mapping of names to data sets (metrics are then called `eval_<name>_...`).
        processing_class: Tokenizer or processor; saved with the model.
        model_init: Called for a fresh model at construction and at each `train`; takes nothing, or the trial.
        compute_loss_func: `(outputs, labels, num_items_in_batch=...) -> loss`: a sum over items divided by their
            number, which is that of the whole update.
        compute_metrics: `(EvalPrediction) -> dict`, or a metric that takes the batches as they come: an object with
            `update` and `compute`, such as those of torchmetrics (see `mainspring.evaluation.StreamingMetric`).
        callbacks: Added to the default ones: classes or instances.
        optimizers: `(optimizer, scheduler)`, each may be None.
        optimizer_cls_and_kwargs: Class and keywords of the optimizer, instead of `optim`.
        preprocess_logits_for_metrics: `(logits, labels) -> logits`, per batch, before anything is gathered.
        tokenizer: Older spelling of `processing_class`.

    Attributes:
        model: The model itself, never a wrapper.
        model_wrapped: The outermost wrapper: what forward passes go through.
        args: The options.
        accelerator: An `accelerate.Accelerator` that is true for the engine in use.
        state: What callbacks read; saved with each checkpoint.
        control: The switches that callbacks set.
        callback_handler: Holds the callbacks, and has an `on_*` method for each event.
        optimizer: The optimizer, from `train` on or as given.
        lr_scheduler: The schedule, likewise.
        is_in_train: Whether `train` is running.
        is_model_parallel: Whether the model's layers lie on several devices.
        place_model_on_device: Whether the trainer moves the model to the device.
        label_names: Keys of the batch that are labels.
        can_return_loss: Whether the model's forward has `return_loss=True` as default.
        model_accepts_loss_kwargs: Whether the model takes `num_items_in_batch` and normalises its loss by it.
        current_gradient_accumulation_steps: Micro-batches of the update being made; with `auto_find_batch_size` the
            pieces that they are cut into, where memory does not hold whole ones.
        current_flos: Floating-point operations since they were last added to the state.
        hp_name, hp_search_backend: Set by a hyper-parameter search.

    Raises:
        RuntimeError: Neither `model` nor `model_init`; `optimizers` together with `model_init` or
            `optimizer_cls_and_kwargs`.
        ValueError: An option that cannot work with what was passed; the message names both and the way out.
    """

    model: Any  # an nn.Module; typed so that what user models add to it can be read
    args: Any  # our TrainingArguments, or a foreign class with the reference's names
    loss_is_scaled_for_ga: bool | None = None
    """How a subclass's own loss is scaled: True, normalised over the whole update; False, a mean over its micro-batch;
    None, decided by whether the loss took `num_items_in_batch`."""
    _generates = False  # whether predictions can be generated texts

    # ---- construction ----

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | evaluation.StreamingMetric | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.args = args if args is not None else TrainingArguments(output_dir="tmp_trainer")
        check_foreign(self.args)
        self._memory_tracker = self._track_memory()
        self._own = own_options(self.args)
        self._saving = saving_options(self.args)
        self._settings = settings_of(getattr(self.args, "accelerator_config", None))
        self._packs = packing_options(self.args)
        self._optimizing = optimizer_options(self.args)
        self._cuts = bool(getattr(self.args, "auto_find_batch_size", False))  # micro-batches, where memory runs out
        self._seed()
        self.model = model  # `create_accelerator_and_postprocess` may look at it
        self.create_accelerator_and_postprocess()
        set_verbosity(self.args.get_process_log_level())

        self._take_model(model, model_init)
        self._take_data(train_dataset, eval_dataset, data_collator, _one_processor(processing_class, tokenizer))
        self.compute_loss_func = compute_loss_func
        self.compute_metrics = compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer, self.lr_scheduler = optimizers
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        self._validate_args()

        self._init_bookkeeping()
        self._init_callbacks(callbacks)
        self._make_output_dir()
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            stateful_callbacks=self._exportable(),
        )
        self._fire("on_init_end")
        if getattr(self.model, "config", None) is not None:
            self.model.config.use_cache = self.args.use_cache
        self._memory_tracker.report("init")

    def _track_memory(self) -> TrainerMemoryTracker:
        """What measures memory, in the first process where that is asked for. Construction, its first stage, begins."""
        if self.args.skip_memory_metrics or not self.is_world_process_zero():
            return TrainerMemoryTracker(skip_memory_metrics=True)
        tracker = TrainerMemoryTracker(device=self.args.device)
        tracker.begin("init")
        return tracker

    def _seed(self) -> None:
        if self.args.full_determinism:
            enable_full_determinism(self.args.seed)
        else:
            set_seed(self.args.seed)

    def _take_model(self, model: nn.Module | None, model_init: Callable[..., nn.Module] | None) -> None:
        if model is None and model_init is None:
            raise RuntimeError("Trainer needs a model: pass model=... or model_init=...")
        if model is not None and model_init is not None:
            raise ValueError("Trainer got both model and model_init: pass one of them")
        self.model_init = model_init
        self.model = self.call_model_init() if model is None else model
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model={self.model!r} is not a torch.nn.Module: pass one, or a function as model_init")
        models.refuse_label_argument(self.model)
        self.is_model_parallel = len(models.devices_of_map(self.model)) > 1
        if self.is_model_parallel and self.args.n_gpu > 1:
            self._drive_one_device()
        self.place_model_on_device = self._should_place_model()
        if self.place_model_on_device:
            self._move_model_to_device(self.model, self.args.device)
        self.model_wrapped: nn.Module = self.model
        self._inspect_model()

    def _drive_one_device(self) -> None:
        """The model lies on several GPUs by itself: a batch is not divided among them."""
        if isinstance(self.args, TrainingArguments):
            self.args._drive_one_device()
        else:
            self.args._n_gpu = 1

    def _should_place_model(self) -> bool:
        if self.args.place_model_on_device is not None:
            return bool(self.args.place_model_on_device)
        half_evaluation = self.args.fp16_full_eval or self.args.bf16_full_eval
        quantized = getattr(self.model, "quantization_method", None) == "bitsandbytes"
        pieces = self._engine.replaces_parameters  # which are moved one by one: a device may not hold all of them
        return not (self.is_model_parallel or half_evaluation or quantized or pieces)

    def _inspect_model(self) -> None:
        self.model_accepts_loss_kwargs = models.accepts_loss_kwargs(self.model)
        own_names = self.args.label_names
        self.label_names: list[str] = models.label_names(self.model) if own_names is None else own_names
        self.can_return_loss = models.can_return_loss(self.model)
        self._loss_shifts_labels = models.shifts_labels(self.model, by_declaration=not self._own.exact_label_count)
        self._flop_counter: models.FlopCounter | None = None
        self._normalises: bool | None = None  # whether the loss uses `num_items_in_batch`, once it was seen
        self.label_smoother: LabelSmoother | None = None
        if self.args.label_smoothing_factor == 0:
            return
        if getattr(getattr(self.model, "config", None), "problem_type", None) == "multi_label_classification":
            warnings.warn(
                f"label_smoothing_factor={self.args.label_smoothing_factor} is not used: "
                "labels of a multi-label problem are not classes to smooth between",
                UserWarning,
                stacklevel=4,
            )
        else:
            self.label_smoother = LabelSmoother(epsilon=self.args.label_smoothing_factor)

    def _take_data(
        self, train_dataset: Any, eval_dataset: Any, data_collator: Callable[..., Any] | None, processing_class: Any
    ) -> None:
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class
        if data_collator is None:
            pads = models.is_padding_processor(processing_class)
            data_collator = DataCollatorWithPadding(processing_class) if pads else default_data_collator
        self.data_collator: Callable[..., Any] = data_collator

    def _init_bookkeeping(self) -> None:
        """Every attribute that the trainer keeps between calls, with what it means."""
        self.control = TrainerControl()
        self.is_in_train = False
        self.hp_name: Callable[..., str] | None = None
        self.hp_search_backend: Any = None
        self.hub_model_id: str | None = None
        self.is_deepspeed_enabled = self._engine.joins_optimizer
        self.is_fsdp_enabled = self._engine.is_fsdp
        self.neftune_noise_alpha = self.args.neftune_noise_alpha
        self._features = contextlib.ExitStack()  # ends what `_prepare_model_features` begins
        self.current_flos: float = 0.0
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        self._trial: Any = None
        self._signature_columns: list[str] | None = None  # arguments of the model's forward, found on first use
        self._padding = PaddingCount()  # of the batches since the last log
        self._tokens_waiting: Tensor | int = 0  # input tokens of this process that the state does not have yet
        self._train_batch_size: int = self.args.train_batch_size  # per process
        self._epoch_order: EpochOrder | None = None  # the order behind the loader in training, where it is ours
        self._agreed: Agreed | None = (
            None  # what the processes have for this update, where they may have unequally much
        )
        self._reading: Iterator[Any] = iter(())  # the batches of the epoch under way
        self._updates: type[loop.UpdateRunner] = FittingUpdates if self._cuts else loop.UpdateRunner
        self._piece: Piece | None = None  # of the micro-batch being learned from, where it was cut
        self._update_weight: Tensor | None = (
            None  # labels, or rows, of the update being made, where its parts are weighed
        )
        self._created_lr_scheduler = False  # whether the schedule is ours to make anew at the next `train`
        self._globalstep_last_logged = 0  # update at which the loss window was last emptied
        self._total_loss_scalar = 0.0  # sum of the windows already logged
        self._loss_first_step = 0  # update from which on `_total_loss_scalar` counts
        self._initial_global_step = 0  # update at which this call of `train` began
        self._initial_num_input_tokens_seen = 0
        self._eval_dataloaders: dict[str, Any] = {}  # kept where their workers are persistent
        self._window = LossWindow(self.args.device, self.args.logging_nan_inf_filter)
        self._speed = Speed()
        self._numerics = guarding.no_numerics()  # what counts updates, and decides on them, by their numbers
        self._progress = Progress()
        self._epoch_start: dict[str, Any] | None = None  # random states, where the order of the data follows from them
        self._run: loop.Run | None = None
        self._run_id = ""
        self._schedule_rate = 1.0
        self._evaluated_at: tuple[int, dict[str, float]] = (-1, {})
        self._state_of_save = TrainerState()
        self._best_before_save: str | None = None  # the best checkpoint, should the one being written not come about
        self._saved_step: int | None = None  # update of the newest checkpoint that this run wrote
        self._preparation_time: float | None = None  # of the model, in the evaluation that had to prepare it
        self._cast_to: torch.dtype | None = None  # what an evaluation outside of training made of the weights
        self._output: evaluation.OutputFile | None = None  # where the prediction under way is written to
        self._recurrence = models.Recurrence(getattr(self.args, "past_index", -1))
        self._eval_items: tuple[Any, Any] | None = (
            None  # of the last evaluation loss: its items, and what makes it a sum
        )
        self._log = adapt(self.log, ("logs", "start_time"))
        self._parts: models.Parts | None = None  # of the model in training
        self._loss_seam: tuple[Any, bool] = (None, True)  # the `compute_loss` in use, and whether it takes item counts

    def _init_callbacks(self, callbacks: list[Any] | None) -> None:
        bars = is_progress_bar_enabled() and not self.args.disable_tqdm
        progress = ProgressCallback if bars else PrinterCallback
        decay = ema_decay(self.args)
        averaging = [] if decay is None else [EMACallback(decay)]
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback(self._own.final_events), *(callbacks or []), *averaging],
            self.model,
            self.processing_class,
            self.optimizer,
            self.lr_scheduler,
        )
        self.add_callback(progress)
        if (updates := measuring_options(self.args).profile) is not None:
            self.add_callback(ProfilerCallback(*updates))
        self._averages.check(decay, self._engine.why_no_averages())

    @property
    def _averages(self) -> AveragesOfRun:
        """What the run asks of its `EMACallback`, if it has one."""
        return AveragesOfRun(self.callback_handler.callbacks)

    def _make_output_dir(self) -> None:
        if not self.args.should_save:
            return
        try:
            os.makedirs(self.args.output_dir, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"output_dir={self.args.output_dir!r} cannot be created ({error.strerror}): choose a writable folder"
            ) from error
        if not os.access(self.args.output_dir, os.W_OK | os.X_OK):
            raise ValueError(f"output_dir={self.args.output_dir!r} is not writable: choose another folder")

    def _validate_args(self) -> None:
        """Refuse, before any work, what cannot end well."""
        args = self.args
        if self.optimizer_cls_and_kwargs is not None and self.optimizer is not None:
            raise RuntimeError("optimizers and optimizer_cls_and_kwargs were both given: pass one of them")
        if self.model_init is not None and (self.optimizer is not None or self.lr_scheduler is not None):
            raise RuntimeError(
                "optimizers cannot be combined with model_init, whose models are new at each train(): "
                "override create_optimizer and create_scheduler instead"
            )
        check_subjects(self._engine, self.model, given_optimizer=self.optimizer is not None)
        self._engine.check_given(
            self.optimizer or self.optimizer_cls_and_kwargs, self.lr_scheduler, self._half_of_evaluations()
        )
        self._aids = self._debugging_aids()
        self._loss_head = self._leave_logits_out()
        self._validate_optimizer()
        self._validate_batch_metrics()
        if args.eval_strategy != "no" and self.eval_dataset is None and not _overrides(self, "get_eval_dataloader"):
            raise ValueError(
                f"eval_strategy={str(args.eval_strategy)!r} needs eval_dataset: "
                "pass one to Trainer(...), or set eval_strategy='no'"
            )
        self._validate_data()
        self._validate_metric()
        self._warn_of_what_cannot_act()

    def _validate_optimizer(self) -> None:
        chosen = self.optimizer_cls_and_kwargs
        run = RunOfOptimizer(
            self.args,
            why_not_in_backward=self._engine.why_not_in_backward(),
            scales_loss=self._engine.scales_loss,
            given=self.optimizer is not None,
            chosen=chosen is not None,
            factory=chosen is not None and is_optimizer_factory(chosen[0]),
        )
        check_run(run)
        guarding.check_options(self, run.wanted_in_backward is not None)
        self._validate_pieces(run.wanted_in_backward is not None)
        if run.named is not None and self.train_dataset is not None and not self._makes_own_optimizer():
            with warnings.catch_warnings():  # which come when it is built
                warnings.simplefilter("ignore")
                optimizer_class_and_kwargs(self.args, self.model)
            if self.lr_scheduler is None and not _overrides(self, "create_scheduler"):
                args = self.args
                check_options(args.lr_scheduler_type, args.lr_scheduler_kwargs, args.learning_rate)

    def _validate_pieces(self, in_backward: bool) -> None:
        """Refuse to cut micro-batches, where that is asked for, in runs whose updates cannot be begun anew."""
        if self._cuts:
            remembers = getattr(self.args, "past_index", -1) >= 0
            check_pieces(
                self._engine.why_not_in_pieces(self.model),
                "the optimizer acts inside the backward pass: what it has updated cannot be put back"
                if in_backward
                else None,
                f"past_index={self.args.past_index} hands the next batch what the whole one left"
                if remembers
                else None,
            )

    def _makes_own_optimizer(self) -> bool:
        seams = ("get_optimizer_cls_and_kwargs", "create_optimizer", "create_optimizer_and_scheduler")
        return any(_overrides(self, seam) for seam in seams)

    def _debugging_aids(self) -> DebuggingAids | None:
        """What `debug` asks for; imported only then."""
        if not self.args.debug:
            return None
        from mainspring.diagnostics.aids import DebuggingAids

        return DebuggingAids(self.args.debug, self._engine)

    def _leave_logits_out(self) -> LossHead | None:
        """What computes losses in place of logits, where the options ask for it; None: the model makes logits."""
        if not leaves_logits_out(self.args):
            return None
        wants = "compute_loss_func makes the loss of logits" if self.compute_loss_func is not None else None
        with self._engine.whole(self.model):
            return loss_head(self.model, wants or self._engine.why_logits())

    def _without_logits(self, wanted: bool = True) -> contextlib.AbstractContextManager[None]:
        """The context of a forward pass of which only the loss is wanted."""
        return _NO_CONTEXT if self._loss_head is None or not wanted else self._loss_head.instead_of_logits()

    def _warn_of_what_cannot_act(self) -> None:
        """Options that what was passed beside them leaves without effect."""
        args = self.args
        if args.label_smoothing_factor and self.compute_loss_func is not None:
            _warn(f"label_smoothing_factor={args.label_smoothing_factor} is not used: compute_loss_func makes the loss")
        if getattr(args, "predict_with_generate", False) and not self._generates:
            _warn("predict_with_generate=True is not used: only Seq2SeqTrainer generates")
        if self.optimizer is not None and args.weight_decay:
            _warn(f"weight_decay={args.weight_decay} is not used: optimizers brings its own")
        if self._saving.on_exception and self._engine.world_size > 1:
            _warn("save_on_exception is not used with several processes: the others may be in another update")

    def _validate_data(self) -> None:
        if not callable(self.data_collator):
            raise TypeError(
                f"data_collator={self.data_collator!r} is not callable: pass a function of a list of samples"
            )
        dataset = self.train_dataset
        if dataset is None:
            return
        if not has_length(dataset) and self.args.max_steps <= 0:
            raise ValueError(
                f"max_steps={self.args.max_steps}: train_dataset has no length, so the number of updates is unknown; "
                "set max_steps"
            )
        if has_length(dataset) and len(dataset) == 0:
            raise ValueError("train_dataset is empty: there is nothing to train on")

    def _validate_batch_metrics(self) -> None:
        metric: Any = self.compute_metrics
        if not self.args.batch_eval_metrics or metric is None:
            return
        if evaluation.is_streaming(metric):
            raise ValueError(
                f"batch_eval_metrics=True: {type(metric).__name__} is given every batch anyway, by its `update`; leave "
                "the option out"
            )
        if not takes(metric, "compute_result"):
            raise ValueError(
                "batch_eval_metrics=True needs a compute_metrics(prediction, compute_result) that returns the totals "
                "when compute_result is True"
            )

    def _validate_metric(self) -> None:
        """A metric name that no evaluation can return is refused at once, where that can be known."""
        name = self.args.metric_for_best_model
        needs_metric = self.args.load_best_model_at_end or self.args.save_strategy == SaveStrategy.BEST
        if needs_metric and name is None:
            raise ValueError(
                f"save_strategy={str(self.args.save_strategy)!r} with "
                f"load_best_model_at_end={self.args.load_best_model_at_end} needs metric_for_best_model: set it"
            )
        if name is None or self.args.eval_strategy == "no":
            return
        if any(_overrides(self, seam) for seam in ("evaluate", "evaluation_loop", "log", "_evaluate")):
            return
        prefixes = [f"{key}_" for key in self.eval_dataset] if isinstance(self.eval_dataset, dict) else [""]
        if self.compute_metrics is not None:
            if not name.removeprefix("eval_").startswith(tuple(prefixes)):
                raise ValueError(
                    f"metric_for_best_model={name!r} is of none of the data sets: eval_dataset has several, whose metrics "
                    f"are called {', '.join(f'{prefix}...' for prefix in prefixes)}; choose one of these"
                )
            return
        known = sorted(prefix + key for prefix in prefixes for key in _EVALUATION_KEYS)
        if name.removeprefix("eval_") not in known:
            raise ValueError(
                f"metric_for_best_model={name!r} is not among what evaluation returns without compute_metrics "
                f"({', '.join(known)}): pass compute_metrics, or choose one of these"
            )

    # ---- engine ----

    def create_accelerator_and_postprocess(self) -> None:
        """Create `self.accelerator`, `self.gather_function` and the engine behind them."""
        from mainspring.engines import build_engine
        from mainspring.engines.accelerator import build_accelerator

        if isinstance(self.args, TrainingArguments):
            _ = self.args.distributed_state  # Accelerate's state is one per process: make it this run's
        self.accelerator: MainspringAccelerator = build_accelerator(**self._build_accelerator_args())
        self._engine: SingleProcess = build_engine(self.accelerator, self._engine_options())
        self._engine.exact_rows = self._own.cut_filling
        self._engine.measures_norms = self._own.norms_of_engine
        self._engine.mends_gradients = self._own.gradients_of_engine
        self._engine.sync_each_batch = bool((self._settings.gradient_accumulation_kwargs or {}).get("sync_each_batch"))
        disks = ckpt.DiskPerMachine if self.args.save_on_each_node else ckpt.OneDisk
        self._disk: ckpt.Disk = disks(self._engine, self.args.should_save)
        self._refuse_scattered_shards()
        self._saver = ckpt.Saver(
            self._engine,
            writes=self.args.should_save,
            raises=self._saving.raises,
            in_background=self._saving.in_background,
            disk=self._disk,
        )
        self.gather_function: Callable[..., Any] = self.accelerator.gather_for_metrics
        if self.args.eval_use_gather_object:
            self.gather_function = lambda data: self.accelerator.gather_for_metrics(data, use_gather_object=True)

    def _refuse_scattered_shards(self) -> None:
        if self.args.save_on_each_node and self._engine.replaces_parameters:
            why = "each process holds a part of the weights, and no machine all of them"
            fix = "save on a disk that all machines share, and leave the option out"
            raise OptionError([Problem("save_on_each_node", True, why, fix)])

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Keywords for the accelerator; override to change one."""
        args = self.args
        arguments = {
            "cpu": args.device.type == "cpu",
            "mixed_precision": args.mixed_precision,
            "compile_backend": args.torch_compile_backend if args.torch_compile else None,
            "compile_mode": args.torch_compile_mode,
            "data_seed": args.data_seed,
            "settings": self._settings,
        }
        return {**arguments, **kwargs}

    def _engine_options(self) -> EngineOptions:
        from mainspring.arguments.deepspeed import deepspeed_settings
        from mainspring.arguments.fsdp_config import fsdp_settings
        from mainspring.arguments.parallel_sizes import parallel_sizes
        from mainspring.engines.base import EngineOptions, WrapOptions
        from mainspring.engines.loaded import agreed_sizes

        args = self.args
        deepspeed, sizes = deepspeed_settings(args), parallel_sizes(args)
        ddp = WrapOptions(
            find_unused_parameters=args.ddp_find_unused_parameters,
            bucket_cap_mb=args.ddp_bucket_cap_mb,
            broadcast_buffers=args.ddp_broadcast_buffers,
            static_graph=args.ddp_static_graph,
            comm_hook=getattr(args, "ddp_comm_hook", None),
            # Recomputing activations and searching for unused parameters exclude each other in torch.
            finds_unused=not (args.gradient_checkpointing and self._hides_parameters()),
        )
        return EngineOptions(
            ddp=ddp,
            fsdp=fsdp_settings(args),
            parallelism=agreed_sizes(
                sizes if deepspeed is None else deepspeed.sizes(sizes, args.world_size), self.model
            ),
            deepspeed=deepspeed,
            devices=1 if len(models.devices_of_map(self.model)) > 1 else max(1, args.n_gpu),
            compiles=bool(args.torch_compile),
            packs=self._packs.wanted,
            weighs_parts=self._own.weigh_micro_batches,
        )

    def _hides_parameters(self) -> bool:
        """Whether recomputing keeps parameters out of sight of who searches for unused ones."""
        return models.is_pretrained(self.model) or recompute.is_reentrant(self.args.gradient_checkpointing_kwargs)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """Wrap `model` for the engine in use; a model that is already wrapped comes back as it is."""
        if models.unwrap(model) is not model:
            return model
        # By their numbers: to hold on to the parameters themselves would keep a model whole that is being divided.
        before = set(map(id, model.parameters())) if self._engine.replaces_parameters else set()
        wrapped = self._engine.prepare(model) if training else self._engine.place(model)
        self._refuse_stale_optimizer(before)
        return wrapped

    def _refuse_stale_optimizer(self, before: set[int]) -> None:
        """Refuse an optimizer that was created too early: it would step parameters that the model no longer has."""
        if self.optimizer is None or not before:
            return
        stepped = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        now = {id(parameter) for parameter in self._engine.to_optimize(self.model, self.model_wrapped).parameters()}
        if stepped & before - now:
            raise RuntimeError(
                f"the optimizer was created before the engine {self._engine.kind!r} replaced the model's parameters, and would "
                "step the old ones: leave it to train(), or override create_optimizer, which is called at the right time"
            )

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if getattr(model, "hf_device_map", None) is not None:
            logger.warning("the model already lies on the devices of its device map: it is not moved to %s", device)
            return
        model.to(device)

    @property
    def deepspeed(self) -> Any:
        """DeepSpeed's engine, from `train` on; None where another engine runs the model."""
        return self._engine.deepspeed

    def is_local_process_zero(self) -> bool:
        """Whether this is the first process of its machine."""
        return bool(self.args.local_process_index == 0)

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process of all."""
        return bool(self.args.process_index == 0)

    def get_tp_size(self) -> int:
        """Number of processes that share each layer, by tensor parallelism."""
        return self._engine.size_of("tp")

    def get_cp_size(self) -> int:
        """Number of processes that share each sequence, by context parallelism."""
        return self._engine.size_of("cp")

    def get_sp_size(self) -> int:
        """Number of processes that share each sequence, by sequence parallelism."""
        return self._engine.size_of("sp")

    def end(self) -> None:
        """Leave the process group: the last call of a script, after which no other may need the other processes."""
        self.accelerator.end_training()

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches that this process trains on."""
        if self.train_dataset is None:
            raise ValueError("train() needs train_dataset: pass one to Trainer(...), or override get_train_dataloader")
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=adapt(self._get_train_sampler, ("train_dataset",)),
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The batches of an evaluation.

        Args:
            eval_dataset: A data set; a name among `self.eval_dataset`'s; None for `self.eval_dataset`.
        """
        key = eval_dataset if isinstance(eval_dataset, str) else "eval"
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, str):
            names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
            if eval_dataset not in names:
                hint = did_you_mean(eval_dataset, names)
                raise ValueError(f"eval_dataset={eval_dataset!r} is not one of the named data sets {names}{hint}")
            chosen = self.eval_dataset[eval_dataset]
        if chosen is None:
            raise ValueError("evaluate() needs eval_dataset: pass one here or to Trainer(...)")
        kept = self._eval_dataloaders.get(key)
        if kept is not None and kept[0] is chosen:
            return kept[1]  # type: ignore[no-any-return]
        loader = self._get_dataloader(
            dataset=chosen,
            description="Evaluation",
            batch_size=self.args.eval_batch_size,
            sampler_fn=self._get_eval_sampler,
            dataloader_key=key,
        )
        if self.args.dataloader_persistent_workers:  # the same workers serve the next evaluation
            self._eval_dataloaders[key] = (chosen, loader)
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The batches of a prediction."""
        return self._get_dataloader(
            dataset=test_dataset,
            description="test",
            batch_size=self.args.eval_batch_size,
            sampler_fn=self._get_eval_sampler,
        )

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Sampler[Any] | None] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        """A loader of this process's share of `dataset`, with the columns that the model does not take left out."""
        iterable = isinstance(dataset, IterableDataset)
        if is_training and self._packs.wanted:
            data, collate, sampler = self._packed(dataset, description)
        else:
            if is_training and iterable:
                self._refuse_order_of_stream()
            data, collate, sampler = self._one_by_one(dataset, description, None if iterable else sampler_fn)
        return build_loader(
            data,
            batch_size=batch_size,
            collate_fn=collate,
            sampler=sampler,
            drop_last=self.args.dataloader_drop_last,
            rank=self._engine.data_rank,
            world_size=self._engine.data_world_size,
            options=self._loader_options(),
            seed=self._data_seed(),
            worker_init_fn=self._worker_init(seeds=is_training and not iterable),
            # Training fills up the last round, so that all processes take the same steps; evaluation counts exactly.
            even=self._settings.even_batches and (is_training or not self._own.cut_filling),
            stream=self._data_stream(),
            split=self._settings.split_batches,
            reader=READERS[self._settings.dispatch_batches],
            channel=self._engine.data_channel,
        )

    def _packed(self, dataset: Any, description: str) -> _LoaderParts:
        """The samples by the row, the collator of rows, and their order."""
        packing = self._packing_of(dataset)
        data, collate = self._without_unused_columns(dataset, column_collator(self.data_collator), description)
        return packing.samples(data), packing.collator(collate), packing.order

    def _one_by_one(
        self, dataset: Any, description: str, sampler_fn: Callable[[Any], Sampler[Any] | None] | None
    ) -> _LoaderParts:
        """The samples, their collator, and their order: None for the data's own."""
        data, collate = self._without_unused_columns(dataset, self.data_collator, description)
        if sampler_fn is None:
            return data, collate, None
        # Lengths may stand in a column that the model does not take.
        measured = dataset if self._own.orders_by_seed and is_table(dataset) else data
        return data, collate, sampler_fn(measured)

    def _without_unused_columns(
        self, dataset: Any, collate: Callable[..., Any], description: str
    ) -> tuple[Any, Callable[..., Any]]:
        """Data and collator, of which one leaves out the columns that the model does not take."""
        if is_table(dataset):
            return self._remove_unused_columns(dataset, description=description), collate
        return dataset, self._get_collator_with_removed_columns(collate, description=description)

    def _packing_of(self, dataset: Any) -> Packing:
        """How the training samples share rows. Refused where the data, the model or a subclass cannot have it so."""
        if isinstance(dataset, IterableDataset) or not has_length(dataset):
            self._refuse_packing("train_dataset is a stream, and rows are planned from the lengths of all samples")
        if _overrides(self, "_get_train_sampler"):
            self._refuse_packing("_get_train_sampler is overridden, and packing chooses the order itself")
        layout = layout_for(self.model)
        lengths = Lengths(dataset, self.args.length_column_name, TOKENS, quiet=self.args.disable_tqdm)
        order = PackedOrder(lengths, self._packs.length, self._data_seed())
        with self._engine.whole(self.model):
            check_isolation(self.model, layout, tried_samples(lengths), self.accelerator.autocast())
        return Packing(order, layout)

    def _refuse_packing(self, why: str) -> NoReturn:
        raise OptionError([Problem("pack_sequences", True, why, "leave pack_sequences out")])

    def _refuse_order_of_stream(self) -> None:
        """A stream gives its samples in an order of its own."""
        strategy, why = self._sampling_strategy(), "train_dataset is a stream, whose samples come in its own order"
        if strategy == "token_budget":
            fix = "use train_sampling_strategy='random', and let the stream itself make batches of similar lengths"
            raise OptionError([Problem("train_sampling_strategy", strategy, why, fix)])
        if strategy not in ("random", "sequential"):
            _warn(f"train_sampling_strategy={strategy!r} has no effect: {why}")

    def _loader_options(self) -> LoaderOptions:
        args = self.args
        return LoaderOptions(
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
        )

    def _worker_init(self, seeds: bool) -> Callable[[int], None]:
        num_workers, rank = self.args.dataloader_num_workers, self._engine.data_rank
        return partial(_start_worker, num_workers=num_workers, rank=rank, seeds=seeds)

    def _data_stream(self) -> DataStream | None:
        """What data sets and collators draw from; None leaves them the global generators."""
        engine = self._engine
        return (
            DataStream(self._data_seed(), engine.data_rank, engine.data_world_size)
            if self._own.own_data_stream
            else None
        )

    def _data_seed(self) -> int:
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        """The order of the training samples over all processes; None for data without a length."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if dataset is None or not has_length(dataset):
            return None
        strategy = self._sampling_strategy()
        if strategy == "sequential":
            return SequentialSampler(dataset)
        if strategy != "random":
            return self._order_by_length(strategy, dataset)
        if not self._settings.use_seedable_sampler:
            reads = self._settings.dispatch_batches is not True or self._engine.data_world_size == 1
            return GlobalOrder(dataset, self._engine.share if reads else int)
        return EpochRandomSampler(dataset, seed=self._data_seed())

    def _sampling_strategy(self) -> str:
        """`train_sampling_strategy`, of which `sortish_sampler` is an older spelling."""
        strategy = str(getattr(self.args.train_sampling_strategy, "value", self.args.train_sampling_strategy))
        sortish = self._own.sortish_groups and getattr(self.args, "sortish_sampler", False)
        return "group_by_length" if sortish and strategy == "random" else strategy

    def _order_by_length(self, strategy: str, dataset: Any) -> Sampler[Any]:
        """An order for which every sample's length is known."""
        args, lengths, seed = self.args, self._lengths_of(dataset), self._data_seed()
        known = Specification(
            strategy,
            batch_size=None if strategy == "token_budget" else self._own_batch(self._train_batch_size),
            accumulation=args.gradient_accumulation_steps,
            world_size=self._engine.data_world_size,
            max_tokens=args.max_tokens_per_batch if strategy == "token_budget" else None,
            drop_last=args.dataloader_drop_last,
        )
        if strategy == "token_budget":
            return BudgetBatches(lengths, known, seed)
        if strategy == "batch_rebalance":
            own = self._own.orders_by_seed
            return RebalancedBatches(lengths, known, seed if own else 42, repeats=not own)
        if self._own.orders_by_seed:
            return GroupedOrder(lengths, known, seed)
        return LengthGroupedSampler(known.share_of_update, lengths=lengths.of(0).tolist())

    def _lengths_of(self, dataset: Any) -> Lengths:
        """How long samples are, by the column of the options or by what the model is fed."""
        names = getattr(self.processing_class, "model_input_names", None) or [models.main_input_name(self.model)]
        return Lengths(dataset, self.args.length_column_name, names[0], quiet=self.args.disable_tqdm)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        """The order of an evaluation: as the data lies."""
        if eval_dataset is None or not has_length(eval_dataset):
            return None
        if self._own.grouped_evaluations and self._sampling_strategy() == "group_by_length":
            lengths = self._lengths_of(eval_dataset).of(0).tolist()
            generator = torch.Generator().manual_seed(self._data_seed())
            return LengthGroupedSampler(self.args.eval_batch_size, lengths=lengths, generator=generator)
        return SequentialSampler(eval_dataset)

    def num_examples(self, dataloader: Any) -> int:
        """Samples in `dataloader`; estimated from its length where its data set has none."""
        try:
            dataset = dataloader.dataset
            source: Any = dataset.dataset if isinstance(dataset, IterableShard) else dataset
            return len(source)
        except (AttributeError, TypeError):
            return len(dataloader) * int(self.args.per_device_train_batch_size)

    def _set_signature_columns_if_needed(self) -> None:
        """Note which columns the model's forward takes, labels included, in `_signature_columns`."""
        if self._signature_columns is None:
            self._signature_columns = models.signature_columns(self.model, self.label_names)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """`dataset` (of the datasets library) without the columns that the model does not take."""
        if not self.args.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        return remove_unused_columns(dataset, self._signature_columns, type(self.model).__name__, description)

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[..., Any], description: str | None = None
    ) -> Callable[..., Any]:
        """A collator that leaves out the columns that the model does not take."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        return RemoveColumnsCollator(
            data_collator=data_collator,
            signature_columns=self._signature_columns,
            logger=logger,
            model_name=type(self.model).__name__,
            description=description,
        )

    # ---- optimizer and schedule ----

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Create both, where they were not given."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps=num_training_steps, optimizer=self.optimizer)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create `self.optimizer` where it was not given, and return it."""
        model = self._engine.to_optimize(self.model, self.model_wrapped) if model is None else model
        if self.optimizer is None:
            names = self.get_decay_parameter_names(model)
            groups = parameter_groups(model, names, self.args.weight_decay, self._optimizing.groups)
            grouped = self._own.groups_of_engine or self._optimizing.groups
            of_engine = groups if grouped else [{"params": [p for p in model.parameters() if p.requires_grad]}]
            self.optimizer = self._engine.own_optimizer(of_engine) or self._optimizer_of(model, groups)
        return self.optimizer  # type: ignore[no-any-return]

    def _optimizer_of(self, model: nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer that the options, or what was passed, choose."""
        chosen = self.optimizer_cls_and_kwargs or self._optimizer_choice(model)
        if self._optimizing.in_backward:
            chosen = into_backward(*chosen)
        return build_optimizer(*chosen, model, groups)

    def _optimizer_choice(self, model: nn.Module) -> tuple[Any, dict[str, Any]]:
        return adapt(self.get_optimizer_cls_and_kwargs, ("args", "model"))(self.args, model)  # type: ignore[no-any-return]

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
        """Class and keywords of the optimizer that `args.optim` names."""
        return optimizer_class_and_kwargs(args, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay shrinks: neither biases nor normalisations."""
        return decay_parameter_names(model) if self._own.decay_by_name else decay_parameter_names_of_4_37(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create `self.lr_scheduler` where it was not given, and return it.

        Args:
            num_training_steps: Updates of the whole run.
            optimizer: What it acts on; default `self.optimizer`.
        """
        if self.lr_scheduler is None:
            self.lr_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer=self.optimizer if optimizer is None else optimizer,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
                scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        """The rate in use, of the first parameter group."""
        if follows_metric(self.lr_scheduler):
            rate = self.optimizer.param_groups[0]["lr"]
        else:
            rate = self.lr_scheduler.get_last_lr()[0]
        return float(rate)

    def _step_scheduler(self) -> None:
        """Move the schedule after an update; metric-driven ones move after evaluations instead."""
        if self._engine.step_was_skipped or follows_metric(self.lr_scheduler):
            return
        if self._schedule_rate != 1.0:
            self.lr_scheduler.last_epoch += self._schedule_rate - 1
        self.lr_scheduler.step()

    def get_learning_rates(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [float(group["lr"]) for group in self._existing_optimizer().param_groups]

    def get_num_trainable_parameters(self) -> int:
        """Number of parameters that require a gradient."""
        return models.param_count(self.model, trainable_only=True)

    def get_optimizer_group(self, param: str | nn.Parameter | None = None) -> Any:
        """The parameter group that holds `param`; all groups where it is None."""
        groups = self._existing_optimizer().param_groups
        if param is None:
            return [group["params"] for group in groups]
        return next((group for group in groups if any(param is member for member in group["params"])), None)

    def _existing_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise ValueError("there is no optimizer yet: call create_optimizer() first")
        return self.optimizer  # type: ignore[no-any-return]

    # ---- training ----

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Train.

        Args:
            resume_from_checkpoint: A checkpoint folder; True for the newest in `output_dir`; False to start fresh;
                None for the option of the same name, which is unset by default.
            trial: A hyper-parameter search's trial, or a mapping of its values.
            ignore_keys_for_eval: Output keys that evaluations during training leave out.
            **kwargs: `model_path`, the older spelling of `resume_from_checkpoint`.

        Returns:
            Updates done, mean training loss, and the speed metrics.
        """
        check_foreign(self.args)
        wanted = _resume_argument(resume_from_checkpoint, kwargs)
        with (
            self._engine.session("train()"),
            self._memory_tracker.during("train"),
            contextlib.ExitStack() as until_the_end,
        ):
            checkpoint = self._enter_output_dir(until_the_end, trial, wanted)
            return self._train_from(checkpoint, trial, ignore_keys_for_eval)

    def _enter_output_dir(self, until_the_end: contextlib.ExitStack, trial: Any, wanted: Any) -> str | None:
        """Keep other runs out of the folder, remove what dead ones left, and find what to resume from."""
        run_dir = self._get_output_dir(trial)

        def enter() -> None:
            if self._saves_checkpoints():
                until_the_end.enter_context(ckpt.locked(run_dir))
                ckpt.clean_stages(run_dir)

        ckpt.by_writers(enter, self._engine, self._disk)
        if wanted is None and isinstance(self.args, TrainingArguments):
            wanted = self.args.resume_from_checkpoint
        return ckpt.resolve_together(wanted, run_dir, self._engine, self._disk)

    def _saves_checkpoints(self) -> bool:
        """Whether there may be checkpoints to go on from: at intervals, or when the run is cut short."""
        cut_short = self._saving.max_time_s is not None or self._saving.on_exception or self.args.enable_jit_checkpoint
        return self.args.save_strategy != SaveStrategy.NO or cut_short

    def _by_main_process(self, work: Callable[[], Any]) -> Any:
        """What the main process finds out; its error is everybody's."""
        return ckpt.by_writers(work, self._engine, ckpt.OneDisk(self._engine, self.is_world_process_zero()))

    def _train_from(self, checkpoint: str | None, trial: Any, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        self.is_in_train = True
        try:
            if self.model_init is not None:
                self._new_model(trial)
            self._prepare_model_features()
            self._hp_search_setup(trial)
            if checkpoint is not None and not self._engine.replaces_parameters:
                self._load_from_checkpoint(checkpoint)
            inner = adapt(self._inner_training_loop, _INNER)
            output: TrainOutput = inner(self._train_batch_size, self.args, checkpoint, trial, ignore_keys_for_eval)
            self._tell_of_finished_saves(wait=True)
            return output
        except BaseException:
            self.callback_handler.abandon()
            self._finish_own_saves()
            raise
        finally:
            self._features.close()
            self.is_in_train = False

    def _new_model(self, trial: Any) -> None:
        self._seed()
        self.model = self.call_model_init(trial)
        self.optimizer = self.lr_scheduler = None
        if self.place_model_on_device:
            self._move_model_to_device(self.model, self.args.device)
        self.model_wrapped = self.model
        self._inspect_model()
        self._loss_head = self._leave_logits_out()

    def _prepare_model_features(self) -> None:
        """What the model does differently in training; `_features` puts an end to it."""
        args = self.args
        if args.use_liger_kernel:
            liger.patch(self.model, args.liger_kernel_config, self._engine.device)
        if (args.fp16_full_eval or args.bf16_full_eval) and not self.is_model_parallel and self.model_init is None:
            self._move_model_to_device(self.model, args.device)
            models.tell_of_cast_weights(self.model, self._cast_to)
        if args.gradient_checkpointing:
            end = recompute.start(self.model, args.gradient_checkpointing_kwargs, self._engine.device)
            self._features.callback(end)
        if args.gradient_checkpointing or recompute.is_on(self.model):
            self._engine.check_recomputing()
        models.align_special_tokens(self.model, self.processing_class)
        if self.neftune_noise_alpha is not None:
            self._activate_neftune(self.model)
            self._features.callback(self._deactivate_neftune, self.model)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A fresh model from `model_init`, which takes nothing or the trial."""
        assert self.model_init is not None
        count = number_of_arguments(self.model_init)
        if count > 1:
            raise RuntimeError(f"model_init takes {count} arguments: it should take none, or the trial")
        model = self.model_init() if count == 0 else self.model_init(trial)
        if model is None:
            raise RuntimeError("model_init returned None: it should return a model")
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        self._trial = trial

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Prepare one run and fit it. An override is expected to call this one."""
        args = self.args if args is None else args
        loader = self.get_train_dataloader()
        self._epoch_order = EpochOrder.of(loader)
        plan = self._plan(args, loader)
        first_epoch, skip = self._init_training_state(
            plan.max_steps, plan.num_update_steps_per_epoch, plan.num_train_epochs, resume_from_checkpoint, trial
        )
        plan = self._keep_schedule(plan, first_epoch, skip)
        refuse_untrainable(self.model)
        model, loader = self._prepare_for_training(plan.steps_of_schedule, loader, resume_from_checkpoint)
        refuse_nonfinite(self._engine.every(nonfinite_parameters(self.model.named_parameters())))
        self._run = loop.Run(
            plan=plan,
            model=model,
            loader=loader,
            first_epoch=first_epoch,
            skip=skip,
            start_time=time.time(),
            checkpoint=resume_from_checkpoint,
            trial=trial,
            ignore_keys=ignore_keys_for_eval,
            stops=self._stop_requests(),
            position=self._stored_position(resume_from_checkpoint, loader),
            saves_on_exception=self._saving.on_exception,
            stopped=self._was_stopped(skip),
            grad_norm=self._progress.grad_norm,
            learning_rate=self._progress.learning_rate,
        )
        self._announce(plan)
        self._begin_counting(resume_from_checkpoint)
        model.zero_grad()
        with _NO_CONTEXT if self._aids is None else self._aids.watching(self.model):
            return loop.fit(self, self._run)

    def _stop_requests(self) -> StopRequests:
        """Signals are held back only where there will be a checkpoint to go on from."""
        if not self._saves_checkpoints() or self.args.save_only_model:
            return StopRequests()
        requests = StopRequests(self._saving.stop_signals, self._saving.max_time_s)
        if self._saving.max_time_s is not None:  # no save has been measured yet; weights and two moments of each
            requests.keep_back(3 * ckpt.estimate_bytes(self._engine.tensors_of(self.model)) / _SLOW_DISK)
        return requests

    def _heed_stop_in_evaluation(self) -> None:
        """Leave an evaluation of the training loop between two batches, where the run was asked to stop."""
        run = self._run
        if run is None or run.before_evaluation is None:
            return
        if self._engine.agree(run.stops.wanted()):
            raise StopInsideEvaluation

    def _boundary(self, due: tuple[str, ...] = ()) -> loop.Boundary:
        """This instant, with what is still to be done at it."""
        return loop.Boundary(
            due=due,
            rng=self._random_states(),
            window=self._window.total.clone(),
            total_loss=self._total_loss_scalar,
            logged_at=self._globalstep_last_logged,
            counted=(
                self.current_flos,
                copy.copy(self._tokens_waiting),
                copy.copy(self._padding),
                self._numerics.counts.kept(),
            ),
            state=copy.copy(self.state),
            logs=len(self.state.log_history),
            callbacks=export_states(self._exportable()),
        )

    def _return_to(self, boundary: loop.Boundary) -> None:
        """Take back what happened since; a run resumed from a checkpoint written now does it again."""
        restore_rng(boundary.rng, distributed=self._is_distributed())
        self._window.total.copy_(boundary.window)
        self._total_loss_scalar, self._globalstep_last_logged = boundary.total_loss, boundary.logged_at
        self.current_flos, self._tokens_waiting, self._padding, counts = boundary.counted
        self._numerics.counts.put_back(counts)
        vars(self.state).update(vars(boundary.state))
        del self.state.log_history[boundary.logs :]
        restore_callbacks(self.callback_handler.callbacks, self.control, boundary.callbacks)
        self._progress.pending = list(boundary.due)

    def _restore_pending_events(self, run: loop.Run) -> bool:
        """Ask for what the checkpoint says was still to be done; whether that is anything."""
        self._restore_stops()
        pending, self._progress.pending = self._progress.pending, []
        for flag in pending:
            setattr(self.control, flag, True)
        if pending:
            self._load_rng_state(run.checkpoint)
        return bool(pending)

    def _was_stopped(self, skip: int) -> bool:
        """Whether a callback had ended this epoch, or the training before its planned end, when the checkpoint was written."""
        progress, step = self._progress, self.state.global_step
        if not (self._own.exact_position and self._own.restore_callback_states):
            progress.stops = []
        out_of_patience = any(map(is_exhausted, self.callback_handler.callbacks))
        if not out_of_patience and ckpt.has_ended(self._get_output_dir(self._trial), self._run_id, step):
            progress.stops = []  # it was ended as it was asked to: whoever resumes it wants more
        if "should_training_stop" in progress.stops:
            logger.warning(
                "the training had been stopped at step %d of %d, and ends there again; "
                "restore_callback_states_from_checkpoint=False trains on",
                step,
                self.state.max_steps,
            )
            return True
        return skip > 0 and bool(progress.stops)

    def _restore_stops(self) -> None:
        for flag in self._progress.stops:
            setattr(self.control, flag, True)

    def _random_states(self) -> dict[str, Any]:
        return capture_rng(distributed=self._is_distributed())

    @contextlib.contextmanager
    def _saving_on_exception(self, run: loop.Run) -> Iterator[None]:
        """With `save_on_exception`, an exception in training first saves the last complete update."""
        try:
            yield
        except Exception:
            if run.saves_on_exception:
                self._save_last_update(run)
            raise

    def _save_last_update(self, run: loop.Run) -> None:
        if self._engine.world_size > 1:
            logger.error("save_on_exception saves nothing here: the other processes may be in another update")
        elif run.boundary is None:
            logger.error("save_on_exception saves nothing here: the exception came in the middle of an update")
        elif self.state.global_step > 0:
            self._return_to(run.boundary)
            folder = self._save_now(run.model, run.trial)
            if folder is not None:
                logger.error("an exception ends the run: %s holds the last complete update", folder)

    def _plan(self, args: Any, loader: Any) -> TrainPlan:
        values = self.set_initial_training_values(args, loader)
        epochs, updates, examples, samples, total_batch, steps, max_steps = values
        if self._packs.wanted:  # an update has rows, of several samples each
            samples = examples * max_steps / updates
        return TrainPlan(
            num_train_epochs=epochs,
            num_update_steps_per_epoch=updates,
            num_examples=examples,
            num_train_samples=samples,
            total_train_batch_size=total_batch,
            steps_in_epoch=steps,
            max_steps=max_steps,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            has_length=has_length(loader),
            short_updates=self._own.short_updates,
        )

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[int, int, int, float, int, int, int]:
        """`(epochs, updates per epoch, examples, samples of the run, total batch, batches per epoch, max_steps)`."""
        batches = most_batches(dataloader, self._engine.each) if has_length(dataloader) else None
        if batches == 0:
            raise ValueError(
                "the training loader has no batch: the data is empty, or dataloader_drop_last drops it all"
            )
        plan = plan_training(
            num_batches=batches,
            num_examples=self.num_examples(dataloader) if batches else 0,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            num_train_epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            total_train_batch_size=self._samples_per_update(args, dataloader),
            short_updates=self._own.short_updates,
        )
        return (
            plan.num_train_epochs,
            plan.num_update_steps_per_epoch,
            plan.num_examples,
            plan.num_train_samples,
            plan.total_train_batch_size,
            plan.steps_in_epoch,
            plan.max_steps,
        )

    def get_total_train_batch_size(self, args: Any) -> int:
        """Samples of one update over all processes."""
        shares = self._engine.data_world_size
        return int(self._own_batch(self._train_batch_size) * args.gradient_accumulation_steps * shares)

    def _samples_per_update(self, args: Any, loader: Any) -> int:
        """Samples of one update over all processes: on average, where batches are measured in tokens."""
        if EpochOrder.of(loader) is None or self._sampling_strategy() != "token_budget" or not len(loader):
            return int(self.get_total_train_batch_size(args))
        updates: int = math.ceil(len(loader) / args.gradient_accumulation_steps)
        return max(1, round(self.num_examples(loader) / updates))

    def _own_batch(self, batch_size: int) -> int:
        """Samples in a batch of this process: with `split_batches` the options count those of all processes."""
        return share_of_batch(batch_size, self._engine.data_world_size) if self._settings.split_batches else batch_size

    def _announce(self, plan: TrainPlan) -> None:
        name = f" {self.args.run_name!r}" if self.args.run_name else ""
        logger.info("training%s: %s", name, self._summary(plan))

    def _summary(self, plan: TrainPlan) -> str:
        epochs = "as many as needed" if plan.num_train_epochs == sys.maxsize else plan.num_train_epochs
        budget = self._sampling_strategy() == "token_budget"
        size = f"up to {self.args.max_tokens_per_batch} tokens" if budget else self._train_batch_size
        batch = f"{size} per device, accumulation {plan.gradient_accumulation_steps}"
        rows = "packed rows" if self._packs.wanted else "samples"
        return (
            f"{plan.num_examples:,} examples, {epochs} epochs, {plan.max_steps:,} updates of "
            f"{plan.total_train_batch_size} {rows} ({batch}), "
            f"{models.param_count(self.model, trainable_only=True):,} trainable parameters"
        )

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """A new `state`, or the checkpoint's. Returns the epoch to begin with, and its micro-batches already done."""
        self.state = TrainerState(stateful_callbacks=self._exportable())
        own_batch = self._own_batch(self._train_batch_size)
        self._progress = Progress(batch_size=own_batch, world_size=self._engine.data_world_size)
        self._run_id = self._engine.share(uuid.uuid4().hex)
        epoch = skip = 0
        if resume_from_checkpoint is not None:
            epoch, skip = self._restore_state(resume_from_checkpoint, num_update_steps_per_epoch)
        self.state.is_hyper_param_search = trial is not None
        self.state.train_batch_size = self._train_batch_size
        self.state.compute_steps(self.args, max_steps)
        self.state.init_training_references(self, max_steps, num_train_epochs, trial)
        return epoch, skip

    def _restore_state(self, checkpoint: str, updates_per_epoch: int) -> tuple[int, int]:
        """Take over what the checkpoint says of the run; nothing of it where this run cannot go on from there."""
        state = TrainerState.load_from_json(os.path.join(checkpoint, ckpt.TRAINER_STATE_NAME))
        progress = ckpt.Contents.of(checkpoint).file(ckpt.PROGRESS_NAME)
        stored = None if progress is None else Progress.from_json(progress)
        if stored is not None and self._own.exact_position:
            epoch, skip = self._exact_position(checkpoint, stored)
        else:  # as in the reference: the position follows from the number of updates
            epoch, updates = divmod(state.global_step, updates_per_epoch)
            skip = 0 if self.args.ignore_data_skip else updates * self.args.gradient_accumulation_steps
        self.state = state
        self._forget_missing_best()
        self._restore_callbacks(checkpoint)
        if stored is not None:
            stored.batch_size, stored.world_size = self._progress.batch_size, self._progress.world_size
            self._progress = stored
        manifest = ckpt.read_manifest(checkpoint)
        self._run_id = self._run_id if manifest is None else manifest.facts.run_id
        return epoch, skip

    def _exact_position(self, checkpoint: str, stored: Progress) -> tuple[int, int]:
        """The epoch to go on in, and its micro-batches done; counted by samples where batches have another size now."""
        through = 0 < stored.examples <= stored.epoch_samples
        goes_on = stored.batches > 0 and not self.args.ignore_data_skip
        self._compare_with(checkpoint, stored, inside_epoch=goes_on and not through)
        if through and stored.examples != self._examples():
            return stored.epoch + 1, 0  # what is new in the data begins with the next epoch
        if not goes_on:
            return stored.epoch, 0
        order: Any = stored.order
        if isinstance(order, dict) and _APART in order:
            self._warn_of_other_shares(order[_APART])
        elif order and self._epoch_order is not None:
            return stored.epoch, self._epoch_order.go_on(stored.epoch, stored.batches, order)
        now = self._progress.batch_size, self._progress.world_size
        if (stored.batch_size, stored.world_size) == now:
            return stored.epoch, stored.batches
        size = math.prod(now)
        logger.warning("up to %d samples before the place where the run stood are read again", size - 1)
        return stored.epoch, stored.epoch_samples // size

    def _warn_of_other_shares(self, shares: int) -> None:
        now = self._engine.data_world_size
        if shares != now:
            logger.warning(
                "each of %d processes read data of its own, which %d divide otherwise: of this epoch some samples come "
                "again, and others do not come",
                shares,
                now,
            )

    def _forget_missing_best(self) -> None:
        if self.state.best_model_checkpoint is not None and not os.path.isdir(self.state.best_model_checkpoint):
            logger.warning("the best checkpoint so far, %s, is gone: forgotten", self.state.best_model_checkpoint)
            self.state.best_model_checkpoint = None

    def _restore_callbacks(self, checkpoint: str) -> None:
        self._load_callback_state()
        self._averages.resume(checkpoint)
        file = ckpt.Contents.of(checkpoint).file(ckpt.CALLBACKS_NAME)
        if self._own.restore_callback_states and file is not None:
            load_state_dicts(self.callback_handler.callbacks, ckpt.load_torch(file))

    def _compare_with(self, checkpoint: str, stored: Progress, inside_epoch: bool) -> None:
        """Tell what has changed since the checkpoint was written; refuse what would make it mean something else."""
        manifest, file = ckpt.read_manifest(checkpoint), ckpt.Contents.of(checkpoint).file(ckpt.TRAINING_ARGS_JSON)
        saved: dict[str, Any] = {"world_size": stored.world_size}
        now: dict[str, Any] = {**json.loads(self.args.to_json_string()), "world_size": self._progress.world_size}
        if file is not None:
            saved.update(read_object(file))
        if stored.examples and self._examples():
            saved["num_examples"], now["num_examples"] = stored.examples, self._examples()
        versions = {} if manifest is None else manifest.libraries
        found = ckpt.drift(saved, now, inside_epoch=inside_epoch, versions=(versions, ckpt.library_versions()))
        if found.refused:
            raise OptionError(found.refused)
        for sentence in found.warnings():
            logger.warning("%s", sentence)

    def _examples(self) -> int:
        """Samples of one epoch; 0 where that is unknown."""
        return len(self.train_dataset) if has_length(self.train_dataset) else 0

    def _keep_schedule(self, plan: TrainPlan, epoch: int, skip: int) -> TrainPlan:
        """After a resume with updates of another size: the updates left follow from the data left, the schedule goes on.

        Where `max_steps` says how long the run is, it is planned in updates, and so is its schedule.
        """
        now = plan.total_train_batch_size
        counted_in = self._progress.schedule_batch or now
        inside = self._epoch_order if self._progress.batches else None
        anew = inside is not None and inside.is_entered_anew(epoch)
        begun = plan if inside is None else plan.of_epoch(inside.length(epoch))
        self._schedule_rate = 1.0
        if (
            (counted_in == now and not anew)
            or self.args.max_steps > 0
            or not (plan.has_length and self._own.exact_position)
        ):
            self._progress.schedule_batch = now
            return plan
        self._schedule_rate = now / counted_in
        left = plan.max_steps - begun.updates_done(epoch, skip)
        self.state.max_steps = self.state.global_step + left
        logger.warning(
            "an update has %d samples now, and had %d when the run began: %d updates are left, and the schedule moves "
            "%.3g of its steps in each",
            now,
            counted_in,
            left,
            self._schedule_rate,
        )
        return replace(plan, max_steps=self.state.max_steps, schedule_steps=round(plan.max_steps * self._schedule_rate))

    def _load_callback_state(self) -> None:
        """Put the callbacks' states of the checkpoint back into the live callbacks."""
        if not self._own.restore_callback_states:
            return
        missing = restore_callbacks(self.callback_handler.callbacks, self.control, self.state.stateful_callbacks)
        self.control._new_step()  # it was stored while it asked for the very checkpoint that holds it
        if missing:
            logger.warning("the checkpoint holds states of callbacks that this run lacks: %s", ", ".join(missing))

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        """Optimizer, wrapped model, schedule and, on resume, their states. Returns the model and the loader to use."""
        if self._created_lr_scheduler:
            self.lr_scheduler, self._created_lr_scheduler = None, False
        model = self.model_wrapped = self._wrap_and_optimize(max_steps, resume_from_checkpoint)
        self.optimizer = self._engine.prepare_optimizer(self.optimizer)
        self.create_scheduler(num_training_steps=max_steps)
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = self.model, self.optimizer, self.lr_scheduler
        handler.train_dataloader = train_dataloader
        if logger.isEnabledFor(logging.INFO):
            tell_after_first_step(self.optimizer, partial(logger.info, "%s"))
        return model, train_dataloader

    def _wrap_and_optimize(self, max_steps: int, checkpoint: str | None) -> nn.Module:
        """The wrapped model, with an optimizer of the parameters that will be trained."""
        if self._engine.joins_optimizer:
            return self._join(max_steps, checkpoint)
        if not self._engine.replaces_parameters:
            self._create_optimizer_seam(max_steps)
            return self._wrap_model(self.model)
        model = self.model_wrapped = self._wrap_model(self.model)
        if checkpoint is not None:
            self._load_from_checkpoint(checkpoint)
        self._create_optimizer_seam(max_steps)
        return model

    def _join(self, max_steps: int, checkpoint: str | None) -> nn.Module:
        """Model, optimizer and schedule, where the engine sets them up together."""
        self._create_optimizer_seam(max_steps)
        steps = max_steps, self.args.get_warmup_steps(max_steps)
        model, self.optimizer, schedule = self._engine.join(self.model, self.optimizer, steps)
        self.model_wrapped = model
        if schedule is not None:
            self.lr_scheduler, self._created_lr_scheduler = schedule, True
        self.create_scheduler(num_training_steps=max_steps)  # whose first rate the checkpoint's takes the place of
        if checkpoint is not None:
            self._load_from_checkpoint(checkpoint)
        return model  # type: ignore[no-any-return]

    def _create_optimizer_seam(self, max_steps: int) -> None:
        """The older generation's seam creates both at once; the newer one only the optimizer at this point."""
        if _overrides(self, "create_optimizer_and_scheduler"):
            self.create_optimizer_and_scheduler(num_training_steps=max_steps)
        else:
            self.create_optimizer()
        check_made(self.optimizer, self._optimizing)
        self._validate_pieces(isinstance(getattr(self.optimizer, "optimizer", self.optimizer), UpdatesInBackward))

    def _begin_counting(self, checkpoint: str | None) -> None:
        """Start the counters of this call; on resume the loss window goes on where the checkpoint left it."""
        step = self.state.global_step
        self._initial_global_step = self._globalstep_last_logged = step
        self._loss_first_step = step if self._own.train_loss_of_session else 0
        self._initial_num_input_tokens_seen = self.state.num_input_tokens_seen
        self._total_loss_scalar = 0.0
        self._saved_step = step if checkpoint is not None and self._is_own_place(checkpoint) else None
        self._window = LossWindow(self.args.device, self.args.logging_nan_inf_filter)
        self._padding = PaddingCount()
        self._speed = self._measure_speed()
        self._flop_counter = models.FlopCounter(self.model)
        self._parts = None
        self._normalises = None
        names = (models.main_input_name(self.model), "labels", *self.label_names)
        self._fit = Fit(Cutter(names, self._loss_shifts_labels), self._progress.pieces)
        self._log = adapt(self.log, ("logs", "start_time"))
        self._numerics = guarding.numerics_of(self)
        if checkpoint is not None:
            assert self._run is not None
            guarding.go_on(self, self._run, self._stored_snapshots(checkpoint))
        if checkpoint is not None and self._own.resume_log_window:
            self._window.total.fill_(self._own_window_loss())
            self._numerics.load_window(self._progress.numerics)
            self._globalstep_last_logged = step - self._progress.window_steps
            if self._engine.rank == 0:  # the counts of all processes together
                self._padding = PaddingCount(self._progress.window_positions, self._progress.window_tokens)
            self._total_loss_scalar = self._progress.total_loss
            self._loss_first_step = self._progress.first_step

    def _run_epoch(
        self,
        model: nn.Module,
        epoch: int,
        train_dataloader: Any,
        steps_in_epoch: int,
        num_update_steps_per_epoch: int,
        trial: Any,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        resume_from_checkpoint: str | None,
        epochs_trained: int,
        steps_trained_in_current_epoch: int,
    ) -> None:
        """One pass over the data."""
        assert self._run is not None
        skip = steps_trained_in_current_epoch if epoch == epochs_trained and resume_from_checkpoint is not None else 0
        self._run.model, self._run.loader = model, train_dataloader
        loop.run_epoch(self, self._run, epoch, skip)

    def _batches_of(self, run: loop.Run, epoch: int, skip: int) -> Iterator[Any]:
        """The epoch's batches from micro-batch `skip` on, with the random states of the checkpoint where one is resumed.

        Making the iterator draws from torch's generator once; a checkpoint inside an epoch was written after that draw.
        """
        self._progress.epoch, self._progress.batches = epoch, skip
        resumed = run.checkpoint is not None and epoch == run.first_epoch
        self._recurrence.forget()
        if skip and self._recurrence.active:
            logger.warning("past_index: checkpoints do not hold the model's memory, which begins anew inside the epoch")
        if resumed and skip == 0:
            self._restore_rng(run)
        position, run.position = run.position, None
        known = (position or {}).get("start") if skip else None
        self._epoch_start = start_of_epoch(run.loader) if known is None else known
        self._reading = self._read_together(batches_from(run.loader, epoch, skip, position), run.loader)
        if resumed and skip > 0:
            self._restore_rng(run)
        return self._reading

    def _read_together(self, batches: Iterator[Any], loader: Any) -> Iterator[Any]:
        """The batches, where some process may come to the end before another: such that they go on together."""
        engine, self._agreed = self._engine, None
        if engine.data_world_size == 1 or not may_end_apart(loader):
            return batches
        before = self._progress.epoch_samples if self._progress.batches else 0
        return UnevenBatches(batches, engine.each, engine.pass_on, before)

    def _restore_rng(self, run: loop.Run) -> None:
        """The random states of the checkpoint, or of the end of what it left to be done."""
        if run.rng is None:
            self._load_rng_state(run.checkpoint)
        else:
            restore_rng(run.rng, distributed=self._is_distributed())

    def _stored_position(self, checkpoint: str | None, loader: Any) -> Any:
        """Where the data stood when the checkpoint was written; None where the number of batches says it."""
        if checkpoint is None or not self._own.exact_position:
            return None
        file = ckpt.Contents.of(checkpoint).file(self._position_name(loader))
        return None if file is None else ckpt.load_torch(file)

    def _position_name(self, loader: Any) -> str:
        engine = self._engine
        own = is_own_place(loader)
        return ckpt.data_position_name(engine.rank, engine.world_size) if own else ckpt.DATA_POSITION_NAME

    def _save_position(self, run: loop.Run, folder: str) -> None:
        """Write where the data stands, by the main process, or by each one where its place is its own."""
        if not (self.args.should_save or is_own_place(run.loader)):
            return
        position = run.position  # until the first batch is asked for, the loader does not know where it is
        if position is None:
            position = capture_position(run.loader, self._epoch_start, self._progress.batches)
        if position is not None:
            ckpt.save_torch(position, os.path.join(folder, self._position_name(run.loader)))

    def _updates_lost(self) -> int:
        """Updates of the plan that were not made, for their numbers, where nothing makes up for them."""
        return 0 if self.args.max_steps > 0 else self._numerics.lost

    def _has_updates_to_make_up(self, epoch: int) -> bool:
        """Whether `epoch`, beyond those planned, is gone through for updates that were not made."""
        run, lost = self._run, self._numerics.lost
        assert run is not None
        short = self.args.max_steps > 0 and self.state.global_step < run.plan.max_steps
        return short and epoch < run.plan.num_train_epochs + lost

    def _leave_what_is_done(self) -> None:
        """Ask for no second evaluation, and no second checkpoint, of one update."""
        step, control = self.state.global_step, self.control
        control.should_evaluate = control.should_evaluate and self._evaluated_at[0] != step
        control.should_save = control.should_save and self._saved_step != step

    def _steps_in_epoch(self, run: loop.Run, epoch: int) -> int:
        """Micro-batches of the epoch: lengths, and with them batches, may vary by epoch."""
        order = self._epoch_order
        return run.plan.steps_in_epoch if order is None or not run.plan.has_length else order.length(epoch)

    def _close_epoch(self, epoch: int) -> None:
        """The epoch's end events are behind us: a checkpoint from here on begins with the next epoch."""
        self._progress.samples += self._epoch_samples()
        self._progress.epoch, self._progress.batches = epoch + 1, 0
        if self._aids is not None:
            self._aids.after_epoch()

    def _epoch_samples(self) -> int:
        """Samples of this epoch consumed over all processes."""
        assert self._run is not None
        progress, order = self._progress, self._epoch_order
        if order is not None:
            dealt = order.samples_before(progress.epoch, progress.batches)
        elif isinstance(self._reading, UnevenBatches):
            return self._reading.samples if progress.batches else 0
        else:
            dealt = progress.batches * self._own_batch(self._train_batch_size) * self._engine.data_world_size
        return min(dealt, self._run.plan.num_examples) if self._run.plan.has_length else dealt

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one update, fewer where the data ends, and the items in them."""
        asked = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        self._speed.waited_since(asked)
        if isinstance(epoch_iterator, UnevenBatches):
            self._agree_on_update(epoch_iterator, batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Label tokens (or samples) that the update's loss is a mean over, on `device`; None where nobody asks."""
        if self._agreed is not None and (self.args.average_tokens_across_devices or not batch_samples):
            known = self._agreed.items
            return None if known is None else torch.tensor(known, device=device)
        items = self._own_items(batch_samples)
        if items is None:
            return None
        items = self._engine.to_device(items)
        return self._engine.sum(items) if self.args.average_tokens_across_devices else items

    def _own_items(self, batches: list[Any]) -> Tensor | None:
        """Items of this process alone."""
        if not batches or not (self.model_accepts_loss_kwargs or self.compute_loss_func is not None):
            return None
        if "labels" not in batches[0] or not self._own.loss_by_items:
            return None
        return count_items(batches, self._loss_shifts_labels)

    def _agree_on_update(self, reading: UnevenBatches, own: list[Any]) -> None:
        """Find out in one exchange who has data for this update, and how much all have of it."""
        items, weights = self._own_items(own), weights_of(own, self._loss_shifts_labels)
        weight = int(torch.stack(weights).sum()) if weights else None
        self._agreed = reading.agree(own, None if items is None else int(items), weight)

    def _idle_batches(self, batches: Iterator[Any], own: list[Any]) -> list[Any]:
        """What this process, with `own` micro-batches for an update, goes through while others have more."""
        if not isinstance(batches, UnevenBatches):
            return []
        if not batches.is_agreed:  # an override of `get_batch_samples` has read them
            self._agree_on_update(batches, own)
        return batches.idle(own)

    @contextlib.contextmanager
    def _resting(self) -> Iterator[None]:
        """A micro-batch of which nothing counts, and which leaves no trace in the random numbers to come."""
        states = self._random_states()
        with self._engine.idle(), self._recurrence.apart():
            yield
        restore_rng(states, distributed=self._is_distributed())

    def _count_own_items(self, inputs: Any) -> Tensor | int:
        """Items in this process's batch alone."""
        items = count_items([inputs], self._loss_shifts_labels)
        return 0 if items is None else items

    def _loss_scale(self) -> int:
        """What a loss normalised by the items of all processes is multiplied by, as DDP will divide by it."""
        normalised = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        return self._engine.data_world_size if self.args.average_tokens_across_devices and normalised else 1

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch; returns its loss, detached, as it is logged."""
        context, inputs = self._prepare_context_parallel_inputs(model, inputs)
        self._parts_of(model).train()
        switch = getattr(self.optimizer, "train", None)
        if switch is not None:
            switch()  # schedule-free optimizers keep two sets of weights
        with context():  # the backward pass too attends to sequences in pieces
            return self._forward_and_backward(model, inputs, num_items_in_batch)

    def _forward_and_backward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        inputs = self._prepare_inputs(inputs)
        items = self._items_for_loss(num_items_in_batch)
        share = self._share_of_update(inputs)
        with self.compute_loss_context_manager(), self._without_logits():
            loss = self._call_compute_loss(model, inputs, items)
        if self.args.torch_empty_cache_steps is not None:
            self._empty_cache()
        normalised = self._loss_is_normalised(items)
        if self._piece is not None and not (normalised and self._adds_up(items)):
            loss = self._piece.of_batch(loss)
        if not normalised:
            loss = self._part_of_update(loss, share)
        if self._agreed is not None:
            loss = self._for_those_present(loss, self._agreed, items if normalised else share)
        self.accelerator.backward(loss)
        detached: Tensor = loss.detach()
        return detached

    def _weigh(self, batches: list[Any]) -> None:
        """Note what the micro-batches of an update hold together.

        A mean over one of them then counts for its share only. A loss that is normalised by itself is not weighed.
        """
        self._update_weight = None
        alone = len(batches) == 1 and self._engine.data_world_size == 1
        if alone or not self._own.weigh_micro_batches:
            return
        if self._normalises or self.loss_is_scaled_for_ga or self.compute_loss_func is not None:
            return
        between = self.args.average_tokens_across_devices and self._engine.data_world_size > 1
        total = self._agreed_weight() if between and self._agreed is not None else self._weight_of(batches, between)
        self._update_weight = None if total is None else total / (self._engine.data_world_size if between else 1)

    def _weight_of(self, batches: list[Any], between: bool) -> Tensor | None:
        weights = weights_of(batches, self._loss_shifts_labels)
        if not weights:
            return None
        total = self._engine.to_device(torch.stack(weights).sum())
        return self._engine.sum(total) if between else total

    def _agreed_weight(self) -> Tensor | None:
        assert self._agreed is not None
        weight = self._agreed.weight
        return None if weight is None else torch.tensor(weight, device=self._engine.device)

    def _part_of_update(self, loss: Tensor, share: Tensor | None) -> Tensor:
        """A mean over a micro-batch, as what it adds to the mean over the update."""
        if share is not None:
            return loss * share
        parts = self.current_gradient_accumulation_steps if self._piece is None else self._piece.parts
        return loss / parts if parts > 1 else loss

    def _for_those_present(self, loss: Tensor, agreed: Agreed, counted: Any) -> Tensor:
        """A loss as its process's part of the mean over those that have data, where these do not count together."""
        together = counted is not None and self.args.average_tokens_across_devices
        return loss if together or agreed.present == 1 else loss / agreed.present

    def _share_of_update(self, inputs: Any) -> Tensor | None:
        """How much the mean loss of a micro-batch counts in its update; None where all count alike."""
        if self._update_weight is None:
            return None
        whole = inputs if self._piece is None else self._piece.whole
        weights = weights_of([whole], self._loss_shifts_labels)
        return None if weights is None else weights[0] / self._update_weight

    def _cut(self, batch: Any, count: int, parts: int) -> list[Piece]:
        """A micro-batch in `count` pieces, fewer where it has fewer rows.

        Until it is known of a loss that it is normalised in its update, it is taken for a mean.

        Args:
            batch: The micro-batch.
            count: How many pieces are wanted.
            parts: What a mean over the micro-batch is divided by in its update.
        """
        normalised = self._normalises if self.loss_is_scaled_for_ga is None else self.loss_is_scaled_for_ga
        return self._fit.cutter.cut(batch, count, parts, means=not normalised)

    @contextlib.contextmanager
    def _learning_from(self, piece: Piece | None) -> Iterator[None]:
        """The body learns from a piece of a micro-batch; None: from all of it."""
        self._piece = piece
        try:
            yield
        finally:
            self._piece = None

    def _adds_up(self, items: Tensor | int | None) -> bool:
        """Whether the losses of pieces sum up to that of their micro-batch, rather than being means over each.

        That a loss counts as normalised in its update does not say so where it is only taken for that.
        """
        if self.loss_is_scaled_for_ga:
            return True
        return items is not None and not (isinstance(items, WatchedCount) and not items.was_used)

    def _parts_of(self, model: nn.Module) -> models.Parts:
        """The modules and parameters of the model in training, listed once per run."""
        if self._parts is None or self._parts.model is not model:
            self._parts = models.Parts(model)
        return self._parts

    def _call_compute_loss(self, model: nn.Module, inputs: Any, items: Any, **kwargs: Any) -> Any:
        """`compute_loss`, which an override of the older generation may have without `num_items_in_batch`."""
        function = getattr(self.compute_loss, "__func__", self.compute_loss)
        if self._loss_seam[0] is not function:
            self._loss_seam = (function, takes(function, "num_items_in_batch"))
        if self._loss_seam[1]:
            return self.compute_loss(model, inputs, num_items_in_batch=items, **kwargs)
        return self.compute_loss(model, inputs, **kwargs)

    def _items_for_loss(self, items: Tensor | int | None) -> Tensor | int | None:
        """The number of items to give to the loss: watched until it is known whether the loss is normalised by it.

        A compiled model is always given the same kind of number: it would be compiled anew for another one.
        """
        if self.loss_is_scaled_for_ga is not None or not isinstance(items, Tensor):
            return items
        if not self._own.watch_normalisation:
            return items if self._piece is None else WatchedCount.of(items)
        if self._normalises is None or self.args.torch_compile:
            return WatchedCount.of(items)
        return items if self._normalises else None

    def _loss_is_normalised(self, items: Tensor | int | None) -> bool:
        """Whether the loss just computed is that of the whole update, rather than a mean over its micro-batch.

        A subclass's word counts first; then whether the number of items was used; else, as in the reference, whether it
        was handed over.
        """
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        if not self._own.loss_by_items:
            return False
        if isinstance(items, WatchedCount) and self._own.watch_normalisation:
            self._normalises = items.was_used
            return self._normalises
        if self._own.watch_normalisation and self._normalises is False:
            return False
        given = items is not None and self._loss_seam[1]
        return (self.model_accepts_loss_kwargs and given) or self.compute_loss_func is not None

    def _empty_cache(self) -> None:
        if self.state.global_step % self.args.torch_empty_cache_steps == 0:
            from accelerate.utils.memory import clear_device_cache

            clear_device_cache()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch, 0-d; with `return_outputs`, `(loss, outputs)`.

        A subclass with its own loss says by `loss_is_scaled_for_ga` whether it is a mean over the micro-batch (False)
        or normalised by `num_items_in_batch` (True).
        """
        labels = None
        if self.label_smoother is not None or self.compute_loss_func is not None:
            labels = inputs.get("labels")
            inputs = {key: value for key, value in inputs.items() if key != "labels"}
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            inputs = {**inputs, "num_items_in_batch": num_items_in_batch}
        outputs = model(**inputs)
        if self._recurrence.active:
            self._recurrence.remember(outputs, has_loss=self.label_smoother is None and self.compute_loss_func is None)
        loss = self._loss_from(outputs, labels, num_items_in_batch)
        unused = isinstance(num_items_in_batch, WatchedCount) and not num_items_in_batch.was_used
        unused &= self._own.watch_normalisation
        if num_items_in_batch is not None and not unused and (scale := self._loss_scale()) != 1:
            loss = loss * scale
        return (loss, outputs) if return_outputs else loss

    def _loss_from(self, outputs: Any, labels: Any, num_items: Tensor | int | None) -> Tensor:
        if self.compute_loss_func is not None:
            if labels is None:
                logger.warning_once("compute_loss_func is called with labels=None: the batch has no 'labels'")
            return self.compute_loss_func(outputs, labels, num_items_in_batch=num_items)
        if self.label_smoother is not None and labels is not None:
            shift = models.is_causal_lm(self.model)
            return self.label_smoother(outputs, labels, shift_labels=shift, num_items_in_batch=num_items)
        loss = loss_of(outputs)
        if self.model.training and self._adds_up(num_items) and (share := self._share_of_means(num_items)) != 1:
            loss = loss - (1 - share) * models.auxiliary_loss(self.model, outputs)
        return loss

    def _share_of_means(self, num_items: Tensor | int | None) -> float:
        """What a mean over the rows at hand counts in the update, where all else of the loss is added up."""
        piece = self._piece
        share = 1.0 if piece is None else piece.of_rows
        if not self._own.share_router_losses:
            return share
        parts = self.current_gradient_accumulation_steps if piece is None else piece.parts
        return share / (parts * (1 if num_items is None else self._loss_scale()))

    def compute_loss_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        """The context of every forward pass with a loss; enters the autocast context where a subclass gives one."""
        return self.autocast_smart_context_manager()

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> contextlib.AbstractContextManager[Any]:
        """An extra autocast context. None by default: the engine's model casts by itself."""
        return _NO_CONTEXT

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The batch on the device.

        Raises:
            ValueError: Nothing is left of the batch.
        """
        inputs = self._prepare_input(inputs)
        if len(inputs) == 0:
            expected = ", ".join(models.forward_parameters(self.model))
            raise ValueError(
                f"the batch is empty: none of its columns is an argument of {type(self.model).__name__}.forward "
                f"({expected}); check the data, or set remove_unused_columns=False"
            )
        return self._recurrence.feed(inputs) if self._recurrence.active else inputs

    def _prepare_input(self, data: Any) -> Any:
        """One tensor, or a nested structure of them, on the device."""
        if isinstance(data, Tensor):
            return self._engine.to_device(data)
        parts = children_of(data)
        return data if parts is None else rebuilt(data, [self._prepare_input(part) for part in parts])

    def _prepare_context_parallel_inputs(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[Callable[[], contextlib.AbstractContextManager[Any]], dict[str, Any]]:
        """The context in which a batch goes through the model, forward and backward, and the batch.

        With context parallelism each process sees its part of every sequence there.
        """
        return self._engine.part_of_sequences(model, inputs)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip the gradients to `max_grad_norm`; returns the norm before."""
        return self.accelerator.clip_grad_norm_(self._parts_of(model).parameters, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """The gradient norm to log: the one that clipping measured, else measured here."""
        return self._engine.grad_norm(self._parts_of(model).parameters) if grad_norm is None else grad_norm

    def _account(self, inputs: Any) -> None:
        """Count what a micro-batch cost."""
        if self._loss_head is not None:
            self._loss_head.check_use()
        self.current_flos += self.floating_point_ops(inputs)
        self._track_num_input_tokens(inputs)
        if self._own.log_padding:
            self._padding.add(inputs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Estimated operations of a forward and backward pass; the model's own `floating_point_ops` where it has one."""
        if self._flop_counter is None:
            self._flop_counter = models.FlopCounter(self.model)
        return self._flop_counter(inputs)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Add the batch's input tokens, over all processes, to the state, where they are wanted."""
        if self.args.include_num_input_tokens_seen == "no":
            return
        counted = models.count_input_tokens(
            self.model,
            inputs,
            self.processing_class,
            non_padding=self.args.include_num_input_tokens_seen == "non_padding",
        )
        if counted is None:
            logger.warning_once(
                "include_num_input_tokens_seen: the batch has no %r; set main_input_name on the model class",
                models.main_input_name(self.model),
            )
            return
        self._tokens_waiting += counted

    def _store_tokens(self) -> None:
        """Move the counted input tokens of all processes into the state: only here is a device waited for."""
        waiting, self._tokens_waiting = torch.as_tensor(self._tokens_waiting, device=self._engine.device), 0
        self.state.num_input_tokens_seen += int(self._engine.sum(waiting).item())

    def store_flos(self) -> None:
        """Move the counted operations of all processes into the state."""
        if self._engine.world_size > 1:
            counted = torch.tensor(self.current_flos, dtype=torch.float64, device=self._engine.device)
            self.state.total_flos += float(self._engine.sum(counted).item())
        else:
            self.state.total_flos += self.current_flos
        self.current_flos = 0.0

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Tensor,
        grad_norm: Tensor | float | None,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """Log, then evaluate, then save: whatever the control asks for."""
        control = self.control
        if not (control.should_log or control.should_evaluate or control.should_save):
            return
        if control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._log_window(grad_norm, learning_rate, start_time)
            self._engine.settle(self.control)
        if self.control.should_evaluate:
            metrics = self._evaluate(trial, ignore_keys_for_eval)
            is_best = self._may_be_best() and self._determine_best_metric(metrics=metrics, trial=trial)
            if self.args.save_strategy == SaveStrategy.BEST:
                self.control.should_save = is_best
            self._engine.settle(self.control)
        if self.control.should_save:
            with self._speed.apart():
                self._save_and_tell(model, trial)
            self._engine.settle(self.control)

    def _may_be_best(self) -> bool:
        """Whether an evaluation made now counts: in the older generation, only one that is saved with."""
        saves = self.control.should_save or self.args.save_strategy == SaveStrategy.BEST
        return saves or self._own.best_at_every_evaluation

    def _log_window(self, grad_norm: Tensor | float | None, learning_rate: float | None, start_time: float) -> None:
        total = self._window.drain(self._engine.mean)
        step = self.state.global_step
        loss = total / (step - self._globalstep_last_logged)
        logs: dict[str, float] = {"loss": round(loss, 4) if self._own.round_logs else loss}
        if grad_norm is not None:
            logs["grad_norm"] = float(grad_norm)
        knows = self._own.log_rate_used and (self._own.rates_of_engine or not self._engine.brings_steps)
        used = learning_rate if knows else None
        logs["learning_rate"] = self._get_learning_rate() if used is None else used
        if self._own.log_saves:
            logs.update(self._saver.take_times())
        if self._saver.failures:
            logs["failed_saves"] = self._saver.failures
        logs.update(self._numerics.drain(self._engine))
        if self._own.log_padding and (padding := self._padding_since_log()) is not None:
            logs["padding_fraction"] = padding
        self._total_loss_scalar += total
        self._globalstep_last_logged = step
        self.store_flos()
        logs.update(self._speed.logs(self.state.total_flos, self._engine.each))
        self._log(logs, start_time)

    def _measure_speed(self) -> Speed:
        """What takes the time of this run, and knows what its devices can do."""
        args, engine, given = self.args, self._engine, measuring_options(self.args).peak_flops
        pins = args.dataloader_pin_memory if engine.device.type == "cuda" else None
        loading = Loading(args.dataloader_num_workers, args.dataloader_prefetch_factor, pins)
        peak = given
        if peak is None and self._own.log_utilization:
            peak = peak_of(engine.device, format_of(self.model, self.accelerator.mixed_precision))
        devices = engine.world_size * max(1, args.n_gpu, len(models.devices_of_map(self.model)))
        # Processes that divide layers or sequences count the same batch each.
        counts = engine.world_size // engine.data_world_size
        return Speed(
            operations=self.state.total_flos,
            loading=loading if self._own.log_waiting else None,
            peak=None if peak is None else Peak(peak * devices * counts, was_given=given is not None),
        )

    def _padding_since_log(self) -> float | None:
        """The share of padding in what all processes were fed since the last log; None where no batch told."""
        counted = self._padding.read(self._engine.sum)
        self._padding.clear()
        return padding_fraction(*counted)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `epoch` (and token counts) to `logs`, keep them in the history, and tell the callbacks."""
        logs["epoch"] = round(self.state.epoch, 2) if self._own.round_logs else self.state.epoch
        if self.args.include_num_input_tokens_seen != "no":
            logs.update(self._token_logs(start_time))
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._fire("on_log", logs)

    def _token_logs(self, start_time: float | None) -> dict[str, float]:
        """Input tokens so far and, within training, their speed."""
        self._store_tokens()
        seen = self.state.num_input_tokens_seen
        speed = {}
        if start_time is not None:
            speed = speed_metrics("train", start_time, num_tokens=seen - self._initial_num_input_tokens_seen)
        return {"num_input_tokens_seen": seen, **speed}

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """Evaluate during training, and let a metric-driven schedule move."""
        run = self._run
        if run is not None and run.stops.active:
            run.before_evaluation = self._boundary(loop.events_due(self.control))
        names_batch = naming_evaluation_batch(self.args.eval_batch_size) if self._cuts else _NO_CONTEXT
        with self._speed.apart(), names_batch:
            metrics = self.evaluate(ignore_keys=ignore_keys_for_eval)
        if run is not None:
            run.before_evaluation = None
        self._evaluated_at = (self.state.global_step, metrics)
        if follows_metric(self.lr_scheduler) and not skip_scheduler:
            self.lr_scheduler.step(self._chosen_metric(metrics))
        return metrics

    def _chosen_metric(self, metrics: dict[str, float]) -> float:
        """The value of `metric_for_best_model`, with or without the `eval_` prefix: the main process's.

        Times differ between processes, and so may metrics of a subclass: yet one checkpoint is everybody's best.
        """
        name = self.args.metric_for_best_model
        assert name is not None
        key = name if name.startswith("eval_") else f"eval_{name}"
        value: float | None = self._engine.share(metrics.get(key))
        if value is None:
            raise KeyError(
                f"metric_for_best_model={name!r}: evaluation returned no {key!r}, only {', '.join(sorted(metrics))}; "
                "return it from compute_metrics, or choose one of these"
            )
        return value

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Keep the best metric in the state; returns whether this one is it."""
        if self.args.metric_for_best_model is None:
            return False
        value = self._chosen_metric(metrics)
        best = self.state.best_metric
        improved = best is None or (value > best if self.args.greater_is_better else value < best)
        if not improved or math.isnan(value):
            return False
        self.state.best_metric = value
        if self.args.save_strategy != SaveStrategy.NO:
            self.state.best_global_step = self.state.global_step
        return True

    def _finalize_training(self, trial: Any, num_train_samples: float, start_time: float) -> TrainOutput:
        """Final metrics, best model, and the last event."""
        made = self.state.global_step - self._initial_global_step
        steps = made if self._own.speed_of_session else self.state.max_steps
        self._total_loss_scalar += self._engine.mean(self._window.total)
        train_loss = self._total_loss_scalar / max(self.state.global_step - self._loss_first_step, 0.001)
        share = steps / max(self.state.max_steps, 1)
        metrics = speed_metrics("train", start_time, num_samples=num_train_samples * share, num_steps=steps)
        self.store_flos()
        metrics.update(total_flos=self.state.total_flos, train_loss=train_loss)
        metrics.update(self._numerics.summary(self._engine, self.state.log_history))
        self._memory_tracker.report("train", metrics)
        self._tell_of_finished_saves(wait=True)
        if self._saver.failures:
            metrics["failed_saves"] = self._saver.failures
        self.log(metrics)
        if self._own.evaluation_weights:
            self._show_evaluation_weights()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self._keep_only_best(trial)
        self._fire("on_train_end")
        if self.args.should_save and self._stops() and self._saves_checkpoints():
            ckpt.note_end(self._get_output_dir(trial), self._run_id, self.state.global_step)
        return TrainOutput(self.state.global_step, train_loss, metrics)

    def _keep_only_best(self, trial: Any) -> None:
        """With `save_total_limit=1` a best and a newest checkpoint lived side by side: now only the best stays."""
        best = self.state.best_model_checkpoint
        if not self.args.should_save or best is None or self.args.save_total_limit != 1:
            return
        if damage := ckpt.verify(best):
            logger.warning("%s is the best checkpoint, and damaged: all others stay (%s)", best, "; ".join(damage))
            return
        run_dir = self._get_output_dir(trial)
        every = self._own.rotate_by_time
        for folder in ckpt.sort_checkpoints(run_dir) if every else ckpt.checkpoints_of_run(run_dir, self._run_id):
            if os.path.realpath(folder) != os.path.realpath(best):
                logger.info("removing %s: save_total_limit=1 keeps the best", folder)
                ckpt.remove_checkpoint(folder)

    # ---- evaluation and prediction ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate.

        Args:
            eval_dataset: A data set, a mapping of names to data sets, or a name; default: the trainer's.
            ignore_keys: Keys of the model's output to leave out of the predictions.
            metric_key_prefix: Prefix of every metric's name.

        Returns:
            The loss, the metrics, and the speed.
        """
        with self._engine.session("evaluate()"), self._memory_tracker.during("eval") as report:
            metrics = evaluation.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)
            report(metrics)
            return metrics

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        *,
        output_file: str | os.PathLike[str] | None = None,
    ) -> PredictionOutput:
        """Predictions and labels as arrays, padded with -100 to the longest; metrics where there are labels.

        Args:
            test_dataset: A data set.
            ignore_keys: Keys of the model's output to leave out of the predictions.
            metric_key_prefix: Prefix of every metric's name.
            output_file: A name that ends in `.npy` or `.parquet`. Predictions and labels are written there batch by
                batch, by the main process, and are None in what is returned; memory does not grow with the data.
        """
        with self._engine.session("predict()"), self._memory_tracker.during("test") as report:
            output = evaluation.predict(self, test_dataset, ignore_keys, metric_key_prefix, output_file)
            report(output.metrics)
            return output

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """One pass over `dataloader`, shared by `evaluate` and `predict`."""
        return evaluation.evaluation_loop(
            self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def _model_for_evaluation(self) -> nn.Module:
        """The model to evaluate: placed, and cast where full-precision evaluation is not wanted."""
        started = time.time()
        known = self._engine.is_placed(self.model)
        model = self._wrap_model(self.model, training=False)
        if self._own.first_buffers:
            self._engine.same_buffers(model)
        self._preparation_time = None if known or self.is_in_train else round(time.time() - started, 4)
        half = None if self.is_in_train else self._half_of_evaluations()
        if half is not None:
            model = self._engine.halved(model, half)
            self._cast_to = half
        return model

    def _half_of_evaluations(self) -> torch.dtype | None:
        """The half precision of evaluations outside training; None: they are whole."""
        return torch.float16 if self.args.fp16_full_eval else torch.bfloat16 if self.args.bf16_full_eval else None

    def _evaluation_memory(self) -> int:
        """Bytes that the arrays of an evaluation may take up in memory: none where they are too large to be returned."""
        return evaluation_memory(self.args) if self._output is None else 0

    def _evaluates_by_token(self) -> bool:
        """Whether evaluation losses are averaged over items; see the option `eval_loss_reduction`."""
        wanted = self._own.eval_loss_reduction
        if wanted != "auto":
            return bool(wanted == "token")
        return self.loss_is_scaled_for_ga is True or not _overrides(self, "compute_loss")

    def _loss_copies(self, held: int) -> int:
        """As how many samples a batch of `held` rows counts in a mean of batch means."""
        return held or 1

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """`(loss, logits, labels)` of one batch; each may be None."""
        has_labels = bool(self.label_names) and all(inputs.get(name) is not None for name in self.label_names)
        returns_loss = inputs.get("return_loss")
        returns_loss = self.can_return_loss if returns_loss is None else returns_loss
        with_loss = has_labels or (not self.label_names and returns_loss)
        inputs = self._prepare_inputs(inputs)
        if prediction_loss_only and with_loss and self.args.use_liger_kernel:
            inputs = liger.loss_alone(self.model, inputs)
        # Smoothing takes the labels out of the batch: keep them first.
        labels = nested_detach(tuple(inputs.get(name) for name in self.label_names)) if with_loss else None
        with torch.no_grad(), self._without_logits(prediction_loss_only and with_loss):
            loss, outputs = self._evaluated(model, inputs) if with_loss else (None, self._forward(model, inputs))
        if prediction_loss_only:
            return loss, None, None
        logits = models.predictions_of(outputs, self.model, ignore_keys, has_loss=with_loss)
        return loss, nested_detach(logits), labels[0] if labels is not None and len(labels) == 1 else labels

    def _evaluated(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        self._agreed = None  # that was for an update
        counted = self._get_num_items_in_batch([inputs], self._engine.device)
        items = self._items_for_loss(counted)
        context, inputs = self._prepare_context_parallel_inputs(model, inputs)
        with context(), self.compute_loss_context_manager():
            loss, outputs = self._call_compute_loss(model, inputs, items, return_outputs=True)
        if counted is not None:
            own = self._count_own_items(inputs)
            self._eval_items = own, counted / self._loss_scale() if self._loss_is_normalised(items) else own
        elif (held := count_items([inputs], self._loss_shifts_labels)) is not None:
            self._eval_items = held, held
        return loss.detach().mean(), outputs

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        with self.compute_loss_context_manager():
            outputs = model(**inputs)
        if self._recurrence.active:
            self._recurrence.remember(outputs, has_loss=False)
        return outputs

    # ---- saving ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model so that `from_pretrained` opens it; written by the main process.

        Every process calls it: the weights may lie in pieces on all of them. A checkpoint (`_internal_call`) may keep
        them so.
        """
        folder = self.args.output_dir if output_dir is None else output_dir
        if self._own.evaluation_weights:
            self._show_evaluation_weights()
        if self._engine.keeps_pieces or (_internal_call and self._engine.saves_shards):
            self._engine.save_shards(self.model, folder)
            self._save(folder, state_dict=self._engine.beside_pieces(self.model))
        else:
            state = self._engine.model_state(self.model)
            with self._engine.own_names(self.model):
                self._save(folder, state_dict=state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write weights, configuration, processing class and options to `output_dir`."""
        output_dir = self.args.output_dir if output_dir is None else output_dir
        if not self.args.should_save:
            return
        processor = self.processing_class
        if processor is None:
            processor = getattr(self.data_collator, "tokenizer", None)
        ckpt.save_model(self.model, output_dir, state_dict=state_dict, processing_class=processor)
        with open(os.path.join(output_dir, ckpt.TRAINING_ARGS_JSON), "w", encoding="utf-8") as file:
            file.write(self.args.to_json_string() + "\n")
        if self._saving.pickles_arguments:
            torch.save(self.args, os.path.join(output_dir, ckpt.TRAINING_ARGS_NAME))

    def save_state(self) -> None:
        """Write the state to `output_dir/trainer_state.json`, by the main process."""
        if self.is_world_process_zero():
            self.state.save_to_json(os.path.join(self.args.output_dir, ckpt.TRAINER_STATE_NAME))

    def log_metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Print metrics as an aligned table, by the main process."""
        if self.is_world_process_zero():
            log_metrics(split, metrics)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write `<split>_results.json`, and merge the metrics into `all_results.json`."""
        if self.is_world_process_zero():
            save_metrics(self.args.output_dir, split, metrics, combined)

    @staticmethod
    def metrics_format(metrics: dict[str, float]) -> dict[str, Any]:
        """Metrics as people read them: times as h:mm:ss, operations in GF."""
        return metrics_format(metrics)

    def _get_output_dir(self, trial: Any) -> str:
        """Where this run's checkpoints lie."""
        return str(self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any, metrics: dict[str, float] | None = None) -> None:
        """Write `checkpoint-<step>`: it appears whole, or not at all. `metrics` is the older generation's, not needed."""
        self.store_flos()
        if self.args.include_num_input_tokens_seen != "no":
            self._store_tokens()
        run_dir = self._get_output_dir(trial)
        folder = os.path.join(run_dir, ckpt.checkpoint_name(self.state.global_step))
        self._best_before_save = self.state.best_model_checkpoint
        self._note_best_checkpoint(run_dir, folder)
        self._note_progress()
        self._saver.save(folder, self._facts(), self._write_checkpoint, self._checkpoint_bytes)
        if self._saver.failed:
            self.state.best_model_checkpoint = self._best_before_save

    def _show_evaluation_weights(self) -> None:
        """Of a schedule-free optimizer's two sets of weights, put those into the model that are meant to be used."""
        switch = getattr(self.optimizer, "eval", None)
        if callable(switch):
            switch()

    def _write_checkpoint(self, stage: str) -> None:
        """Every process writes its files into the folder that all share."""
        steps = [
            partial(self.save_model, stage, _internal_call=True),
            partial(self._averages.save, stage, self.args.should_save),
        ]
        if not self.args.save_only_model:
            steps += [
                partial(self._save_optimizer_and_scheduler, stage),
                partial(self._save_scaler, stage),
                partial(self._save_rng_state, stage),
                partial(self._save_snapshots, stage),
            ]
        if self._run is not None:
            steps.append(partial(self._save_position, self._run, stage))
        ckpt.in_any_case(*steps, partial(self._save_progress, stage))

    def _checkpoint_bytes(self) -> int:
        size = self._engine.checkpoint_bytes(self.model, None if self.args.save_only_model else self.optimizer)
        snapshots = [] if self.args.save_only_model or self.optimizer is None else self._numerics.snapshots()
        return size + ckpt.estimate_bytes(*snapshots) + self._averages.nbytes()

    def _facts(self) -> ckpt.Facts:
        """What the manifest of a checkpoint written now says."""
        step, metrics = self._evaluated_at
        current = metrics if step == self.state.global_step else {}
        name = self.args.metric_for_best_model
        key = None if name is None else f"eval_{name.removeprefix('eval_')}"
        return ckpt.Facts(
            run_id=self._run_id,
            step=self.state.global_step,
            samples=self._progress.samples + self._epoch_samples(),
            world_size=self._engine.world_size,
            max_steps=self.state.max_steps,
            metric_name=name,
            metric=None if key is None else current.get(key),
            best=self.state.best_global_step == self.state.global_step,
            metrics=current,
        )

    def _make_room(self, written: str) -> None:
        """Delete what `save_total_limit` leaves no room for."""
        if not self.args.should_save:
            return
        run_dir, limit, best = os.path.dirname(written), self.args.save_total_limit, self.state.best_model_checkpoint
        if self._own.rotate_by_time:
            ckpt.rotate_checkpoints(run_dir, limit, best, use_mtime=True)
        else:
            ckpt.prune(run_dir, self._run_id, limit, protected=[] if best is None else [best], written=written)

    def _note_best_checkpoint(self, run_dir: str, folder: str) -> None:
        if not self.state.best_global_step or self.args.save_strategy == SaveStrategy.NO:
            return
        best = os.path.join(run_dir, ckpt.checkpoint_name(self.state.best_global_step))
        if best == folder or os.path.isdir(best):
            self.state.best_model_checkpoint = best

    def _note_progress(self) -> None:
        """Bring the progress up to this step. The processes do so together: before any of them can fail to write."""
        progress = self._progress
        progress.examples = self._examples()
        progress.epoch_samples = self._epoch_samples()
        progress.order = self._place_in_order() if progress.batches else {}
        progress.window_losses = self._window_losses()
        progress.window_loss = sum(progress.window_losses) / len(progress.window_losses)
        progress.window_steps = self.state.global_step - self._globalstep_last_logged
        progress.window_positions, progress.window_tokens = self._padding.read(self._engine.sum)
        progress.numerics = self._numerics.state(self._engine)
        progress.total_loss = self._total_loss_scalar
        progress.first_step = self._loss_first_step
        progress.stops = self._stops()
        assert self._run is not None
        norm, progress.learning_rate = self._run.grad_norm, self._run.learning_rate
        progress.grad_norm = None if norm is None else float(norm)

    def _window_losses(self) -> list[float]:
        """The loss window of each share of the data."""
        engine, own = self._engine, self._window.total
        windows = torch.zeros(engine.data_world_size, dtype=own.dtype, device=own.device)
        windows[engine.data_rank] = own
        losses: list[float] = engine.sum(windows).tolist()
        return losses

    def _own_window_loss(self) -> float:
        """This share's loss window in the checkpoint; their mean where the data was shared out in another way."""
        known, engine = self._progress.window_losses, self._engine
        return known[engine.data_rank] if len(known) == engine.data_world_size else self._progress.window_loss

    def _place_in_order(self) -> dict[str, Any]:
        """What the number of batches of this epoch means on another number of processes."""
        if self._epoch_order is not None:
            return self._epoch_order.place(self._progress.epoch)
        assert self._run is not None
        shares = self._engine.data_world_size
        return {_APART: shares} if shares > 1 and reads_its_own(self._run.loader) else {}

    def _stops(self) -> list[str]:
        """What callbacks have ended; the planned end is none of it: another run may plan on."""
        control, ended = self.control, []
        if control.should_training_stop and self.state.global_step < self.state.max_steps:
            ended.append("should_training_stop")
        if control.should_epoch_stop and self._progress.batches:
            ended.append("should_epoch_stop")
        return ended

    def _save_progress(self, folder: str) -> None:
        """Write the state, and beside it what the reference's files have no place for."""
        if self.args.should_save:
            self.state.collect(self._exportable())
            self.state.save_to_json(os.path.join(folder, ckpt.TRAINER_STATE_NAME))
            self._progress.to_json(os.path.join(folder, ckpt.PROGRESS_NAME))
            if states := state_dicts(self.callback_handler.callbacks):
                ckpt.save_torch(states, os.path.join(folder, ckpt.CALLBACKS_NAME))

    def _save_now(self, model: nn.Module, trial: Any) -> str | None:
        """The checkpoint of this very step, written now unless it is there; None where it could not be written."""
        self._tell_of_finished_saves(wait=True)
        if self._saved_step != self.state.global_step:
            self._save_and_tell(model, trial)
            self._tell_of_finished_saves(wait=True)
        if self._saved_step != self.state.global_step:
            return None
        return os.path.join(self._get_output_dir(trial), ckpt.checkpoint_name(self.state.global_step))

    def _save_and_tell(self, model: nn.Module, trial: Any) -> None:
        """Save, and tell the callbacks once the checkpoint is in place."""
        self._tell_of_finished_saves(wait=True)
        self._saver.failed = False
        with self._engine.during(f"saving {ckpt.checkpoint_name(self.state.global_step)}"), self._saver.held():
            self._save_checkpoint(model, trial)
        self.control.should_save = False  # whether or not it came about, and whenever callbacks are told of it
        if self._saver.failed:
            return
        self._saved_step = self.state.global_step
        if self._saver.in_background:
            self._state_of_save = copy.copy(self.state)
        else:
            self._tell_of_save(
                os.path.join(self._get_output_dir(trial), ckpt.checkpoint_name(self._saved_step)), self.state
            )

    def _is_own_place(self, checkpoint: str) -> bool:
        """Whether a save of this step would go to this very folder."""
        place = os.path.join(self._get_output_dir(self._trial), ckpt.checkpoint_name(self.state.global_step))
        return os.path.realpath(checkpoint) == os.path.realpath(place)

    def _tell_of_save(self, folder: str, state: TrainerState) -> None:
        """`on_save`, after which the manifest holds for what the callbacks made of the checkpoint.

        Only a checkpoint that is valid for good lets older ones go.
        """
        self.control = self.callback_handler.on_save(self.args, state, self.control)
        if self._run is not None:
            self._run.stops.keep_back(self._saver.slowest_s)
        try:
            ckpt.by_writers(lambda: ckpt.reseal(folder), self._engine, self._disk)
        except OSError as error:
            self._saver.report(ckpt.Finished(Path(folder), 0.0, 0.0, error))
        else:
            self._make_room(folder)

    def _tell_of_finished_saves(self, wait: bool = False) -> None:
        """Tell of the saves of the background that have come to their end. Several processes do so only where all wait."""
        if not self._saver.in_background or (not wait and self._engine.world_size > 1):
            return
        for finished in self._saver.finished(wait):  # all processes have the same
            if finished.error is not None:
                self.state.best_model_checkpoint = self._best_before_save
            self._saver.report(finished)
            if finished.error is None:
                self._tell_of_save(os.fspath(finished.folder), self._state_of_save)
            else:
                self._saved_step = None

    def _finish_own_saves(self) -> None:
        """After an error. The other processes may be anywhere: nothing is agreed with them."""
        if self._engine.world_size == 1:
            self._tell_of_finished_saves(wait=True)
            return
        for finished in self._saver.finished(wait=True):
            self._saver.report(finished)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._engine.save_optimizer(self.model, self.optimizer, output_dir, writes=self.args.should_save)
        if self.args.should_save and not self._engine.keeps_schedule:
            ckpt.save_torch(self.lr_scheduler.state_dict(), os.path.join(output_dir, ckpt.SCHEDULER_NAME))

    def _save_scaler(self, output_dir: str) -> None:
        if self.args.should_save and self._engine.scaler is not None:
            ckpt.save_torch(self._engine.scaler.state_dict(), os.path.join(output_dir, ckpt.SCALER_NAME))

    def _save_snapshots(self, output_dir: str) -> None:
        """What `on_loss_spike="rollback"` can go back to: without it, a resumed run would go back elsewhere."""
        snapshots = self._numerics.snapshots()
        if self.args.should_save and snapshots:
            ckpt.save_torch({"snapshots": snapshots}, os.path.join(output_dir, ckpt.SNAPSHOTS_NAME))

    def _stored_snapshots(self, checkpoint: str) -> list[dict[str, Any]] | None:
        file = ckpt.Contents.of(checkpoint).file(ckpt.SNAPSHOTS_NAME)
        return ckpt.load_torch(file)["snapshots"] if file is not None and self._numerics.rolls_back else None

    def _save_rng_state(self, output_dir: str) -> None:
        """Every process saves its own random states."""
        os.makedirs(output_dir, exist_ok=True)
        ckpt.save_torch(self._random_states(), os.path.join(output_dir, self._rng_file()))

    def _rng_file(self) -> str:
        return ckpt.rng_state_name(self.args.process_index, self.args.world_size)

    def _is_distributed(self) -> bool:
        """Whether random numbers are drawn on several devices, those of other processes or of this one."""
        return bool(self.args.parallel_mode != ParallelMode.NOT_PARALLEL)

    # ---- loading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint into the model, in place."""
        logger.info("loading the model from %s", resume_from_checkpoint)
        report = self._engine.load_weights(self.model if model is None else model, resume_from_checkpoint)
        self._issue_warnings_after_load(report)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint."""
        best = self.state.best_model_checkpoint
        assert best is not None
        if reasons := ckpt.verify(best):
            raise ckpt.CheckpointError(f"the best checkpoint, {best}, cannot be loaded: {'; '.join(reasons)}")
        logger.info("loading the best model, %s (%s)", best, self.state.best_metric)
        self._issue_warnings_after_load(self._engine.load_weights(self.model, best))
        self._averages.load(best)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        for message in load_result.messages():
            logger.warning("%s", message)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not self._engine.load_optimizer(self.model, self.optimizer, checkpoint):
            logger.warning("%s has no %s: the optimizer starts afresh", checkpoint, ckpt.OPTIMIZER_NAME)
        if self._engine.keeps_schedule:
            return
        file = ckpt.Contents.of(checkpoint).file(ckpt.SCHEDULER_NAME)
        if file is not None:
            self.lr_scheduler.load_state_dict(ckpt.load_torch(file))
        else:
            logger.warning("%s has no %s: the schedule starts afresh", checkpoint, ckpt.SCHEDULER_NAME)

    def _load_scaler(self, checkpoint: str | None) -> None:
        file = None if checkpoint is None else ckpt.Contents.of(checkpoint).file(ckpt.SCALER_NAME)
        if file is not None and self._engine.scaler is not None:
            self._engine.scaler.load_state_dict(ckpt.load_torch(file))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore this process's random states."""
        if checkpoint is None:
            return
        engine, step = self._engine, self.state.global_step
        ckpt.restore_random_states(
            checkpoint, engine.random_rank, self.args.world_size, step=step, stream=engine.data_rank
        )

    # ---- callbacks ----

    def add_callback(self, callback: Any) -> None:
        """Add a callback: an instance, or a class to make one of."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove a callback, or the first of a class, and return it; None where there is none."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, or the first of a class."""
        self.callback_handler.remove_callback(callback)

    def _fire(self, event: str, *extra: Any) -> None:
        """Tell the callbacks; what they return becomes the control."""
        self.control = getattr(self.callback_handler, event)(self.args, self.state, self.control, *extra)

    def _exportable(self) -> list[Any]:
        from mainspring.state import is_exportable

        return [thing for thing in (*self.callback_handler.callbacks, self.control) if is_exportable(thing)]


_APART = "apart"
"""Where a checkpoint says how many processes read data of their own."""

_INNER = ("batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval")
_NO_CONTEXT: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def _start_worker(worker_id: int, num_workers: int, rank: int, seeds: bool) -> None:
    shield_worker()
    if seeds:
        seed_worker(worker_id, num_workers, rank)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)


def _one_processor(processing_class: Any, tokenizer: Any) -> Any:
    if tokenizer is None:
        return processing_class
    if processing_class is not None:
        raise ValueError("Trainer got both processing_class and its older spelling tokenizer: pass processing_class")
    warnings.warn("tokenizer=... is now processing_class=...", FutureWarning, stacklevel=3)
    return tokenizer


def _resume_argument(given: Any, kwargs: dict[str, Any]) -> Any:
    if "model_path" in kwargs:
        warnings.warn("train(model_path=...) is now resume_from_checkpoint=...", FutureWarning, stacklevel=3)
        given = kwargs.pop("model_path")
    if kwargs:
        raise TypeError(f"train() got unexpected arguments: {', '.join(kwargs)}")
    return given


def _overrides(trainer: Trainer, name: str) -> bool:
    """Whether a subclass, or the instance itself, replaces a method of `Trainer`."""
    method = getattr(trainer, name)
    return getattr(method, "__func__", method) is not getattr(Trainer, name)


__all__: Sequence[Literal["Trainer"]] = ["Trainer"]
