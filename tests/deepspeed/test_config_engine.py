"""What DeepSpeed's engine is given, and how models are loaded for it: read from one run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mainspring import Trainer, TrainingArguments
from tests.deepspeed.read import alone
from tests.helpers import data, models

pytest.importorskip("deepspeed")
pytest.importorskip("transformers")

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("configured")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "WORLD_SIZE", "RANK"))
    }
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.deepspeed.worker_config", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return found


def test_a_model_that_is_loaded_after_the_arguments_is_divided_at_once(facts: dict[str, Any]) -> None:
    assert facts["divided"]
    assert facts["same"], "its weights are not those of the file"


def test_the_engine_has_what_the_options_say(facts: dict[str, Any]) -> None:
    assert (facts["engine"], facts["stage"], facts["clipping"]) == ("DeepSpeedEngine", 3, 0.25)
    assert facts["given"], "the user's own mapping was changed"


def test_arguments_show_the_configuration_of_the_run(facts: dict[str, Any]) -> None:
    assert facts["shown"] == {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 256},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_num_steps": 1, "total_num_steps": 3, "warmup_max_lr": 5e-5, "warmup_min_lr": 0},
        },
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.25,
        "train_batch_size": 2,
    }


def test_the_trainer_explains_what_training_would_begin_with(facts: dict[str, Any]) -> None:
    final = facts["explained"].split("The run: ")[1]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in final.splitlines() if line.startswith("  ")}
    assert rows["zero_optimization.reduce_bucket_size"] == "256 the hidden size"
    assert rows["scheduler.params.total_num_steps"] == "3 the updates of the run"
    assert rows["gradient_clipping"] == "0.25 max_grad_norm (keyword)"
    assert rows["scheduler.params.warmup_max_lr"] == "5e-05 learning_rate (default)"
    assert "'auto'" not in final


def test_a_batch_of_12_in_micro_batches_of_4_is_three_of_them(facts: dict[str, Any]) -> None:
    assert (facts["batch"]["sizes"], facts["batch"]["clipping"]) == ([12, 4, 3], 1.0)
    assert facts["batch"]["losses"] == pytest.approx(alone(per_device_train_batch_size=12)["loss"], rel=5e-5)


def test_options_that_change_later_reach_the_configuration(facts: dict[str, Any]) -> None:
    assert facts["propagated"] == 1e-3


def test_without_deepspeed_there_is_no_configuration_to_fill_in(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", save_strategy="no")
    trainer = Trainer(models.Regressor(), args, train_dataset=data.Items(data.points(8)))
    with pytest.raises(RuntimeError, match="the engine 'single' has no configuration to fill in: set deepspeed"):
        trainer.propagate_args_to_deepspeed()
