"""What users do with DeepSpeed beside a plain run: each returns what this process saw of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed as dist, nn

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments
from mainspring.callbacks.ema import EMACallback
from mainspring.errors import OptionError
from tests.deepspeed.runs import (
    ADAMW,
    DECAYS,
    EVALUATES,
    config,
    facts,
    held,
    logged,
    model,
    optimizer,
    options_of,
    series,
    trainer,
    weights,
)
from tests.helpers import data
from tests.helpers.seq2seq import tiny_t5

Probe = Callable[[Path], Any]
STAGES = range(4)


def each_stage(look: Callable[..., Any], stages: Any = STAGES, **sections: Any) -> Probe:
    """A probe that looks at several stages."""
    return lambda out: {
        str(stage): look(out / str(stage), **({} if stage is None else {"deepspeed": config(stage, **sections)}))
        for stage in stages
    }


def raised(call: Callable[[], Any]) -> str:
    """What a call is refused with."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 (whatever it is, the test reads it)
        return f"{type(error).__name__}: {error}"
    return "nothing"


def heard(call: Callable[[], Any]) -> Any:
    """What a call returns, or what it is refused with."""
    try:
        return call()
    except OptionError as error:
        return {"said": str(error)}


# ---- updates ----


class StopsInside(TrainerCallback):
    """Ends the first epoch inside its second update."""

    def __init__(self) -> None:
        self.calls = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Once."""
        self.calls += 1
        control.should_epoch_stop = self.calls == 5


ACCUMULATES = {"gradient_accumulation_steps": 4, "max_steps": -1, "num_train_epochs": 2}


def half_an_update(out: Path, **options: Any) -> Any:
    """Losses of a run in which an epoch is left inside an update."""
    run = trainer(out, callbacks=[StopsInside()], **ACCUMULATES, **options)
    run.train()
    return series(run)


def short_updates(out: Path, **options: Any) -> Any:
    """Losses where the last update of an epoch has fewer micro-batches."""
    longer = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3}
    run = trainer(out, **{**longer, "per_device_train_batch_size": 4}, **options)
    run.train()
    return series(run)


class FailsOnce(TrainerCallback):
    """Ends the run inside its second update."""

    def __init__(self) -> None:
        self.calls = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """With an error, once."""
        self.calls += 1
        if self.calls == 4:
            raise InterruptedError("inside an update")


def after_an_error(out: Path, **options: Any) -> Any:
    """Losses of a run after one that an error has ended inside an update."""
    run = trainer(out, callbacks=[FailsOnce()], gradient_accumulation_steps=4, **options)
    said = raised(run.train)
    run.train()
    return {**series(run), "said": said}


class Sometimes(nn.Module):
    """A regression of which one layer takes part in every second pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 1)
        self.passes = 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The squared error of one number for each row."""
        self.passes += 1
        inner = self.first(x) if self.passes % 2 else self.first(x) + self.other(x)
        found = self.head(inner.relu()).squeeze(-1)
        return {"loss": nn.functional.mse_loss(found, labels), "logits": found}


def without_gradients(out: Path, **options: Any) -> Any:
    """Losses where a parameter has no gradient in some updates, or in the first pass of each."""
    rows = [{"x": row["x"].float(), "labels": torch.tensor(row["labels"]).float()} for row in data.points(32)]
    plain = {} if options else {"ddp_find_unused_parameters": True}
    found = {}
    for parts in (1, 2):
        ways = {
            "optim": "sgd",
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "gradient_accumulation_steps": parts,
            **plain,
        }
        run = Trainer(Sometimes(), TrainingArguments(str(out), **options_of(**ways), **options), train_dataset=rows)
        run.train()
        found[str(parts)] = series(run)
    return found


class Ends(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Texts of which one process has fewer."""

    def __init__(self) -> None:
        self.items = data.ragged_text(12)

    def __iter__(self) -> Any:
        rank = dist.get_rank()
        return iter(self.items[: 8 if rank == 0 else 12])


class ReadsItsOwn(Trainer):
    """Whose processes read by themselves."""

    def get_train_dataloader(self) -> Any:
        """Not shared out."""
        return torch.utils.data.DataLoader(Ends(), batch_size=2, collate_fn=data.collate_text)


def uneven_data(out: Path, **options: Any) -> Any:
    """Losses where one process comes to the end before the other."""
    run = trainer(out, cls=ReadsItsOwn, **options)
    run.train()
    return series(run)


def own_tokens(out: Path, **options: Any) -> Any:
    """Losses normalised by each process's own labels."""
    run = trainer(out, average_tokens_across_devices=False, **options)
    run.train()
    return series(run)


def growing_scales(out: Path, **options: Any) -> Any:
    """Losses in fp16 with a loss scale that stays, and with one that doubles after the second update."""
    scales = {
        "stays": {"loss_scale": 256},
        "grows": {"loss_scale": 0, "initial_scale_power": 8, "loss_scale_window": 1},
    }
    ways = {"optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "max_grad_norm": 0.75}
    if "deepspeed" not in options:
        run = trainer(out, **ways)
        run.train()
        return series(run)
    ways["fp16"] = True
    found: dict[str, Any] = {}
    for name, section in scales.items():
        asked = {**options["deepspeed"], "fp16": {"enabled": "auto", **section}}
        run = trainer(out / name, **{**options, **ways, "deepspeed": asked})
        run.train()
        found[name] = {**series(run), "scale": run.deepspeed.optimizer.loss_scale}
    return found


# ---- what is passed ----


def given_optimizers(out: Path, **options: Any) -> Any:
    """An optimizer, an optimizer with its schedule, and a class, passed by the user."""
    found = {}
    own = model()
    made = torch.optim.AdamW(own.parameters(), lr=1e-2)
    run = trainer(out, own, given={"optimizers": (made, None)}, **options, **NO_DECAY)
    run.train()
    found["optimizer"] = {**series(run), "is_stepped": run.optimizer.inner is made if run.deepspeed else True}
    own = model()
    made = torch.optim.AdamW(own.parameters(), lr=1e-2)
    steady = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0 / (1 + step))
    run = trainer(out, own, given={"optimizers": (made, steady)}, **options, **NO_DECAY)
    run.train()
    found["both"] = series(run)
    run = trainer(out, given={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1e-2})}, **options)
    run.train()
    found["class"] = series(run)
    return found


NO_DECAY = {"weight_decay": 0.0}


def two_of_a_kind(out: Path) -> Any:
    """An optimizer, a class of one, or a schedule beside those of the configuration."""
    own = model()
    made = torch.optim.AdamW(own.parameters(), lr=1e-2)
    steady = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)
    theirs, moved = config(2, optimizer=ADAMW), config(2, scheduler=DECAYS)
    return {
        "optimizer": raised(lambda: trainer(out, own, given={"optimizers": (made, None)}, deepspeed=theirs)),
        "class": raised(
            lambda: trainer(out, given={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1})}, deepspeed=theirs)
        ),
        "schedule": raised(lambda: trainer(out, own, given={"optimizers": (made, steady)}, deepspeed=moved)),
    }


class OlderSeam(Trainer):
    """Makes optimizer and schedule as the older generation did."""

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Both at once."""
        super().create_optimizer_and_scheduler(num_training_steps)


def older_seam(out: Path) -> Any:
    """Rates and losses of such a trainer, with optimizers of either side."""
    found = {}
    for name, sections in (("ours", {}), ("theirs", {"optimizer": ADAMW})):
        run = trainer(out, cls=OlderSeam, deepspeed=config(2, **sections))
        run.train()
        found[name] = series(run)
    return found


def refused_optimizers(out: Path) -> Any:
    """What is said of optimizers that cannot be made here."""
    kinds = ("Lamb", "Lion", "OneBitAdam", "ZeroOneAdam", "OneBitLamb", "NoSuchThing")
    found = {
        kind: raised(lambda kind=kind: trainer(out, deepspeed=config(1, optimizer=optimizer(kind))).train())  # type: ignore[misc]
        for kind in kinds
    }
    strict = {**config(2), "zero_allow_untested_optimizer": False}
    found["untested"] = raised(lambda: trainer(out, deepspeed=strict, optim="sgd").train())
    return found


# ---- models ----


def frozen(out: Path, **options: Any) -> Any:
    """Losses where a part of the model is frozen."""
    own = model()
    own.transformer.h[0].requires_grad_(False)
    run = trainer(out, own, **options)
    run.train()
    return series(run)


def adapters(out: Path, **options: Any) -> Any:
    """Losses of adapters, what is saved of them, and of a run that goes on from the checkpoint."""
    import peft

    def build() -> Any:
        torch.manual_seed(3)
        settings = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        return peft.get_peft_model(model(), settings)

    saving = {"save_strategy": "steps", "save_steps": 2}
    run = trainer(out, build(), **saving, **options)
    run.train()
    run.save_model(str(out / "saved"))
    again = trainer(out.with_name(f"{out.name}-again"), build(), **saving, **options)
    again.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    dist.barrier()
    file = out / "saved" / "adapter_model.safetensors"
    return {**series(run), "again": logged(again), "sizes": {k: list(v.shape) for k, v in load_file(file).items()}}


class Notes(nn.Module):
    """A regression that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 1)
        self.seen: set[str] = set()

    def forward(self, x: Tensor, labels: Tensor, ids: Tensor | None = None) -> dict[str, Tensor]:
        """The squared error of one number for each row."""
        self.seen |= {f"x {x.dtype}", f"labels {labels.dtype}", f"ids {None if ids is None else ids.dtype}"}
        found = self.head(x).squeeze(-1)
        return {"loss": nn.functional.mse_loss(found, labels), "logits": found}


def kinds_of_numbers(out: Path, arguments: Any = TrainingArguments, cls: Any = Trainer) -> Any:
    """What the model is given, of rows in double precision with whole numbers beside."""
    rows = [
        {"x": row["x"].double(), "labels": torch.tensor(row["labels"]).double(), "ids": 3} for row in data.points(16)
    ]
    found = {}
    for name, ways in (("fp32", {}), ("bf16", {"bf16": True})):
        own = Notes()
        sections = {"bf16": {"enabled": True}} if ways else {}
        given = {**options_of(**ways), "weight_decay": 0.0}
        run = cls(own, arguments(str(out), deepspeed=config(2, **sections), **given), train_dataset=rows)
        run.train()
        found[name] = sorted(own.seen)
    return found


# ---- evaluation, generation ----


def without_training(out: Path, **options: Any) -> Any:
    """Losses before training, in it, and after it; or what is said of it."""
    run = trainer(out, **options, **EVALUATES)
    said = raised(run.evaluate)
    if said != "nothing":
        return {"said": said}
    engine = run.deepspeed
    before = {
        "loss": run.evaluate()["eval_loss"],
        "predicted": float(run.predict(run.eval_dataset).predictions.sum()),
        "stage": engine.zero_optimization_stage() if engine else None,
        "numbers": held(run),
        "same": run.deepspeed is engine,
    }
    run.train()
    return {
        "before": before,
        **series(run),
        "after": run.evaluate()["eval_loss"],
        "changed": run.deepspeed is not engine,
    }


def generations(out: Path, **options: Any) -> Any:
    """Sums of generated tokens, for texts of different lengths on each process, before and after training."""
    torch.manual_seed(0)
    own = tiny_t5()
    given = {**options_of(), "predict_with_generate": True, "generation_max_length": 12}
    run = Seq2SeqTrainer(
        own,
        Seq2SeqTrainingArguments(str(out), **given, **options),
        train_dataset=data.Items(data.ragged_text(40)),
        eval_dataset=data.Items(data.ragged_text(11, 9)),
        data_collator=data.collate_text,
    )
    found = []
    if options.get("deepspeed", config(3))["zero_optimization"]["stage"] == 3:
        found.append(int(run.predict(run.eval_dataset).predictions.sum()))
    run.train()
    return [*found, int(run.predict(run.eval_dataset).predictions.sum())]


def half_evaluations(out: Path, **options: Any) -> Any:
    """Losses of evaluations in half precision; what is said where the configuration trains in whole numbers."""
    said = raised(lambda: trainer(out, bf16_full_eval=True, **options))
    half = {**options["deepspeed"], "bf16": {"enabled": "auto"}}
    run = trainer(out, bf16_full_eval=True, deepspeed=half)
    run.train()
    after = run.evaluate()["eval_loss"]
    kinds = sorted({str(parameter.dtype) for parameter in run.model.parameters()})
    run.train()
    return {"said": said, "after": after, "kinds": kinds, **series(run)}


# ---- more than one run ----


def second_runs(out: Path, **options: Any) -> Any:
    """Losses of a second `train`, which goes on with the weights of the first."""
    run = trainer(out, **options)
    run.train()
    first = series(run)
    run.train()
    return {"first": first, "second": series(run), **(facts(run) if run.deepspeed else {})}


def new_models(out: Path, **options: Any) -> Any:
    """Losses of two runs that each begin with a model of their own."""
    run = Trainer(
        args=TrainingArguments(str(out), **options_of(**options)),
        model_init=model,
        train_dataset=data.Items(data.ragged_text(40)),
        data_collator=data.collate_text,
    )
    run.train()
    first = logged(run)
    run.train()
    return {"first": first, "second": logged(run)}


def after_plain(out: Path) -> Any:
    """Losses of a plain run between two with DeepSpeed, in one process."""
    found = []
    for stage in (3, None, 2):
        run = trainer(out, **({} if stage is None else {"deepspeed": config(stage)}))
        run.train()
        found.append([type(run.model_wrapped).__name__, logged(run)])
    return found


def averages_in_the_end(out: Path, **options: Any) -> Any:
    """Losses of a second run that begins with the averages of the first; or what is said of it."""
    run = trainer(out, callbacks=[EMACallback(0.5, load_at_end=True)], **options)
    run.train()
    after, said = run.evaluate()["eval_loss"], raised(run.train)
    return {"after": after, "said": said, **series(run)}


# ---- saving ----


def saved_models(out: Path) -> Any:
    """What `save_model` writes, with and without whole weights in the configuration, and whether they are the trained ones."""
    found = {}
    for stage in (2, 3):
        for gathers in (True, False):
            for half in (False, True):
                ways: dict[str, Any] = {"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": gathers}}
                folder = out / f"{stage}-{gathers}-{half}"
                run = trainer(folder, deepspeed=config(stage, **ways), bf16=half)
                run.train()
                trained = weights(run)
                run.save_model(str(folder))
                dist.barrier()
                files = sorted(path.name for path in folder.iterdir())
                note: dict[str, Any] = {"files": files}
                if "model.safetensors" in files:
                    stored = load_file(folder / "model.safetensors")
                    note["kind"] = sorted({str(tensor.dtype) for tensor in stored.values()})
                    note["equal"] = (
                        all(torch.equal(trained[name], stored[name]) for name in stored) if trained else None
                    )
                found[folder.name] = note
    return found


def best_models(out: Path, **options: Any) -> Any:
    """The evaluation loss of the best checkpoint, and of the model that was loaded from it in the end."""
    ways = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    run = trainer(out, load_best_model_at_end=True, metric_for_best_model="loss", **ways, **options)
    run.train()
    return {"best": run.state.best_metric, "after": run.evaluate()["eval_loss"], "losses": logged(run, "eval_loss")}


def recoveries(out: Path, **options: Any) -> Any:
    """Both documented ways to whole weights from Python, and what comes of training on with that model."""
    from deepspeed.utils.zero_to_fp32 import (
        get_fp32_state_dict_from_zero_checkpoint,
        load_state_dict_from_zero_checkpoint,
    )

    run = trainer(out, save_strategy="steps", save_steps=2, **options)
    run.train()
    trained = weights(run)
    last = str(out / "checkpoint-4")
    whole = get_fp32_state_dict_from_zero_checkpoint(last)
    equal = all(torch.equal(trained[name], whole[name].to(trained[name].dtype)) for name in whole) if trained else None
    run.deepspeed.save_checkpoint(str(out / "by_hand"))
    dist.barrier()
    said = raised(lambda: load_state_dict_from_zero_checkpoint(run.model, last))
    by_hand = raised(lambda: load_state_dict_from_zero_checkpoint(run.model, str(out / "by_hand")))
    return {
        "equal": equal,
        "said": said,
        "by_hand": by_hand,
        "sizes": [p.numel() for p in run.model.parameters()][:2],
        "evaluated": raised(run.evaluate),
        "trained": raised(run.train),
        "status": [str(getattr(p, "ds_status", None)) for p in run.model.parameters()][:2],
    }


# ---- models that were made in pieces ----


def constructed(out: Path) -> Any:
    """The first loss of a model whose class was called under `zero.Init`."""
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path={**config(3), "train_micro_batch_size_per_gpu": 4}):
        own = model()
    sizes = [p.numel() for p in own.parameters()][:2]
    said = raised(lambda: trainer(out, own, deepspeed=config(3)))
    return {"sizes": sizes, "said": said}


def loaded_in_pieces(out: Path) -> Any:
    """Losses of models that the library divided while it made them, and the numbers that each process held then."""
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    from mainspring.integrations import HfDeepSpeedConfig

    whole = model()
    whole.save_pretrained(out)
    dist.barrier()
    kept = HfDeepSpeedConfig({**config(3), "train_micro_batch_size_per_gpu": 4, "train_batch_size": 8})
    found = {}
    for name, make in (
        ("from_pretrained", lambda: GPT2LMHeadModel.from_pretrained(out)),
        ("from_config", lambda: AutoModelForCausalLM.from_config(whole.config)),
    ):
        own = make()
        sizes = [p.numel() for p in own.parameters()][:2]
        run = trainer(out / name, own, deepspeed=config(3))
        run.train()
        found[name] = {"sizes": sizes, "losses": logged(run)}
    del kept
    return found


def other_saves(out: Path, **options: Any) -> Any:
    """Losses after resuming a checkpoint that was written in the background, and files of one that holds the model only."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    run = trainer(out, save_in_background=True, **saving, **options)
    run.train()
    again = trainer(out / "again", **saving, **options)
    again.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    said = raised(lambda: trainer(out / "bare", save_only_model=True, **saving, **options).train())
    dist.barrier()
    files = sorted(path.name for path in (out / "bare" / "checkpoint-2").iterdir()) if said == "nothing" else []
    return {"losses": logged(run), "again": logged(again), "said": said, "files": files}


def from_plain(out: Path, **options: Any) -> Any:
    """Losses of a run that goes on from a checkpoint without DeepSpeed, whose weights must reach the optimizer's copies."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    plain = trainer(out / "plain", **saving)
    plain.train()
    run = trainer(out / "on", **options)
    run.train(resume_from_checkpoint=str(out / "plain" / "checkpoint-2"))
    return series(run)


PROBES: Mapping[str, Probe] = {
    "half_an_update": each_stage(half_an_update, (None, *STAGES)),
    "half_an_update_bf16": each_stage(partial(half_an_update, bf16=True), STAGES),
    "short_updates": each_stage(short_updates, (None, *STAGES)),
    "after_an_error": each_stage(after_an_error, (None, *STAGES)),
    "without_gradients": each_stage(without_gradients, (None, *STAGES)),
    "without_gradients_on_the_host": each_stage(
        without_gradients,
        (1, 2, 3),
        zero_optimization={"offload_optimizer": {"device": "cpu"}},
        zero_force_ds_cpu_optimizer=False,
    ),
    "uneven_data": each_stage(uneven_data, (None, *STAGES)),
    "growing_scales": each_stage(
        lambda out, **options: heard(partial(growing_scales, out, **options)), (None, *STAGES)
    ),
    "own_tokens": each_stage(own_tokens, (None, *STAGES)),
    "given_optimizers": each_stage(given_optimizers, (None, *STAGES)),
    "two_of_a_kind": two_of_a_kind,
    "older_seam": older_seam,
    "refused_optimizers": refused_optimizers,
    "frozen": each_stage(frozen, (None, *STAGES)),
    "kinds_of_numbers": kinds_of_numbers,
    "without_training": each_stage(without_training, (None, *STAGES)),
    "generations": each_stage(generations, (None, 2, 3)),
    "half_evaluations": each_stage(half_evaluations, (2, 3)),
    "second_runs": each_stage(second_runs, (None, *STAGES)),
    "averages_in_the_end": each_stage(averages_in_the_end, (None, 0, 1, 2)),
    "new_models": each_stage(new_models, (None, 2, 3)),
    "after_plain": after_plain,
    "saved_models": saved_models,
    "best_models": each_stage(best_models, (None, 2, 3)),
    "recoveries": each_stage(recoveries, (1, 2, 3)),
    "constructed": constructed,
    "loaded_in_pieces": loaded_in_pieces,
    "other_saves": each_stage(other_saves, (2, 3)),
    "from_plain": each_stage(from_plain, STAGES),
}
"""What two processes are asked, by name."""

if importlib.util.find_spec("peft"):
    PROBES = {**PROBES, "adapters": each_stage(adapters, (None, 2, 3))}
