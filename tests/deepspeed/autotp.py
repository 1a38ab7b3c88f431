"""Runs in which DeepSpeed divides the layers of a model over two processes (AutoTP), and what they come to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.deepspeed.runs import BATCH, EVALUATES, SAVED, SAVES, config, model as gpt2, series, trainer, weights
from tests.distributed.divided_models import llama, neox, qwen

TWO = {"parallelism_config": {"tp_size": 2}}
BY_CONFIG = {"tensor_parallel": {"autotp_size": 2}}
CLIPS = {"max_grad_norm": 0.1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": BATCH // 2}
GATHERS = {"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": True}}
HALF = {"bf16": {"enabled": "auto"}}


def tied() -> Any:
    """A llama whose output layer is its embedding."""
    return llama(tie_word_embeddings=True)


@dataclass(frozen=True)
class Divided:
    """One run.

    Attributes:
        make: Makes its model.
        stage: Of ZeRO.
        options: Its options beside DeepSpeed's.
        sections: Of its DeepSpeed configuration.
        sizes: The option that says how the processes share the run.
        tolerance: How far numbers may be from those of one process, relatively.
    """

    make: Callable[[], Any]
    stage: int
    options: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=lambda: TWO)
    tolerance: float = 1e-6


CASES: Mapping[str, Divided] = {
    **{f"llama_{stage}": Divided(llama, stage) for stage in range(3)},
    "llama_3": Divided(llama, 3, sections=GATHERS),
    "tied": Divided(tied, 2, sections=BY_CONFIG, sizes={}),
    "biases": Divided(neox, 2),
    "norms_of_heads": Divided(qwen, 0),
    **{f"clips_{stage}": Divided(neox, stage, CLIPS) for stage in (0, 2)},
    "half": Divided(llama, 1, {"bf16": True}, HALF, tolerance=2e-3),
}
REFUSED: Mapping[str, Divided] = {
    "no_plan": Divided(gpt2, 2),
    "averages": Divided(llama, 2, {"ema_decay": 0.5}),
    "in_pieces": Divided(llama, 3),
}


def made(case: Divided) -> Any:
    """Its model, the same at each call."""
    torch.manual_seed(0)
    return case.make()


def run_of(case: Divided, out: Path, **options: Any) -> Any:
    """Its trainer."""
    divided = {"deepspeed": config(case.stage, **{k: dict(v) for k, v in case.sections.items()}), **case.sizes}
    given = {"per_device_train_batch_size": BATCH, **EVALUATES, **SAVES, **case.options, **divided, **options}
    return trainer(out, made(case), **given)


def alone(case: Divided, out: Path) -> Any:
    """The same run of one process without DeepSpeed, trained."""
    run = trainer(out, made(case), **{"per_device_train_batch_size": BATCH, **EVALUATES, **SAVES, **case.options})
    run.train()
    return run


def train(case: Divided, out: Path) -> dict[str, Any]:
    """What a run was, what one that goes on from its checkpoint did, and what comes of its saved weights."""
    run = run_of(case, out)
    run.train()
    run.save_model(str(out / "model"))
    layer = next(name for name, p in made(case).named_parameters() if p.ndim == 2 and ".layers.0." in name)
    again = run_of(case, out.with_name(f"{out.name}-again"))
    again.train(resume_from_checkpoint=str(out / f"checkpoint-{SAVED}"))
    own, resumed = weights(run), weights(again)
    again._engine.load_weights(again.model, str(out / "model"))
    filled = weights(again)
    part = dict(run.model.named_parameters())[layer]
    return {
        **series(run),
        "again": series(again),
        "wrapper": type(run.model_wrapped).__name__,
        "stage": run.deepspeed.zero_optimization_stage(),
        "world_size": run.args.world_size,
        "batch": run.deepspeed.train_batch_size(),
        "sizes": [run.get_tp_size(), run._engine.data_world_size],
        "part": list(getattr(part, "ds_shape", part.shape)),
        "whole": list(dict(made(case).named_parameters())[layer].shape),
        "predicted": list(run.predict(run.eval_dataset).predictions.shape),
        "resumed_alike": all(torch.equal(own[name], resumed[name]) for name in own),
        "filled_alike": all(torch.equal(own[name], filled[name]) for name in own),
    }


def refusal(case: Divided, out: Path) -> str:
    """What a run that cannot be ends with."""
    try:
        run_of(case, out).train()
    except Exception as error:  # noqa: BLE001 (whatever it is, the test reads it)
        return f"{type(error).__name__}: {error}"
    return "nothing"


def from_one(out: Path) -> str:
    """What comes of the checkpoint of a run that divided nothing."""
    case = CASES["llama_2"]
    whole = trainer(out / "whole", made(case), deepspeed=config(2), **SAVES)
    whole.train()
    averaged = whole.deepspeed.seq_dp_world_size  # behind a run that divided layers
    try:
        run_of(case, out / "divided").train(resume_from_checkpoint=str(out / f"whole/checkpoint-{SAVED}"))
    except Exception as error:  # noqa: BLE001 (whatever it is, the test reads it)
        return f"{averaged}: {type(error).__name__}: {error}"
    return "nothing"


WORK: Mapping[str, Callable[[Path], Any]] = {
    **{f"autotp_{name}": functools.partial(train, case) for name, case in CASES.items()},
    **{f"autotp_{name}": functools.partial(refusal, case) for name, case in REFUSED.items()},
    "autotp_from_one": from_one,
}
