"""What importing costs: which packages each import brings in. Each is tried in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("transformers", "datasets", "pandas", "pyarrow", "peft", "scipy", "sklearn", "matplotlib", "lightning")
"""Packages that a script has not asked for by importing ours."""


OF_SEVERAL_PROCESSES = ("torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint")
"""Rooms of torch that take longer to import than everything else that one process needs."""


def modules_after(statement: str) -> set[str]:
    """Names of the top-level packages loaded after `statement` in a fresh interpreter."""
    return {name.split(".")[0] for name in names_after(statement)}


def names_after(statement: str) -> set[str]:
    """Names of all modules loaded after `statement` in a fresh interpreter."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import mainspring",
        "import mainspring; mainspring.__version__; dir(mainspring)",
        "from mainspring import errors, registry, names, state",
        "from mainspring import TrainerState, TrainerControl, IntervalStrategy",
        "from mainspring import TrainingArguments; TrainingArguments('out', per_device_train_batch_size=2).to_dict()",
    ],
)
def test_no_torch_before_it_is_needed(statement: str) -> None:
    """The package, its pure-data modules and the arguments load neither torch nor what stands on it."""
    loaded = modules_after(statement)
    assert loaded.isdisjoint({"torch", "accelerate", "numpy", "safetensors", *HEAVY})


@pytest.mark.parametrize(
    "statement",
    [
        "from mainspring import Trainer, TrainingArguments",
        "import mainspring.trainer, mainspring.loop, mainspring.evaluation",
        "from mainspring import default_data_collator, DataCollatorWithPadding, EarlyStoppingCallback, get_scheduler",
    ],
)
def test_the_trainer_brings_torch_and_no_heavy_package(statement: str) -> None:
    """Nothing of the reference's world is imported unless the script does it."""
    loaded = modules_after(statement)
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_training_a_plain_module_brings_no_heavy_package(tmp_path: object) -> None:
    """A whole run with evaluation and a checkpoint stays without the reference installed, too."""
    script = f"""
import torch
from mainspring import Trainer, TrainingArguments

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def forward(self, x, labels=None):
        loss = ((self.layer(x).squeeze(-1) - labels) ** 2).mean()
        return {{"loss": loss}}

rows = [{{"x": torch.ones(2) * i, "labels": float(i)}} for i in range(4)]
args = TrainingArguments({str(tmp_path)!r}, max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True,
                         eval_strategy="steps", eval_steps=1, save_steps=1)
Trainer(model=Net(), args=args, train_dataset=rows, eval_dataset=rows).train()
"""
    assert modules_after(script).isdisjoint(HEAVY)


def test_a_trainer_of_one_process_brings_nothing_of_several(tmp_path: object) -> None:
    """Beside what Accelerate brings by itself; the first step of an optimizer brings more, which is torch's doing."""
    made = f"Trainer(torch.nn.Linear(1, 1), TrainingArguments({str(tmp_path)!r}, use_cpu=True, report_to='none'))"
    loaded = names_after(f"import torch; from mainspring import Trainer, TrainingArguments; {made}")
    assert "mainspring.engines.base" in loaded
    assert loaded.isdisjoint(set(OF_SEVERAL_PROCESSES) - names_after("import accelerate"))


def test_every_public_name_resolves() -> None:
    """Each lazily exported name can be fetched, and a wrong one is an AttributeError (ImportError for `from`)."""
    script = "import mainspring\nfor name in mainspring.__all__: getattr(mainspring, name)"
    assert "mainspring" in modules_after(script)
    with pytest.raises(AssertionError, match="ImportError"):
        modules_after("from mainspring import Trainor")
