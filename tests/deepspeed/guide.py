"""The configurations of the guide to DeepSpeed: each block of the page with the options that it is started with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

from mainspring.arguments.deepspeed.reading import section, setting

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "deepspeed.md"
FILE = re.compile(r"^```(\w+) (\S+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```json\b", flags=re.MULTILINE)


def files(suffix: str) -> dict[str, str]:
    """The files of the page whose names end so."""
    found = FILE.findall(PAGE.read_text(encoding="utf-8"))
    return {name: text for _, name, text in found if name.endswith(suffix)}


@dataclass(frozen=True)
class Use:
    """One block with options.

    Attributes:
        block: Its name on the page.
        options: The options.
        alone: Those of a plain run of one process that has the same losses; None: there is none.
        engine: What DeepSpeed's engine says of itself then.
        tolerance: How far losses may be from that run's, relatively.
    """

    block: str
    options: Mapping[str, Any] = field(default_factory=dict)
    alone: Mapping[str, Any] | None = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 5e-5


HALF = 2e-2
_WARMS_UP = {"schedule": "WarmupLR"}
_NUMBERS = {"learning_rate": 3e-5, "adam_beta1": 0.8, "weight_decay": 3e-7, "warmup_steps": 500}

TRAINED: Mapping[str, Use] = {
    "zero0": Use("zero0.json", engine={"stage": 0}),
    "zero1": Use("zero1.json", engine={"stage": 1, "batch": [8, 4, 1]}),
    "zero2": Use("zero2.json", alone=None, engine={"stage": 2, "batch": [8, 4, 1], **_WARMS_UP}),
    "zero2 in bf16": Use("zero2.json", {"bf16": True}, None, {"stage": 2, "precision": "bf16"}),
    "zero3": Use("zero3.json", alone=None, engine={"stage": 3, "batch": [8, 4, 1], **_WARMS_UP}),
    "zero3 in bf16": Use("zero3.json", {"bf16": True}, None, {"stage": 3, "precision": "bf16"}),
    "zero3 in numbers": Use("zero3-numbers.json", _NUMBERS, None, {"stage": 3, **_WARMS_UP}),
    "buckets": Use("buckets.json", engine={"stage": 2}),
    "activations": Use("activations.json"),
    "gathered": Use("gather.json", engine={"stage": 3}),
    "universal": Use("universal.json"),
    "AdamW": Use("adamw.json"),
    "WarmupLR": Use("warmup.json", alone=None, engine=_WARMS_UP),
    "WarmupLR in numbers": Use(
        "warmup-numbers.json", {"learning_rate": 0.001, "warmup_steps": 1000}, None, engine=_WARMS_UP
    ),
    "WarmupDecayLR": Use("warmup-decay.json", alone=None, engine={"schedule": "WarmupDecayLR"}),
    "bf16 left open": Use("bf16.json", engine={"precision": "fp32"}),
    "bf16": Use("bf16.json", {"bf16": True}, engine={"precision": "bf16"}, tolerance=HALF),
    "bf16 for evaluations": Use("bf16.json", {"bf16_full_eval": True}, engine={"precision": "bf16"}, tolerance=HALF),
    "fp16 left open": Use("fp16.json", engine={"precision": "fp32"}),
    "fp32": Use("fp32.json", engine={"precision": "fp32"}),
    "amp": Use("amp.json", engine={"precision": "fp32"}),
    "sums in fp16": Use("communication-fp16.json", engine={"communication": "torch.float16"}, tolerance=1e-3),
    "sums in bf16": Use("communication-bf16.json", engine={"communication": "torch.bfloat16"}, tolerance=5e-3),
    "sums in fp32": Use("communication-fp32.json", engine={"communication": "torch.float32"}),
    "batch": Use("batch-auto.json", {"gradient_accumulation_steps": 2}, engine={"batch": [8, 2, 2], "clipping": 1.0}),
    "accumulation": Use(
        "accumulation.json",
        {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2},
        {"per_device_train_batch_size": 12},
        {"batch": [12, 2, 3]},
    ),
    "clipping": Use("clipping.json", engine={"clipping": 1.0}),
    "clipping by option": Use("batch-auto.json", {"max_grad_norm": 0.1}, {"max_grad_norm": 0.1}, {"clipping": 0.1}),
    "optimizer on the host": Use("offload-optimizer.json", engine={"stage": 2, "optimizer": "DeepSpeedCPUAdam"}),
    "all on the host": Use("offload.json", engine={"stage": 3, "optimizer": "DeepSpeedCPUAdam"}),
}
"""What two processes train with."""

IN_FP16: Mapping[str, Use] = {
    "fp16": Use("fp16.json", {"fp16": True}, engine={"precision": "fp16"}, tolerance=HALF),
    "fp16 on": Use("fp16-on.json", {"fp16": True}, engine={"precision": "fp16"}, tolerance=HALF),
}
"""What most CPUs cannot compute."""

SCATTERED = Use("own-disks.json", {"save_on_each_node": True})
"""What the trainer refuses."""

REFUSED: Mapping[str, tuple[str, str]] = {
    "amp-on.json": ("deepspeed amp.enabled=True", "the package apex is not installed"),
    "communication-misspelt.json": ("deepspeed communication_data_type='bfp16'", "did you mean 'bf16'?"),
}
"""What cannot be, with the setting that the one error names and a part of the reason."""

READ: Mapping[str, Use] = {
    "NVMe": Use("nvme.json"),
    "batch of one process": Use("batch.json", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}),
}
"""What is not trained with here: a disk, and a batch that takes one process or three."""


EXAMPLE = (
    *("--do_train", "--do_eval", "--do_predict", "--max_steps", "6", "--logging_steps", "1", "--save_strategy", "no"),
    *("--learning_rate", "2e-3", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"),
)
"""Options of an example script, for a few updates."""


def is_there(operation: str) -> bool:
    """Whether DeepSpeed has compiled one of its operations already."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    return any(root.glob(f"**/{operation}/{operation}.so"))


def is_offloaded(config: Mapping[str, Any]) -> bool:
    """Whether the optimizer is on the host: this takes operations of DeepSpeed's own."""
    return bool(section(config, "zero_optimization.offload_optimizer"))


def as_it_stands(name: str) -> dict[str, Any]:
    """A block."""
    config: dict[str, Any] = json.loads(files(".json")[name])
    return config


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """A block that is a part of a configuration, with stage 2 beside it; without operations that were not compiled."""
    whole = {"zero_optimization": {"stage": 2}, **config}
    whole.setdefault("zero_allow_untested_optimizer", True)
    if setting(whole, "optimizer.type") == "AdamW" and not is_offloaded(whole) and not is_there("fused_adam"):
        whole["optimizer"]["params"]["torch_adam"] = True
    for place in ("offload_optimizer", "offload_param"):
        if setting(whole, f"zero_optimization.{place}.pin_memory") is True and not is_there("pin_memory"):
            whole["zero_optimization"][place]["pin_memory"] = False
    return whole
