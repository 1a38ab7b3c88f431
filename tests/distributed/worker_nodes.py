"""Trains on several machines and writes down what each process is; also started by hand, by torchrun.

python -m tests.distributed.worker_nodes train FOLDER
python -m tests.distributed.worker_nodes cut FOLDER INTERFACE     the second machine cuts its own network in update 3
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mainspring import TrainingArguments
from tests.distributed.worker_lost import TIMEOUT_S, At
from tests.faults.runs import Scenario, build, outcome
from tests.helpers.ranks import Host

SCENARIO = Scenario("on several machines", {"ddp_timeout": 60}, callbacks=())


def _arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), use_cpu=True, report_to="none", **options)


def facts(folder: Path) -> dict[str, Any]:
    """What the options say of this process."""
    plain, elsewhere = _arguments(folder), _arguments(folder, log_on_each_node=False, save_on_each_node=True)
    return {
        "rank": plain.process_index,
        "local_rank": plain.local_process_index,
        "world_size": plain.world_size,
        "logs": [plain.should_log, elsewhere.should_log],
        "saves": [plain.should_save, elsewhere.should_save],
        "levels": [
            _arguments(
                folder, log_level="info", log_level_replica="error", log_on_each_node=each
            ).get_process_log_level()
            for each in (True, False)
        ],
    }


def takes_turns(folder: Path) -> None:
    """Note in a file that all share when this process was let through."""
    args = _arguments(folder)
    for local in (True, False):
        with args.main_process_first(local=local, desc="taking turns"), open(folder / f"turns-{local}", "a") as turns:
            turns.write(f"{args.process_index} ")


def train(folder: Path) -> None:
    """One run, and `rank<r>.json` with what it came to."""
    folder.mkdir(exist_ok=True)
    trainer = build(SCENARIO, folder / "run")
    assert type(trainer._engine).__name__ == "DDP"
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    told = {**facts(folder), "outcome": outcome(trainer)}
    told["is_zero"] = [trainer.is_local_process_zero(), trainer.is_world_process_zero()]
    takes_turns(folder)
    (folder / f"rank{told['rank']}.json").write_text(json.dumps(told))


def cut(folder: Path, interface: str) -> None:
    """The second machine is cut off in the middle."""
    off = At("on_step_begin", 3, 1, Host(interface=interface).cut)
    trainer = build(Scenario("cut", {"ddp_timeout": TIMEOUT_S}, callbacks=()), folder / "run", off)
    assert trainer.args.world_size == 2
    trainer.train()


MODES: dict[str, Callable[..., None]] = {"train": train, "cut": cut}

if __name__ == "__main__":
    MODES[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
