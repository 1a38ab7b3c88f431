"""The logging block of scripts, in a program of its own: each message is printed once, at the level that was asked for.

Several processes are looked at in `tests/distributed`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import logging
import sys

from mainspring import HfArgumentParser, Trainer, TrainingArguments, utils
from tests.helpers import data, models

logger = logging.getLogger(__name__)

(training_args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
logging.basicConfig(
    format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
    datefmt="%m/%d/%Y %H:%M:%S",
    handlers=[logging.StreamHandler(sys.stdout)],
)
log_level = training_args.get_process_log_level()
logger.setLevel(log_level)
utils.logging.set_verbosity(log_level)
utils.logging.enable_default_handler()
utils.logging.enable_explicit_format()

room = utils.logging.get_logger("mainspring.room")
for say in (logger.debug, logger.info, logger.warning, logger.error, room.debug, room.info, room.warning, room.error):
    say("spoken")
Trainer(models.Regressor(), training_args, train_dataset=data.Items(data.points(8))).train()
"""


@pytest.mark.parametrize(
    ("words", "heard"),
    [
        ([], ["WARNING", "ERROR"]),
        (["--log_level", "error"], ["ERROR"]),
        (["--log_level", "debug", "--log_level_replica", "error"], ["DEBUG", "INFO", "WARNING", "ERROR"]),
    ],
    ids=str,
)
def test_the_logging_block_of_scripts(words: list[str], heard: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--max_steps", "1", "--save_strategy", "no", *words]
    done = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    spoken = [tuple(line.split(" - ")[1:3]) for line in done.stdout.splitlines() if line.endswith("spoken")]
    assert Counter(spoken) == Counter((level, name) for level in heard for name in ("__main__", "mainspring.room"))
    assert "spoken" not in done.stderr
