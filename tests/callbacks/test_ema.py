"""The average is the formula's, evaluations use it and leave no trace, and a resumed run has the same one to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from mainspring import EMACallback, Trainer, TrainerCallback, TrainingArguments, checkpoint as ckpt
from mainspring.callbacks.weight_average import WeightAverage
from mainspring.errors import OptionError, Preempted
from tests.helpers.runs import history, same, trainer, weights

DECAY = 0.7
ROOT = Path(__file__).resolve().parents[2]


def bias_corrected(series: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The formula, in float64: (1 - d) * sum of d^(t-i) w_i, over 1 - d^t."""
    t = len(series)
    total = sum((1 - decay) * decay ** (t - 1 - i) * w.double() for i, w in enumerate(series))
    return total / (1 - decay**t)


class Watch(TrainerCallback):
    """Keeps the weights after each update, and those that evaluations see."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.evaluated: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_prediction_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.evaluated[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}


def averaged(ema: EMACallback) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ema.averages().items()}


# ---- the formula ----


def test_the_average_is_the_formulas(tmp_path: Path) -> None:
    watch, ema = Watch(), EMACallback(DECAY)
    trainer(tmp_path, callbacks=[watch, ema], save_strategy="no").train()
    assert ema.updates == len(watch.after) == 9
    for name, average in ema.averages().items():
        wanted = bias_corrected([one[name] for one in watch.after], DECAY)
        torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=1e-7)


def test_the_first_average_is_the_first_weights_whatever_came_before() -> None:
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model)
    with torch.no_grad():
        model.weight.fill_(5.0)
    average.update(0.999)
    assert torch.equal(average.whole().tensors["weight"], torch.full((2, 2), 5.0))


def test_some_updates_are_left_out(tmp_path: Path) -> None:
    """From the fourth update on every second one: 5, 7, 9."""
    watch, ema = Watch(), EMACallback(DECAY, update_after_step=3, update_every=2)
    trainer(tmp_path, callbacks=[watch, ema], save_strategy="no").train()
    assert ema.updates == 3
    for name, average in ema.averages().items():
        wanted = bias_corrected([watch.after[step - 1][name] for step in (5, 7, 9)], DECAY)
        torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=1e-7)
    assert same(watch.evaluated[3], watch.after[2]), "before the first average the weights themselves are evaluated"


def test_half_precision_is_averaged_in_float32() -> None:
    """A step of the average of bf16 weights would be rounded away."""
    model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = WeightAverage(model)
    for weight in (1.0, *[1.0078125] * 20):
        with torch.no_grad():
            model.weight.fill_(weight)
        average.update(0.999)
    found = average.whole().tensors["weight"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1 + 0.0078125 * 20 / 21, abs=1e-4)


def test_a_skipped_update_does_not_move_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ema = EMACallback(DECAY)
    run = trainer(tmp_path, callbacks=[ema], save_strategy="no", eval_strategy="no")
    step, seen = run._engine.step, []

    def every_third_is_skipped(optimizer: Any) -> None:
        seen.append(1)
        run._engine.step_was_skipped = len(seen) % 3 == 0
        if not run._engine.step_was_skipped:
            step(optimizer)

    monkeypatch.setattr(run._engine, "step", every_third_is_skipped)
    run.train()
    assert (len(seen), ema.updates) == (9, 6)


def test_an_update_reads_nothing_from_the_device() -> None:
    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert "_local_scalar_dense" not in str(function), "a value was read"
            return function(*args, **(kwargs or {}))

    average = WeightAverage(torch.nn.Linear(3, 3))
    with Reads():
        average.update(0.9)


# ---- evaluations ----


def test_evaluations_use_the_average_and_training_does_not_notice(tmp_path: Path) -> None:
    watch = Watch()
    ema = EMACallback(DECAY)
    run = trainer(tmp_path / "with", callbacks=[watch, ema], save_strategy="no")
    run.train()
    plain = trainer(tmp_path / "without", save_strategy="no")
    plain.train()
    assert same(weights(run), weights(plain))
    for step in (3, 6, 9):
        for name, seen in watch.evaluated[step].items():
            wanted = bias_corrected([one[name] for one in watch.after[:step]], DECAY)
            torch.testing.assert_close(seen.double(), wanted, rtol=1e-5, atol=1e-7)
    losses = [log["eval_loss"] for log in history(run) if "eval_loss" in log]
    assert losses != [log["eval_loss"] for log in history(plain) if "eval_loss" in log]
    after_training, predicted = run.evaluate(), run.predict(run.eval_dataset)
    assert after_training["eval_loss"] == predicted.metrics["test_loss"] == losses[-1]
    assert same(weights(run), weights(plain))


def test_evaluations_can_use_the_weights_themselves(tmp_path: Path) -> None:
    logs = []
    for callbacks in ([EMACallback(DECAY, use_for_eval=False)], []):
        run = trainer(tmp_path, callbacks=callbacks, save_strategy="no")
        run.train()
        logs.append(history(run))
    assert logs[0] == logs[1]


def test_an_exception_in_an_evaluation_puts_the_weights_back(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        before: dict[str, torch.Tensor]

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("no more")

    fails = Fails()
    run = trainer(tmp_path, callbacks=[fails, EMACallback(DECAY)], save_strategy="no")
    with pytest.raises(OSError, match="no more"):
        run.train()
    assert same(weights(run), fails.before)


def test_a_metric_may_predict_with_the_average_inside_an_evaluation(tmp_path: Path) -> None:
    """The inner one puts back the average, the outer one the weights."""
    runs: list[Trainer] = []

    def metric(prediction: Any) -> dict[str, float]:
        if len(runs) == 1 and not runs[0].control.should_save:
            inner = runs.pop()
            loss = inner.predict(inner.eval_dataset).metrics["test_loss"]
            runs.append(inner)
            return {"inner": loss}
        return {}

    ema = EMACallback(DECAY)
    run = trainer(tmp_path, callbacks=[ema], save_strategy="no", metric=metric)
    run.train()
    before = weights(run)
    runs.append(run)
    metrics = run.evaluate()
    assert metrics["eval_inner"] == metrics["eval_loss"]
    assert same(before, weights(run))


# ---- checkpoints ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, dict[str, torch.Tensor]]:
    ema = EMACallback(DECAY, update_every=2)
    run = trainer(tmp_path_factory.mktemp("whole"), callbacks=[ema])
    run.train()
    return run, averaged(ema)


@pytest.mark.parametrize("step", range(1, 10))
def test_a_resumed_run_has_the_same_average(step: int, whole: Any, tmp_path: Path) -> None:
    uninterrupted, expected = whole
    ema = EMACallback(DECAY, update_every=2)
    resumed = trainer(tmp_path, callbacks=[ema], save_strategy="no")
    resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / f"checkpoint-{step}")
    assert same(expected, averaged(ema))
    assert same(weights(uninterrupted), weights(resumed))
    assert history(resumed) == history(uninterrupted)


def test_a_checkpoint_lists_the_average_beside_the_weights_themselves(whole: Any) -> None:
    run, expected = whole
    folder = Path(run.args.output_dir) / "checkpoint-9"
    assert "ema.safetensors" in ckpt.read_manifest(folder).files
    assert same(load_file(folder / "ema.safetensors"), expected)
    assert torch.equal(
        load_file(folder / "model.safetensors")["transformer.ln_f.weight"], run.model.transformer.ln_f.weight
    )
    (folder / "ema.safetensors").write_bytes(b"")
    assert ckpt.verify(folder)


def test_stopped_inside_an_evaluation_the_checkpoint_has_the_weights_themselves(whole: Any, tmp_path: Path) -> None:
    class Stops(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    uninterrupted, expected = whole
    stopped = trainer(tmp_path, callbacks=[Stops(), EMACallback(DECAY, update_every=2)], save_steps=100)
    with pytest.raises(Preempted):
        stopped.train()
    assert stopped.state.global_step == 6
    stored = Path(uninterrupted.args.output_dir) / "checkpoint-6"
    for name in ("model.safetensors", "ema.safetensors"):
        assert same(load_file(tmp_path / "checkpoint-6" / name), load_file(stored / name))
    ema = EMACallback(DECAY, update_every=2)
    resumed = trainer(tmp_path, callbacks=[ema], save_steps=100)
    resumed.train(resume_from_checkpoint=True)
    assert same(expected, averaged(ema))
    assert history(resumed) == history(uninterrupted)


def test_killed_and_resumed_it_is_the_same(whole: Any, tmp_path: Path) -> None:
    """The process is killed in the middle of the sixth update."""
    uninterrupted, expected = whole
    script = f"""
import os, signal
from mainspring import EMACallback, TrainerCallback
from tests.helpers.runs import trainer

class Kills(TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

trainer({str(tmp_path)!r}, callbacks=[EMACallback({DECAY}, update_every=2), Kills()]).train()
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ema = EMACallback(DECAY, update_every=2)
    resumed = trainer(tmp_path, callbacks=[ema])
    resumed.train(resume_from_checkpoint=True)
    assert same(expected, averaged(ema))
    assert same(weights(uninterrupted), weights(resumed))


def test_saved_in_the_background_it_is_that_of_its_step(whole: Any, tmp_path: Path) -> None:
    uninterrupted, _ = whole
    trainer(tmp_path, callbacks=[EMACallback(DECAY, update_every=2)], save_in_background=True).train()
    for step in (3, 4, 8):
        file = Path(f"checkpoint-{step}") / "ema.safetensors"
        assert same(load_file(tmp_path / file), load_file(Path(uninterrupted.args.output_dir) / file))


def test_a_checkpoint_without_one_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, max_steps=2).train()
    ema = EMACallback(DECAY)
    trainer(tmp_path, max_steps=4, callbacks=[ema]).train(resume_from_checkpoint=True)
    assert "begins anew" in caplog.text
    assert ema.updates == 2


def test_averages_of_other_parameters_are_refused(tmp_path: Path) -> None:
    average, other = WeightAverage(torch.nn.Linear(2, 2)), WeightAverage(torch.nn.Linear(2, 2, bias=False))
    average.update(DECAY)
    with pytest.raises(ckpt.CheckpointError, match="bias differs"):
        other.load(average.whole())


def test_the_best_model_is_loaded_with_its_average(tmp_path: Path) -> None:
    """The second of three evaluations is the best one: what is evaluated afterwards is what was then."""
    scores = iter([0.1, 0.9, 0.2, 0.0])
    ema = EMACallback(DECAY)
    run = trainer(
        tmp_path,
        callbacks=[ema],
        metric=lambda prediction: {"score": next(scores)},
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    run.train()
    losses = [log["eval_loss"] for log in history(run) if "eval_loss" in log]
    best = Path(run.state.best_model_checkpoint)
    assert best.name == "checkpoint-6"
    assert same(load_file(best / "ema.safetensors"), averaged(ema))
    assert torch.equal(load_file(best / "model.safetensors")["transformer.ln_f.bias"], run.model.transformer.ln_f.bias)
    assert run.evaluate()["eval_loss"] == losses[1] not in (losses[0], losses[2])


def test_a_best_model_without_averages_is_evaluated_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is of a run that had none, and was gone on with: the averages since then are of other weights."""
    scores = iter([0.9, 0.1, 0.1, 0.1])
    options = {
        "metric": lambda prediction: {"score": next(scores)},
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
    }
    trainer(tmp_path, max_steps=3, **options).train()
    ema = EMACallback(DECAY)
    run = trainer(tmp_path, max_steps=6, callbacks=[ema], **options)
    run.train(resume_from_checkpoint=True)
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-3"
    assert "evaluations use the weights themselves" in caplog.text
    assert (ema.updates, ema.averages()) == (0, {})
    first = next(log["eval_loss"] for log in history(run) if "eval_loss" in log)
    assert run.evaluate()["eval_loss"] == first


def test_the_model_can_end_with_the_averages_for_weights(tmp_path: Path) -> None:
    ema = EMACallback(DECAY, load_at_end=True)
    run = trainer(tmp_path, callbacks=[ema], save_strategy="no")
    run.train()
    assert same({name: p.detach() for name, p in run.model.named_parameters()}, averaged(ema))


def test_a_script_can_save_the_averages(tmp_path: Path) -> None:
    ema = EMACallback(DECAY)
    run = trainer(tmp_path, callbacks=[ema], save_strategy="no")
    run.train()
    before = weights(run)
    with ema.in_model():
        run.save_model(str(tmp_path / "averaged"))
    saved = load_file(tmp_path / "averaged" / "model.safetensors")
    assert all(torch.equal(saved[name], average) for name, average in averaged(ema).items() if name in saved)
    assert same(before, weights(run))


# ---- models ----


def test_only_what_is_trained_is_averaged(tmp_path: Path) -> None:
    ema = EMACallback(DECAY)
    run = trainer(tmp_path, callbacks=[ema], save_strategy="no", max_steps=2)
    run.model.transformer.wte.weight.requires_grad_(False)
    run.train()
    assert "transformer.wte.weight" not in ema.averages()
    assert "transformer.ln_f.weight" in ema.averages()


def test_of_a_peft_model_the_adapters_are_averaged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ema = EMACallback(DECAY)
    run = trainer(tmp_path, callbacks=[ema], max_steps=2)
    run.model = peft.get_peft_model(run.model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    run.train()
    assert ema.averages()
    assert all("lora_" in name for name in ema.averages())


def test_a_new_model_has_a_new_average(tmp_path: Path) -> None:
    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Linear(2, 1)

    class Sum(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
            loss = model(inputs["x"]).square().mean()
            return (loss, loss) if kwargs.get("return_outputs") else loss

    ema = EMACallback(DECAY)
    rows = [{"x": torch.randn(2, generator=torch.Generator().manual_seed(i))} for i in range(8)]
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=3, save_strategy="no", remove_unused_columns=False
    )
    run = Sum(args=args, model_init=model, train_dataset=rows, callbacks=[ema])
    run.train()
    first = averaged(ema)
    run.train()
    assert ema.updates == 3
    assert same(first, averaged(ema))


# ---- the option, and what cannot be ----


def test_the_option_brings_the_callback(tmp_path: Path) -> None:
    run = trainer(tmp_path, ema_decay=0.9)
    (ema,) = [callback for callback in run.callback_handler.callbacks if isinstance(callback, EMACallback)]
    assert ema.decay == 0.9
    with pytest.raises(OptionError, match="two of them"):
        trainer(tmp_path, ema_decay=0.9, callbacks=[EMACallback()])


@pytest.mark.parametrize(
    "wrong",
    [{"decay": 0.0}, {"decay": 1.0}, {"decay": float("nan")}, {"update_every": 0}, {"update_after_step": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_arguments_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EMACallback(**wrong)
    if "decay" in wrong:
        with pytest.raises(OptionError, match="ema_decay"):
            TrainingArguments("x", ema_decay=wrong["decay"])


def test_optimizers_that_average_by_themselves_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    with pytest.raises(OptionError, match="ema_decay"):
        TrainingArguments("x", ema_decay=0.9, optim="schedule_free_adamw")
    run = trainer(tmp_path, callbacks=[EMACallback()], optim="schedule_free_adamw", lr_scheduler_type="constant")
    with pytest.raises(ValueError, match="an average of the weights itself"):
        run.train()


def test_a_model_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        WeightAverage(torch.nn.Linear(1, 1).requires_grad_(False))
