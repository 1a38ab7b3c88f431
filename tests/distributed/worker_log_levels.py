"""Parse log levels, build a Trainer and set logging up as scripts do, on this process of several, for both libraries.

Also, let the first process go first.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.helpers import models
from tests.helpers.sides import REFERENCE, SUBJECT, Side

CASES: dict[str, list[str]] = {
    "nothing said": [],
    "quiet replicas": ["--log_level", "warning", "--log_level_replica", "error"],
    "one voice in all": ["--log_level", "error", "--log_level_replica", "error", "--log_on_each_node", "0"],
    "one talks, of all": ["--log_level", "debug", "--log_level_replica", "error", "--log_on_each_node", "0"],
    "passive replicas": ["--log_level", "info", "--log_level_replica", "passive"],
}
SPOKEN = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def levels(side: Side, words: list[str], folder: Path) -> dict[str, Any]:
    """The levels that one library arrives at, and what the script and the library then say, as the program prints it.

    The middle part is what scripts contain: one handler on the root logger, then the process's level for the script's
    own logger and for the library's.
    """
    library = side.module("utils.logging")
    library.set_verbosity_warning()
    cls = side.api.TrainingArguments
    common = ["--output_dir", str(folder), "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    (args,) = side.api.HfArgumentParser(cls).parse_args_into_dataclasses([*common, *words], look_for_args_file=False)
    side.api.Trainer(models.Regressor(), args)
    found: dict[str, Any] = {"of the process": args.get_process_log_level(), "by the Trainer": library.get_verbosity()}

    printed = io.StringIO()
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", handlers=[logging.StreamHandler(printed)])
    logger = logging.getLogger("script")
    log_level = args.get_process_log_level()
    logger.setLevel(log_level)
    library.set_verbosity(log_level)
    library.enable_default_handler()
    library.enable_explicit_format()

    for level in SPOKEN.values():
        logger.log(level, "spoken")
        if not side.is_reference:  # that one prints on stderr by itself
            library.get_logger(f"{side.package}.room").log(level, "spoken")
    logging.getLogger().handlers.clear()
    lines = [line.split(" ")[:2] for line in printed.getvalue().splitlines() if line.endswith("spoken")]
    return {**found, "lines": lines}


LOOKS = 20_000
"""How often the first process looks round for others while it is inside: for some hundredths of a second."""


def entered_too_early(side: Side, out: Path, local: bool) -> bool:
    """Whether, while the first process was inside `main_process_first`, another one came in."""
    args = side.arguments(out)
    other = out / f"entered-{side.name}-{local}"
    args.world_size  # noqa: B018 - forms the process group
    torch.distributed.barrier()
    with args.main_process_first(local=local, desc="tokenizing"):
        if args.process_index == 0:
            return any(other.exists() for _ in range(LOOKS))
        other.touch()
    return False


def heard_on_the_way(out: Path) -> list[str]:
    """What our library says at level debug before, while and after this process is inside."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mainspring.arguments")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    with SUBJECT.arguments(out).main_process_first(desc="tokenizing"):
        heard.append("inside")
    return heard


def main(out: Path) -> None:
    """Write `rank<r>.json`: for each case what each library did, and how the processes went in turn."""
    sides = (SUBJECT, REFERENCE)
    found = {
        "levels": {
            case: {side.name: levels(side, words, out / "run") for side in sides} for case, words in CASES.items()
        },
        "too early": [entered_too_early(side, out, local) for side in sides for local in (False, True)],
        "heard": heard_on_the_way(out),
    }
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
