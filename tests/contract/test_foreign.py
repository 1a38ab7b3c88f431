"""Scripts written for the reference run after changing only the import, and objects of its classes are adopted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import DataLoader, SequentialSampler

from tests.helpers import data, models
from tests.helpers.sides import QUIET, REFERENCE, SUBJECT, Side, forget_process_state
from tests.parity.harness import differences, record, seed_all
from tests.parity.tasks import accuracy, mean_error

pytestmark = pytest.mark.parity


# --- a whole script of each generation -------------------------------------------------------------------------------


def newest_script(side: Side, output_dir: Path, prepared: bool) -> Any:
    """A realistic project: its own Trainer subclass with six overridden methods, arguments, callback and metrics."""
    Trainer: Any = side.api.Trainer
    TrainerCallback: Any = side.api.TrainerCallback

    class WeightedTrainer(Trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, class_weights: list[float], **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.class_weights = torch.tensor(class_weights)
            self.component_logs: dict[str, list[float]] = {"penalty": []}

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            weights = self.class_weights.to(outputs.logits.device)
            loss = torch.nn.functional.cross_entropy(outputs.logits, labels, weight=weights)
            penalty = 1e-3 * outputs.logits.pow(2).mean()
            if model.training:
                self.component_logs["penalty"].append(penalty.item())
            inputs["labels"] = labels
            return (loss + penalty, outputs) if return_outputs else loss + penalty

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            if self.args.n_gpu > 1:
                loss = loss.mean()
            loss = loss / self.args.gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

        def get_train_dataloader(self) -> Any:
            dataset = self._remove_unused_columns(self.train_dataset, description="training")
            loader = DataLoader(
                dataset,
                batch_size=self._train_batch_size,
                sampler=self._get_train_sampler(dataset),
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                drop_last=True,
            )
            return self.accelerator.prepare(loader) if prepared else loader

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            (folder / "class_weights.txt").write_text(str(self.class_weights.tolist()))

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs and self.component_logs["penalty"]:
                logs["penalty"] = float(np.mean(self.component_logs["penalty"]))
                self.component_logs["penalty"].clear()
            super().log(logs, start_time)

    class SaveAtThree(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_save = state.global_step == 3
            return control

    args = side.api.TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        weight_decay=0.01,
        warmup_steps=2,
        logging_steps=2,
        eval_strategy="epoch",
        save_strategy="no",
        remove_unused_columns=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **side.own_options,
    )
    rows = datasets.Dataset.from_list([{**row, "text": "unused"} for row in data.sentences(22)])
    trainer = WeightedTrainer(
        model=models.tiny_bert(0.1),
        args=args,
        train_dataset=rows,
        eval_dataset=rows.select(range(9)),
        compute_metrics=accuracy,
        callbacks=[SaveAtThree()],
        class_weights=[1.0, 3.0],
    )
    trainer.train()
    return trainer


def _run(script: Any, side: Side, folder: Path, *extra: Any) -> Any:
    forget_process_state()
    seed_all(7)
    trainer = script(side, folder, *extra)
    return trainer, record(trainer, trainer.evaluate(), folder)


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared loader", "plain loader"])
def test_a_script_runs_with_the_import_changed(prepared: bool, tmp_path: Path) -> None:
    """And gives the reference's numbers, with the marks of each of its overridden methods."""
    _, expected = _run(newest_script, REFERENCE, tmp_path / "reference", prepared)
    trainer, actual = _run(newest_script, SUBJECT, tmp_path / "subject", prepared)
    assert differences(expected, actual) == []
    assert (tmp_path / "subject" / "checkpoint-3" / "class_weights.txt").read_text() == "[1.0, 3.0]"
    assert all("penalty" in log for log in trainer.state.log_history if "loss" in log)
    assert trainer.state.global_step == 6


own = pytest.mark.skipif(SUBJECT.is_reference, reason="the newest reference dropped what 4.37 had")


def first_generation_script(side: Side, output_dir: Path) -> Any:
    """The same kind of project written for 4.37: old signatures, old spellings."""
    Trainer: Any = side.api.Trainer

    class OldTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            outputs = model(**inputs)
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            return (loss, outputs) if return_outputs else loss

        def training_step(self, model: Any, inputs: Any) -> Any:
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
            return loss.detach() / self.args.gradient_accumulation_steps

        def get_train_dataloader(self) -> Any:
            loader = DataLoader(
                self.train_dataset,
                batch_size=self.args.train_batch_size,
                sampler=self._get_train_sampler(),
                collate_fn=self.data_collator,
            )
            return self.accelerator.prepare(loader)

        def _get_train_sampler(self) -> Any:
            return SequentialSampler(self.train_dataset)

        def _save_checkpoint(self, model: Any, trial: Any, metrics: Any = None) -> None:
            super()._save_checkpoint(model, trial, metrics=metrics)
            self.saved = [*getattr(self, "saved", []), self.state.global_step]

        def log(self, logs: dict[str, float]) -> None:
            super().log({**logs, "marked": 1.0})

    args = side.api.TrainingArguments(
        str(output_dir),
        evaluation_strategy="steps",
        eval_steps=2,
        save_steps=2,
        logging_steps=2,
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        warmup_ratio=0.25,
        no_cuda=True,
        report_to=[],
        disable_tqdm=True,
        **side.own_options,
    )
    trainer = OldTrainer(
        models.tiny_bert(),
        args,
        train_dataset=data.Items(data.sentences(22)),
        eval_dataset=data.Items(data.sentences(9, 1)),
        tokenizer=models.word_tokenizer(),
        compute_metrics=accuracy,
    )
    trainer.train()
    return trainer


@own
def test_a_script_of_the_first_generation_runs(tmp_path: Path) -> None:
    """Every overridden method is reached in its old signature; the old option names mean what they meant."""
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        trainer, trace = _run(first_generation_script, SUBJECT, tmp_path)
    assert trainer.saved == [2, 4]
    assert [log["step"] for log in trace.logs if "eval_loss" in log] == [2, 4, 4]  # the last one from evaluate()
    assert all(log["marked"] == 1.0 for log in trace.logs)
    assert trainer.processing_class is trainer.tokenizer


# --- arguments and callbacks of the reference's classes ---------------------------------------------------------------


@dataclasses.dataclass
class OtherOptions:
    """Fields that a library building on the reference adds, two of them named like options of ours."""

    beta: float = 0.1
    compat: str = "not ours"
    pack_sequences: bool = True
    resume_log_window: str = "not ours either"


@dataclasses.dataclass
class LibraryConfig(OtherOptions, transformers.TrainingArguments):  # type: ignore[misc]
    """What such a library passes as `args`."""


def _foreign_arguments(folder: Path, **options: Any) -> Any:
    forget_process_state()
    return LibraryConfig(output_dir=str(folder), **{**QUIET, **options})


def test_foreign_arguments_are_adopted(tmp_path: Path) -> None:
    """A config derived from the reference's arguments trains, evaluates, saves and resumes."""
    options = {
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "num_train_epochs": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
    }

    def run(side: Side, folder: Path) -> Any:
        args = _foreign_arguments(folder, **options)
        seed_all(3)
        trainer = side.api.Trainer(
            model=models.Regressor(0.1),
            args=args,
            train_dataset=data.Items(data.points(24)),
            eval_dataset=data.Items(data.points(8, 1)),
            compute_metrics=mean_error,
        )
        trainer.train()
        assert trainer.args is args
        assert trainer.args.compat == "not ours"
        return record(trainer, None, folder)

    expected, actual = (run(side, tmp_path / side.name) for side in (REFERENCE, SUBJECT))
    assert _plain(_shared(actual.logs)) == _plain(_shared(expected.logs))
    assert _plain(actual.weights) == _plain(expected.weights)


def _shared(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What both log: foreign arguments cannot ask for the reference's rounding of the evaluation loss, nor for its keys."""
    ours = ("eval_loss", "nonfinite_steps", "clipped_fraction")
    return [{key: value for key, value in log.items() if key not in ours} for log in logs]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@own
def test_options_of_ours_are_never_read_off_foreign_arguments(tmp_path: Path) -> None:
    """The foreign field `compat` means something else; ours keeps its default."""
    from mainspring.arguments.compat import Behaviour
    from mainspring.arguments.own import own_options

    assert own_options(_foreign_arguments(tmp_path)) == Behaviour()


NOT_DEFAULT: dict[str, Any] = {
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "fsdp": True,
    "fsdp_config": {"version": 2},
    "generation_config": "folder",
    "generation_max_length": 20,
    "generation_num_beams": 2,
    "hub_model_id": "someone/something",
    "hub_revision": "other",
    "hub_strategy": "end",
    "hub_token": "secret",
    "length_column_name": "size",
    "optim_target_modules": "all-linear",
    "parallelism_config": object(),
    "project": "mine",
    "report_to": ["tensorboard"],
    "trackio_bucket_id": "bucket",
    "trackio_space_id": "space",
    "trackio_static_space_id": "static",
    "lr_scheduler_type": "greedy",
    "optim": "lomo",
    "train_sampling_strategy": "group_by_length",
}
"""What a user of the reference may give that is not available yet; True for the options that are not here."""

SET_LATER = frozenset({"deepspeed", "parallelism_config"})
"""Options that the reference only takes where another package is installed."""


def _unavailable_options() -> list[str]:
    from mainspring.arguments.not_yet import OPTIONS

    theirs = {field.name for field in dataclasses.fields(REFERENCE.api.Seq2SeqTrainingArguments)}
    return sorted((OPTIONS | {"report_to"}) & theirs)


@own
@pytest.mark.parametrize("name", _unavailable_options())
def test_foreign_arguments_cannot_ask_for_what_is_not_available(name: str, tmp_path: Path) -> None:
    """The reference resolved the value into a form of its own; it is refused, as in arguments of ours."""
    from mainspring.arguments.foreign import check_foreign
    from mainspring.errors import NotAvailableError

    forget_process_state()
    value = NOT_DEFAULT.get(name, True)
    given = {} if name in SET_LATER else {name: value}
    args = REFERENCE.api.Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="epoch", **given)
    if not given:
        setattr(args, name, value)
    with pytest.raises(NotAvailableError, match=f"^{name}=.*not available yet; ") as error:
        check_foreign(args)
    assert [problem.option for problem in error.value.problems] == [name]
    assert "secret" not in str(error.value)


@own
def test_all_that_foreign_arguments_ask_in_vain_comes_in_one_error(tmp_path: Path) -> None:
    from mainspring.arguments.foreign import check_foreign
    from mainspring.errors import NotAvailableError

    with pytest.raises(NotAvailableError) as error:
        check_foreign(_foreign_arguments(tmp_path, push_to_hub=True, hub_model_id="mine", report_to=["tensorboard"]))
    assert {p.option for p in error.value.problems} == {"push_to_hub", "hub_model_id", "report_to"}


@dataclasses.dataclass
class GeneratingConfig(OtherOptions, transformers.TrainingArguments):  # type: ignore[misc]
    """Its own fields are called as options of ours, of another class of ours, or of the older generation."""

    generation_max_length: int = 20
    sortish_sampler: bool = True
    group_by_length: bool = True
    tpu_num_cores: int = 8


@own
@pytest.mark.parametrize(
    "cls", [transformers.TrainingArguments, transformers.Seq2SeqTrainingArguments, LibraryConfig, GeneratingConfig]
)
def test_foreign_arguments_that_ask_for_nothing_more_pass(cls: Any, tmp_path: Path) -> None:
    from mainspring.arguments.foreign import check_foreign

    forget_process_state()
    check_foreign(cls(str(tmp_path), use_cpu=True))
    check_foreign(cls(str(tmp_path), **QUIET, optim="sgd", accelerator_config={"even_batches": True}))


@own
def test_foreign_arguments_say_how_they_accumulate_by_the_option(tmp_path: Path) -> None:
    """The reference would write the number into the option; arguments of its class are left as they are."""
    from mainspring.arguments.foreign import check_foreign
    from mainspring.errors import OptionError

    forget_process_state()
    given = {"gradient_accumulation_kwargs": {"num_steps": 4}}
    args = REFERENCE.api.TrainingArguments(str(tmp_path), use_cpu=True, accelerator_config=given)
    with pytest.raises(OptionError, match="num_steps.*use gradient_accumulation_steps instead"):
        check_foreign(args)
    args.gradient_accumulation_steps = 4
    check_foreign(args)


@own
def test_filled_in_settings_of_what_is_off_pass(tmp_path: Path) -> None:
    """Versions of the reference differ in what they write for nothing."""
    from mainspring.arguments.foreign import check_foreign

    args = _foreign_arguments(tmp_path)
    for off in (False, "", None, []):
        args.fsdp = off
        args.fsdp_config = {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False}
        check_foreign(args)
    for none in ("none", ["none"], []):
        args.report_to = none
        check_foreign(args)


def test_callbacks_of_the_reference_work(tmp_path: Path) -> None:
    """Derived from its `TrainerCallback`: called with our state and control, their control is honoured."""
    seen: list[str] = []
    base: Any = REFERENCE.api.TrainerCallback

    class Foreign(base):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            seen.append(f"step {state.global_step}")
            if state.global_step == 3:
                control.should_training_stop = True
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(f"log {sorted(logs)[0]}")

    trainer = SUBJECT.api.Trainer(
        model=models.Regressor(),
        args=SUBJECT.arguments(tmp_path, logging_steps=2),
        train_dataset=data.Items(data.points(22)),
        callbacks=[Foreign],
    )
    assert trainer.train().global_step == 3
    assert seen[:4] == ["step 1", "step 2", "log epoch", "step 3"]


@own
def test_inherited_handlers_of_foreign_callbacks_count_as_absent(tmp_path: Path) -> None:
    """The reference's do-nothing handlers cost nothing: they are not in the tuple of those that are called."""
    calls: list[str] = []
    base: Any = REFERENCE.api.TrainerCallback

    class OnlyLogs(base):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_"):
                calls.append(name)
            return super().__getattribute__(name)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pass

    trainer = SUBJECT.api.Trainer(
        model=models.Regressor(),
        args=SUBJECT.arguments(tmp_path, max_steps=5, logging_steps=1),
        train_dataset=data.Items(data.points(22)),
        callbacks=[OnlyLogs()],
    )
    calls.clear()
    trainer.train()
    assert calls.count("on_step_begin") <= 1
    assert calls.count("on_substep_end") <= 1


def test_the_references_own_callbacks_work(tmp_path: Path) -> None:
    """Its `EarlyStoppingCallback` and `PrinterCallback` on our Trainer."""
    trainer = SUBJECT.api.Trainer(
        model=models.Regressor(),
        args=SUBJECT.arguments(
            tmp_path,
            num_train_epochs=30,
            learning_rate=0.5,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            greater_is_better=False,
        ),
        train_dataset=data.Items(data.points(22)),
        eval_dataset=data.Items(data.points(8, 1)),
        callbacks=[REFERENCE.api.EarlyStoppingCallback(2), REFERENCE.api.PrinterCallback()],
    )
    assert trainer.train().global_step < 180


def test_a_dataset_and_collator_of_the_reference_work(tmp_path: Path) -> None:
    """Its padding collator with a tokenizer, passed by hand."""
    rows = [
        {"input_ids": row["input_ids"][: 3 + i % 4], "labels": row["label"]} for i, row in enumerate(data.sentences(12))
    ]
    trainer = SUBJECT.api.Trainer(
        model=models.tiny_bert(),
        args=SUBJECT.arguments(tmp_path, max_steps=2),
        train_dataset=rows,
        data_collator=REFERENCE.api.DataCollatorWithPadding(models.word_tokenizer(), pad_to_multiple_of=4),
    )
    assert trainer.train().global_step == 2
