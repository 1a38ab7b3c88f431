"""What can be seen of a tiny run: what the trainer built, what happened in which order, and what was left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback
from mainspring.evaluation.kept import Transfer
from mainspring.utils.logging import get_verbosity, set_verbosity
from tests.helpers import data, models, seq2seq
from tests.helpers.sides import forget_process_state

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")

LOADER_ATTRIBUTES = (
    "batch_size",
    "drop_last",
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "prefetch_factor",
    "in_order",
)


class Net(models.Regressor):
    """The regression network, able to recompute activations as far as its methods tell."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__()
        self.recomputing: list[Any] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        dtype = self.hidden.weight.dtype  # half precision in evaluations casts the weights alone
        return super().forward(x.to(dtype), None if labels is None else labels.to(dtype))

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        self.recomputing.append(gradient_checkpointing_kwargs)


class Recorder(TrainerCallback):
    """Writes down every event, and fails before the update `fails_before`."""

    def __init__(self, fails_before: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.signals: set[str] = set()
        self.restored: list[Any] = []
        self._fails_before = fails_before
        self._former = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}

    def state_dict(self) -> dict[str, int]:
        return {"events": len(self.events)}

    def load_state_dict(self, state: Any) -> None:
        self.restored.append(state)

    def _note(self, event: str, state: Any) -> None:
        self.events.append((event, state.global_step))
        now = {one: signal.getsignal(getattr(signal, one)) for one in SIGNALS}
        self.signals |= {one for one in SIGNALS if now[one] != self._former[one]}
        if event == "on_step_begin" and self._fails_before == state.global_step + 1:
            raise ZeroDivisionError("a mistake")


def _noting(event: str) -> Any:
    def note(self: Recorder, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note(event, state)

    return note


for _event in [name for name in vars(TrainerCallback) if name.startswith("on_")]:
    setattr(Recorder, _event, _noting(_event))


class Metrics:
    """Counts its calls, and notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[bool, bool, bool, str]] = []

    def __call__(self, prediction: Any, compute_result: bool = False) -> dict[str, float]:
        kind = type(prediction.predictions).__name__
        self.given.append((prediction.inputs is not None, prediction.losses is not None, compute_result, kind))
        return {"calls": float(len(self.given))}


def _points(count: int, seed: int, extra: dict[str, Any]) -> data.Items:
    return data.Items([{**item, **extra, "length": place} for place, item in enumerate(data.points(count, seed))])


def make_trainer(args: Any, *, fails_before: int | None = None, nan: bool = False) -> Trainer:
    """A trainer of ten samples, whose third has no target where `nan`."""
    torch.manual_seed(0)
    train = _points(10, 0, {"unused": 1.0})
    if nan:
        train.items[2]["labels"] = float("nan")
    return Trainer(
        Net(),
        args,
        train_dataset=train,
        eval_dataset=_points(9, 1, {"unused": 1.0}),
        compute_metrics=Metrics(),
        callbacks=[Recorder(fails_before)],
    )


def built(trainer: Trainer) -> dict[str, Any]:
    """The objects that a trainer makes of its options."""
    compiling = trainer.accelerator.state.dynamo_plugin
    return {
        "precision": trainer.accelerator.mixed_precision,
        "compiling": (str(compiling.backend), str(compiling.mode)),
        "wrapping": trainer._engine_options(),
        "verbosity": get_verbosity(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "callbacks": [type(callback).__name__ for callback in trainer.callback_handler.callbacks],
        "smoother": repr(trainer.label_smoother),
        "labels": trainer.label_names,
        "gathers": trainer.gather_function.__qualname__,
        "saver": (trainer._saver._raises, trainer._saver.in_background),
        "plan": trainer.plan(),
        "loaders": [_loader(trainer.get_train_dataloader()), _loader(trainer.get_eval_dataloader())],
    }


def _loader(loader: Any) -> list[Any]:
    context = getattr(loader.multiprocessing_context, "_name", None)
    kinds = [type(part).__name__ for part in (loader.sampler, loader.collate_fn)]
    return [*(getattr(loader, name) for name in LOADER_ATTRIBUTES), context, *kinds]


def ran(trainer: Trainer, **resume: Any) -> dict[str, Any]:
    """What happens in training, evaluation and prediction, and what is there afterwards."""
    recorder = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Recorder))
    ended = None
    with (
        mock.patch("accelerate.utils.memory.clear_device_cache") as cleared,
        mock.patch.object(Transfer, "to_host", autospec=True, side_effect=Transfer.to_host) as moved,
        heard() as messages,
    ):
        try:
            trainer.train(**resume)
        except (SystemExit, ZeroDivisionError) as end:
            ended = type(end).__name__
        metrics = trainer.evaluate()
        prediction = trainer.predict(_points(9, 2, {"unused": 1.0}))
    groups = [] if trainer.optimizer is None else trainer.optimizer.param_groups
    return {
        "ended": ended,
        "events": recorder.events,
        "restored": recorder.restored,
        "signals": recorder.signals,
        "announced": [message for message in messages if message.startswith("training")],
        "optimizer": (type(trainer.optimizer).__name__, [_plain(group) for group in groups]),
        "schedule": getattr(trainer.lr_scheduler, "last_epoch", None),
        "logs": [_timeless(logs) for logs in trainer.state.log_history],
        "best": (trainer.state.best_metric, trainer.state.best_global_step),
        "metrics": _timeless(metrics),
        "given to metrics": trainer.compute_metrics.given,
        "predictions": str(prediction.predictions),
        "weights": [value.tolist() for value in trainer.model.state_dict().values()],
        "recomputing": trainer.model.recomputing,
        "cleared": cleared.call_count,
        "moved": moved.call_count,
        "files": files_of(trainer),
    }


def error_at_nan(args: Any) -> str | None:
    """What ends a run in which one sample has no target."""
    try:
        make_trainer(args, nan=True).train()
    except ValueError as error:
        return str(error)
    return None


def files_of(trainer: Trainer) -> list[str]:
    """All that lies in the folder of the run."""
    folder = Path(trainer.args.output_dir)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value.item() if isinstance(value, Tensor) else value for name, value in group.items()}
    return {name: value for name, value in plain.items() if name != "params"}


def _timeless(logs: dict[str, Any]) -> dict[str, Any]:
    clocks = ("runtime", "per_second", "_time", "wait_fraction")
    return {name: value for name, value in logs.items() if not name.endswith(clocks)}


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The messages that the library logs meanwhile."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mainspring")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Put back what a trainer sets in the process."""
    verbosity, deterministic = get_verbosity(), torch.are_deterministic_algorithms_enabled()
    forget_process_state()
    with mock.patch.dict(os.environ):
        try:
            yield
        finally:
            set_verbosity(verbosity)
            torch.use_deterministic_algorithms(deterministic)
            forget_process_state()


def arguments(folder: Path, options: dict[str, Any]) -> Seq2SeqTrainingArguments:
    """The options of a run into `folder`."""
    return Seq2SeqTrainingArguments(**{"output_dir": str(folder), **options})


def evaluated_text(args: Any) -> float:
    """The loss of a language model over texts that have different numbers of labels."""
    torch.manual_seed(0)
    texts = data.Items(data.ragged_text(9, seed=1))
    trainer = Trainer(models.tiny_gpt2(), args, data_collator=data.collate_text, eval_dataset=texts)
    return trainer.evaluate()["eval_loss"]


def shape_of_text(args: Any) -> Any:
    """The shapes of a batch that a language model trains on."""
    texts = data.Items(data.ragged_text(12, seed=1))
    trainer = Trainer(models.tiny_gpt2(), args, data_collator=data.collate_text, train_dataset=texts)
    return {name: value.shape for name, value in next(iter(trainer.get_train_dataloader())).items()}


def has_logits(args: Any) -> list[bool]:
    """Whether the output of a language model has logits, in each step of a training."""
    model, seen = models.tiny_gpt2(), []
    model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.get("logits") is not None))
    texts = data.Items(data.ragged_text(12, seed=1))
    trainer = Trainer(model, args, data_collator=data.collate_text, train_dataset=texts)
    seen.clear()  # construction tries it
    trainer.train()
    return seen


def keys_of_text_logs(args: Any) -> list[str]:
    """What the logs of a language model's training tell."""
    texts = data.Items(data.ragged_text(12, seed=1))
    trainer = Trainer(models.tiny_gpt2(), args, data_collator=data.collate_text, train_dataset=texts)
    trainer.train()
    return sorted(next(log for log in trainer.state.log_history if "loss" in log))


def loss_of_text(args: Any) -> float:
    """The mean training loss of a language model."""
    torch.manual_seed(0)
    texts = data.Items(data.ragged_text(8, seed=1))
    trainer = Trainer(models.tiny_gpt2(), args, data_collator=data.collate_text, train_dataset=texts)
    return trainer.train().training_loss


def kernels_put_in(args: Any) -> list[Any]:
    """With which choice of kernels a model is patched for its training."""
    with mock.patch("mainspring.model_features.liger.patch") as patch:
        make_trainer(args).train()
    return [call.args[1:] for call in patch.call_args_list]


def memory_of_model(args: Any) -> list[bool]:
    """In which batches of a training and an evaluation the model is given what it gave before."""
    given = []

    class Recurrent(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None, mems: Tensor | None = None) -> Any:
            given.append(mems is not None)
            return super().forward(x, labels)

    trainer = Trainer(Recurrent(), args, train_dataset=_points(8, 0, {}), eval_dataset=_points(8, 1, {}))
    trainer.train()
    trainer.evaluate()
    return given


def generated(args: Any) -> Any:
    """What a sequence-to-sequence model predicts, and how many beams it is told to search with."""
    torch.manual_seed(0)
    model = seq2seq.tiny_bart()
    beams = []
    generate = model.generate
    model.generate = lambda **given: (beams.append(given.get("num_beams")), generate(**given))[1]
    trainer = Seq2SeqTrainer(model, args, data_collator=seq2seq.collate_pairs)
    predictions = trainer.predict(data.Items(seq2seq.pairs(3))).predictions
    return beams, predictions.shape if isinstance(predictions, np.ndarray) else None


def cache_of_model(args: Any) -> Any:
    """Whether a language model keeps its past."""
    return Trainer(models.tiny_gpt2(), args, train_dataset=data.Items(data.ragged_text(4))).model.config.use_cache


def on_a_machine_with_accelerator(args: Any) -> Any:
    """Whether the process asks Accelerate for the CPU, and whether loaders pin memory."""
    asked = []

    def state(cpu: bool = False, **_: Any) -> Any:
        asked.append(cpu)
        place = torch.device("cpu")
        return SimpleNamespace(device=place, num_processes=1, process_index=0, local_process_index=0)

    state._shared_state = {}  # type: ignore[attr-defined]
    with (
        mock.patch("mainspring.arguments.runtime._has_accelerator", return_value=True),
        mock.patch("accelerate.PartialState", state),
    ):
        _ = args.device
    return asked


def pinned(args: Any) -> Any:
    """Whether loaders pin memory where that helps."""
    with mock.patch("mainspring.data.loaders._pinning_helps", return_value=True):
        return make_trainer(args)._loader_options().as_arguments()["pin_memory"]


def folder_of_run(args: Any) -> list[Path]:
    """The folders named `run` that a trainer makes."""
    make_trainer(args)
    return [path for path in Path(args.output_dir).parent.iterdir() if path.name == "run"]


def passes_on_a_small_device(args: Any) -> list[int] | str:
    """Rows of the first passes of a model on a device that holds two of them, or how the training ended."""
    rows: list[int] = []

    class Small(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            rows.append(len(x))
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x, labels)

    try:
        Trainer(Small(), args, train_dataset=_points(8, 0, {})).train()
    except torch.OutOfMemoryError as error:
        return str(error)
    return rows


def gradients_at_once(args: Any) -> int:
    """The most gradients that are there together in a training."""
    model, alive = Net(), []

    def count(_: Any) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    Trainer(model, args, train_dataset=_points(8, 0, {})).train()
    return max(alive)
