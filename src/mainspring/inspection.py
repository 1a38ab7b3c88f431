"""What a trainer can say of a run before it begins: its plan, a learning rate, the memory it takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from mainspring.arguments.training_arguments import TrainingArguments
from mainspring.measuring.estimate import GradientSizes, MemoryCount, MemoryEstimate
from mainspring.measuring.estimate_divided import DividedMemoryEstimate, another_of, state_per_number
from mainspring.measuring.lr_finder import LearningRates, RangeTest, Rates, Record
from mainspring.rehearsal import Rehearsal

if TYPE_CHECKING:
    from mainspring.state import TrainPlan


class Inspection:
    """The methods of `Trainer` that answer questions and change nothing."""

    def plan(self: Any) -> TrainPlan:
        """What `train()` would do: updates, epochs and batch sizes, worked out without training.

        Where each of several processes reads data of its own, all of them have to ask: the longest share decides.
        """
        plan: TrainPlan = self._plan(self.args, self.get_train_dataloader())
        return plan

    def explain(self: Any, everything: bool = False, file: TextIO | None = None) -> None:
        """Print the options, as `args.explain` does, and, where there is training data, what `train()` would do."""
        out = file or sys.stdout
        if isinstance(self.args, TrainingArguments):
            self.args.explain(everything, out)
        else:
            out.write(f"{type(self.args).__module__} keeps no record of where its options came from.\n")
        if self.train_dataset is not None:
            plan = self.plan()
            out.write(f"The run: {self._summary(plan)}.\n")
            out.write(self._engine.explained(self.model, (plan.max_steps, self.args.get_warmup_steps(plan.max_steps))))

    def lr_find(
        self: Any,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        num_updates: int = 100,
        smoothing: float = 0.9,
        stop_factor: float = 4.0,
    ) -> LearningRates:
        """Try learning rates, each for one update, and say where the loss falls and where it diverges.

        The updates are those of training: its data, accumulation, optimizer and clipping. Afterwards everything is as it
        was, and `train()` does what it would have done. A data set without random access is begun again when it ends.
        Parameter groups move together. Of several processes all call this, and get the same.

        Args:
            min_lr: The first rate.
            max_lr: The last one.
            num_updates: How many rates are tried, in equal ratios.
            smoothing: What the running mean of the losses keeps of itself, at least 0 and below 1.
            stop_factor: The test ends where the smoothed loss is so many times the smallest so far, or is not finite.

        Returns:
            Rates and losses, with a `suggestion`; `str()` and `plot()` show them.

        Raises:
            OptionError: An argument is out of its range.
            ValueError: It cannot be taken back what it would do; or the optimizer chooses its rates itself.
        """
        record = Record(RangeTest(min_lr, max_lr, num_updates, smoothing, stop_factor))
        base = self.args.learning_rate if self.optimizer is None else None
        with Rehearsal(self, "lr_find()") as rehearsal:
            rates = Rates(rehearsal.optimizer, base)
            for rate in map(record.test.rate, range(num_updates)):
                rates.set(rate)
                if not record.add(rate, rehearsal.update()):
                    break
        return record.result()

    def estimate_memory(self: Any) -> MemoryEstimate | DividedMemoryEstimate:
        """How much memory a run takes, found by two of its updates, which are taken back.

        The second one finds the optimizer's states in place, as all later ones do. The batches are the first ones of
        training: where their sizes vary, others may take more. With accumulation, two micro-batches make an update: from the
        second on gradients are there. What callbacks keep, other than an average of the weights, is not counted.

        With DeepSpeed no update is tried, and its engine is not started: what each process keeps of weights, gradients and
        states is reckoned from the stage, and what DeepSpeed's own estimators say stands beside it.

        Returns:
            Bytes by what they are for; `str()` shows them.

        Raises:
            ValueError: They cannot be counted, or the updates cannot be taken back.
        """
        reckoned = self._engine.reckoned_memory(self.model, self.optimizer, lambda: _state_per_number(self))
        if reckoned is not None:
            return reckoned  # type: ignore[no-any-return]
        why_not = self._engine.why_not_measured()
        if self.args.torch_compile:
            why_not = "torch_compile=True: what compiled code allocates is not seen; ask without it"
        if why_not is not None:
            raise ValueError(f"estimate_memory() cannot be: {why_not}")
        gradients = GradientSizes(self.model)
        averages = self._averages.expected_bytes(self.model)
        with gradients.watch(), Rehearsal(self, "estimate_memory()", 2, [gradients]) as rehearsal:
            count = MemoryCount(self.model, rehearsal.optimizer, self._engine.device)
            for _ in range(2):
                rehearsal.update(count.counted)
            return count.estimate(gradients.bytes, averages)


def _state_per_number(trainer: Any) -> float:
    """Bytes that the run's optimizer will remember for each number of flat parameters."""
    if trainer.optimizer is not None:
        return state_per_number(another_of(trainer.optimizer))
    kind, given = trainer.optimizer_cls_and_kwargs or trainer._optimizer_choice(trainer.model)
    settings = {name: value for name, value in given.items() if name not in ("params", "model", "optimizer_dict")}
    return state_per_number(lambda parameters: kind(parameters, **settings))
