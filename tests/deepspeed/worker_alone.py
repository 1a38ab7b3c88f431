"""A user's script, started by no launcher, by one of several, or in a notebook: each run's facts and numbers."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mainspring import HfArgumentParser, TrainingArguments
from mainspring.integrations import HfDeepSpeedConfig
from tests.deepspeed.runs import compile_nothing, config, facts, model, options_of, series, trainer


def one(out: Path, stage: int | None) -> dict[str, Any]:
    """A run; without DeepSpeed where there is no stage."""
    run = trainer(out, **({} if stage is None else {"deepspeed": config(stage)}))
    run.train()
    said = {"wrapper": type(run.model_wrapped).__name__, "engine": run._engine.kind} if stage is None else facts(run)
    return {**series(run), **said, "after": run.evaluate()["eval_loss"]}


def in_pieces(out: Path) -> dict[str, Any]:
    """A model that is divided while it is loaded, before anybody has made a world for this process."""
    from transformers import GPT2LMHeadModel

    model().save_pretrained(out)
    kept = HfDeepSpeedConfig({**config(3), "train_batch_size": 8})
    own = GPT2LMHeadModel.from_pretrained(out)
    empty = sum(parameter.numel() for parameter in own.parameters()) == 0
    del kept
    run = trainer(out, own, deepspeed=config(3))
    run.train()
    return {**series(run), **facts(run), "empty": empty}


def alone(out: Path) -> Any:
    """Divided, plain, divided and plain runs one after the other in one process."""
    first = in_pieces(out / "pieces")
    return [first, *(one(out / str(place), stage) for place, stage in enumerate((None, 2, 3, None, 0, 1)))]


def notebook(out: Path) -> Any:
    """A cell that emulates a launcher, then two runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    return [one(out / str(stage), stage) for stage in (3, 2)]


def launched(out: Path) -> Any:
    """What the script asks for itself."""
    return one(out, 2)


def silent(out: Path) -> Any:
    """A script that leaves DeepSpeed to the launcher."""
    run = trainer(out)
    run.train()
    return {**series(run), **facts(run)}


def parsed(out: Path) -> Any:
    """The documented script: its options, and DeepSpeed's configuration, come from the command line."""
    words = [word for word in sys.argv[1:] if word.startswith("--")]
    given = [f"--{name}={value}" for name, value in options_of().items()]
    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(out), *given, *words]
    )
    run = trainer(out, arguments=lambda *_, **__: arguments)
    run.train()
    return {**series(run), **facts(run), "local_rank": int(run.deepspeed.local_rank)}


MODES: Mapping[str, Callable[[Path], Any]] = {f.__name__: f for f in (alone, notebook, launched, silent, parsed)}

if __name__ == "__main__":
    compile_nothing()
    mode, place = (word for word in sys.argv[1:] if not word.startswith("--"))
    folder = Path(place)
    found = MODES[mode](folder)
    (folder / f"{mode}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
