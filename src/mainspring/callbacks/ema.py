"""`EMACallback`: an exponential moving average of the weights, evaluated with, saved, and exact on a resume."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mainspring import checkpoint as ckpt
from mainspring.callbacks.base import TrainerCallback
from mainspring.errors import OptionError, Problem
from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    import torch

    from mainspring.arguments.training_arguments import TrainingArguments
    from mainspring.callbacks.weight_average import WeightAverage
    from mainspring.state import TrainerControl, TrainerState

logger = get_logger(__name__)


class EMACallback(TrainerCallback):
    r"""Keeps an exponential moving average of the weights that are trained, and evaluates with it.

    The formula, and the papers it is from, are at `mainspring.callbacks.weight_average.WeightAverage`: it is
    bias-corrected, so that the weights of the beginning leave no trace.

    What is averaged are the parameters that require a gradient when training begins: of a PEFT model its adapters. Buffers
    are not averaged; evaluations use the model's own, such as the running statistics of batch normalisation.

    Evaluations and predictions, within training and after it, use the averages, from the first of them on: so it is by
    them that `metric_for_best_model` chooses. Training goes on with the weights themselves, which are put back bit for bit. They
    are what `model.safetensors` of a checkpoint and `save_model` hold; the averages lie beside them in `ema.safetensors`.
    `load_best_model_at_end` loads both of the best checkpoint.

    An update that was skipped, for an overflow in fp16 or otherwise, does not move the average.

    Args:
        decay: What the average keeps of itself each time, d: it looks back on about 1/(1-d) of the weights it is given.
        update_after_step: Updates before the first weights are averaged.
        update_every: Average the weights of every so many updates only; the decay counts these.
        device: Where the averages lie, such as "cpu", which is waited for at each update; None: with the weights.
        use_for_eval: Whether evaluations and predictions use them.
        load_at_end: Whether the model has the averages for weights when training has ended, rather than the weights
            themselves.

    Raises:
        ValueError: An argument is out of its range.

    >>> ema = EMACallback(decay=0.99)
    >>> trainer = Trainer(..., callbacks=[ema])  # doctest: +SKIP
    >>> with ema.in_model():  # doctest: +SKIP
    ...     trainer.save_model("averaged")
    """

    def __init__(
        self,
        decay: float = 0.999,
        update_after_step: int = 0,
        update_every: int = 1,
        device: torch.device | str | None = None,
        use_for_eval: bool = True,
        load_at_end: bool = False,
    ) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay!r}: the average keeps a share of itself; choose a number between 0 and 1")
        for name, value, least in (("update_after_step", update_after_step, 0), ("update_every", update_every, 1)):
            if value < least:
                raise ValueError(f"{name}={value!r}: a number of updates; choose at least {least}")
        self.decay = decay
        self.update_after_step = update_after_step
        self.update_every = update_every
        self.device = device
        self.use_for_eval = use_for_eval
        self.load_at_end = load_at_end
        self._average: WeightAverage | None = None
        self._saved: ckpt.NamedTensors | None = None  # of the checkpoint, until training begins

    # ---- what users ask of it ----

    @property
    def updates(self) -> int:
        """How many weights are averaged; with 0 there is no average yet, and evaluations use the weights themselves."""
        return 0 if self._average is None else self._average.updates

    def averages(self) -> dict[str, Any]:
        """The averages by the parameters' names, whole: all processes call this together. Empty before the first."""
        return {} if self._average is None else dict(self._average.whole().tensors)

    def in_model(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the averages are the model's weights; nothing changes where there are none yet."""
        return self._average.in_model() if self._average is not None and self.updates else contextlib.nullcontext()

    # ---- events ----

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begin to average, or go on from the checkpoint.

        Raises:
            ValueError: The optimizer keeps an average of its own; or there is nothing to average.
        """
        from mainspring.callbacks.weight_average import WeightAverage

        if callable(getattr(optimizer, "eval", None)):
            raise ValueError(
                f"{type(optimizer).__name__} keeps an average of the weights itself, with which it evaluates: leave "
                "EMACallback and ema_decay out"
            )
        self._average = WeightAverage(model, self.device)
        saved, self._saved = self._saved, None
        if saved is not None:
            self._average.load(saved)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Put the averages into the model, where that was asked for."""
        from mainspring.model import tell_of_filling, unwrap

        if self.load_at_end and self._average is not None and self.updates:
            tell_of_filling(unwrap(model))
            self._average.copy_to_model()

    def update(self, step: int) -> None:
        """Average the weights that update `step` has made, if it is its turn. The loop calls this; it is no event.

        What callbacks do to the weights in `on_optimizer_step` is behind them then.
        """
        since = step - self.update_after_step
        if self._average is not None and since > 0 and since % self.update_every == 0:
            self._average.update(self.decay)

    # ---- checkpoints ----

    def save(self, folder: str, writes: bool) -> None:
        """Write the averages into a checkpoint; every process calls it, and one of them writes."""
        if self._average is None:
            return
        whole = self._average.whole()
        if writes:
            ckpt.save_tensors(whole, os.path.join(folder, ckpt.EMA_NAME))

    def resume(self, folder: str) -> None:
        """Let the training that begins go on from the averages of a checkpoint.

        Raises:
            CheckpointError: They are damaged.
        """
        self._saved = _averages_in(folder)
        if self._saved is None:
            logger.warning("%s has no %s: the average of the weights begins anew", folder, ckpt.EMA_NAME)

    def load(self, folder: str) -> None:
        """Replace the averages by those of a checkpoint; where it has none, the present ones are of other weights, and go.

        Raises:
            CheckpointError: They are damaged, or of other parameters.
        """
        if self._average is None:
            return
        saved = _averages_in(folder)
        if saved is not None:
            self._average.load(saved)
        else:
            self._average.updates = 0
            logger.warning("%s has no %s: evaluations use the weights themselves", folder, ckpt.EMA_NAME)

    def copied(self) -> dict[str, Any]:
        """A copy of the averages in the host's memory, to go back to within a run: tensors, and plain values."""
        if self._average is None:
            return {}
        whole = self._average.whole()
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in whole.tensors.items()}
        return {"tensors": tensors, "facts": dict(whole.facts)}

    def put_back(self, copied: Mapping[str, Any]) -> None:
        """Make the averages what `copied` gave."""
        if self._average is not None and copied:
            self._average.load(ckpt.NamedTensors(copied["tensors"], copied["facts"]))

    def nbytes(self) -> int:
        """Bytes of the averages that lie here."""
        return 0 if self._average is None else self._average.nbytes()


def _averages_in(folder: str) -> ckpt.NamedTensors | None:
    file = ckpt.Contents.of(folder).file(ckpt.EMA_NAME)
    return None if file is None else ckpt.load_tensors(file)


class AveragesOfRun:
    """What a run asks of the `EMACallback` among its callbacks; nothing happens where there is none.

    Args:
        callbacks: Those of the run.
    """

    def __init__(self, callbacks: Iterable[Any]) -> None:
        self._found = [callback for callback in callbacks if isinstance(callback, EMACallback)]

    def check(self, decay: float | None, why_not: str | None) -> None:
        """Refuse what cannot be.

        Args:
            decay: The option `ema_decay`, which brings a callback of its own.
            why_not: Why the engine cannot have weights averaged; None: it can.

        Raises:
            OptionError: There are two of them; or the engine cannot.
        """
        value = decay if decay is not None else "EMACallback"
        if len(self._found) > 1:
            why, fix = "there are two of them, and evaluations use one average", "pass one EMACallback, or the option"
            raise OptionError([Problem("ema_decay", value, why, fix)])
        if self._found and why_not is not None:
            raise OptionError([Problem("ema_decay", value, why_not, "leave the option and the callback out")])

    def update(self, step: int, was_skipped: bool) -> None:
        """Let them average the weights of an update, unless it changed none."""
        for callback in () if was_skipped else self._found:
            callback.update(step)

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """The weights to evaluate with are the model's in the body."""
        with contextlib.ExitStack() as swapped:
            for callback in self._found:
                if callback.use_for_eval:
                    swapped.enter_context(callback.in_model())
            yield

    def save(self, folder: str, writes: bool) -> None:
        """Write them into a checkpoint; every process calls this."""
        for callback in self._found:
            callback.save(folder, writes)

    def resume(self, folder: str) -> None:
        """Let them go on from a checkpoint."""
        for callback in self._found:
            callback.resume(folder)

    def load(self, folder: str) -> None:
        """Replace them by those of a checkpoint."""
        for callback in self._found:
            callback.load(folder)

    def copied(self) -> list[dict[str, Any]]:
        """Copies of them, to go back to within a run."""
        return [callback.copied() for callback in self._found]

    def put_back(self, copied: Iterable[Mapping[str, Any]]) -> None:
        """Make them what `copied` gave."""
        for callback, one in zip(self._found, copied, strict=True):
            callback.put_back(one)

    def expected_bytes(self, model: Any) -> int:
        """Bytes that they will take beside `model`."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        size: int = sum(parameter.numel() * max(parameter.element_size(), 4) for parameter in trained)
        return size * sum(callback.device is None for callback in self._found)

    def nbytes(self) -> int:
        """Bytes that a checkpoint has for them."""
        return sum(callback.nbytes() for callback in self._found)
