"""Train with every configuration of the guide, and run its scripts, on this process of several."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import runpy
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed as dist

from tests.deepspeed.guide import (
    EXAMPLE,
    IN_FP16,
    SCATTERED,
    TRAINED,
    Use,
    as_it_stands,
    completed,
    files,
    is_offloaded,
    is_there,
)
from tests.deepspeed.probes import raised
from tests.deepspeed.results import RANK, Results
from tests.deepspeed.runs import compile_nothing, facts, model, series, trainer


def said_by(engine: Any) -> dict[str, Any]:
    """What the engine says of what it was configured with."""
    precisions = {(True, False): "bf16", (False, True): "fp16", (False, False): "fp32"}
    return {
        "batch": [
            engine.train_batch_size(),
            engine.train_micro_batch_size_per_gpu(),
            engine.gradient_accumulation_steps(),
        ],
        "clipping": engine.gradient_clipping(),
        "schedule": type(engine.lr_scheduler).__name__,
        "precision": precisions[bool(engine.bfloat16_enabled()), bool(engine.fp16_enabled())],
        "communication": str(engine.communication_data_type),
    }


def train(use: Use, out: Path) -> Any:
    """A run with one of the page's files."""
    config = completed(as_it_stands(use.block))
    if is_offloaded(config) and not is_there("cpu_adam"):
        return {"lacks": "a C++ compiler, for DeepSpeed's optimizer on the host"}
    file = out.with_suffix(".json")
    file.write_text(json.dumps(config))
    run = trainer(out, deepspeed=str(file), **use.options)
    run.train()
    inner = run.optimizer.inner
    return {**series(run), **facts(run), **said_by(run.deepspeed), "optimizer": type(inner).__name__}


def in_fp16(use: Use, out: Path) -> Any:
    """A run, where the device can compute so."""
    if get_accelerator().is_fp16_supported():
        return train(use, out)
    return {"lacks": "a device that computes in fp16"}


def on_a_device_without_fp16(use: Use, out: Path) -> str:
    """What is said of such a run on any other."""
    device = get_accelerator()
    device.is_fp16_supported = lambda: False
    try:
        return raised(lambda: train(use, out))
    finally:
        del device.is_fp16_supported


def script(name: str, folder: Path) -> str:
    """What one of the page's scripts prints, with its files beside it."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    if RANK == 0:
        Path("zero2.json").write_text(json.dumps(completed(as_it_stands("zero2.json"))))
        Path(name).write_text(files(".py")[name])
        model().save_pretrained("model")
    dist.barrier()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(name, run_name="__main__")
    return out.getvalue()


def example(folder: Path, stage: int) -> None:
    """An example script with one of the configurations that lie beside it."""
    from examples import image_classification as images, prepare_data

    torch.manual_seed(0)
    if RANK == 0:
        images.AutoModelForImageClassification.from_config(images.new_config("vit")).save_pretrained(folder / "vit")
    dist.barrier()
    file = prepare_data.HERE / "deepspeed" / f"zero{stage}.json"
    with pytest.MonkeyPatch.context() as patch:
        words = ["--deepspeed", str(file), "--per_device_train_batch_size", "16", "--output_dir", str(folder / "out")]
        patch.setattr(sys, "argv", ["script", *EXAMPLE, "--model_name_or_path", str(folder / "vit"), *words])
        images.main()


def main(folder: Path, names: list[str]) -> None:
    """Every use, then the scripts."""
    results = Results(folder / f"guide-{RANK}.json")
    compile_nothing()
    work: dict[str, Callable[[], Any]] = {
        **{name: partial(train, use, folder / name) for name, use in TRAINED.items()},
        **{name: partial(in_fp16, use, folder / name) for name, use in IN_FP16.items()},
        "no fp16": partial(on_a_device_without_fp16, IN_FP16["fp16 on"], folder / "no-fp16"),
        "scattered": lambda: raised(lambda: train(SCATTERED, folder / "scattered")),
        **{f"example {stage}": partial(example, folder / f"example-{stage}", stage) for stage in (2, 3)},
        **{name: partial(script, name, folder / "scripts") for name in files(".py")},
    }
    for name, find in work.items():
        if not names or name in names:
            results.note(name, find)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(500, exit=True)
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2:])
