"""A configuration that comes through a launcher's file: `accelerate launch` and `mainspring launch` say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mainspring

pytest.importorskip("deepspeed")

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]

SCRIPT = """
import json, sys
from mainspring import TrainingArguments
from mainspring.arguments.deepspeed import deepspeed_settings
args = TrainingArguments("out", use_cpu=True, **json.loads(sys.argv[1]))
print("FOUND " + json.dumps([deepspeed_settings(args).config, args.gradient_accumulation_steps, args.max_grad_norm]))
"""
PLUGIN = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  gradient_accumulation_steps: 2
  gradient_clipping: 0.5
  offload_optimizer_device: cpu
  offload_param_device: none
  zero3_init_flag: false
  zero3_save_16bit_model: true
  zero_stage: 3
mixed_precision: bf16
num_machines: 1
num_processes: 1
use_cpu: true
"""
FILE = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  deepspeed_config_file: {path}
  zero3_init_flag: true
num_machines: 1
num_processes: 1
use_cpu: true
"""
LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--config_file"],
    "mainspring": ["mainspring.cli", "launch", "--config"],
}


def found(launcher: str, config: Path, folder: Path, options: dict[str, Any]) -> list[Any]:
    """What a run of that launcher makes of the file."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "WORLD_SIZE", "RANK"))
    }
    places = [str(Path(mainspring.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    kept |= {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(config), str(script), json.dumps(options)]
    run = subprocess.run(command, capture_output=True, text=True, env=kept, cwd=folder, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    (line,) = [line for line in run.stdout.splitlines() if "FOUND " in line]
    answer: list[Any] = json.loads(line.partition("FOUND ")[2])
    return answer


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_plugin_of_the_file_is_the_configuration(launcher: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(PLUGIN)
    assert found(launcher, file, tmp_path, {}) == [
        {
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": {"device": "cpu"},
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.5,
            "train_micro_batch_size_per_gpu": 8,
            "train_batch_size": 16,
            "bf16": {"enabled": True},
        },
        2,
        0.5,
    ]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_configuration_that_the_file_names_is_taken(launcher: str, tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}))
    file = tmp_path / "accelerate.yaml"
    file.write_text(FILE.format(path=tmp_path / "zero.json"))
    config, *others = found(launcher, file, tmp_path, {"max_grad_norm": 0.3, "gradient_accumulation_steps": 4})
    assert config["zero_optimization"] == {"stage": 2}
    assert (config["gradient_clipping"], config["train_batch_size"], others) == (0.3, 32, [4, 0.3])
