"""`DeepSpeedSettings`: a DeepSpeed configuration in which the options have taken their places."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A DeepSpeed configuration, filled in from the options as far as these know.

    Attributes:
        config: The configuration.
        max_grad_norm: To which norm gradients are clipped; 0: they are not.
    """

    config: Mapping[str, Any]
    max_grad_norm: float = 0.0

    @property
    def stage(self) -> int:
        """How much ZeRO divides over the processes: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
        return int(self.config.get("zero_optimization", {}).get("stage", 0))

    @property
    def makes_optimizer(self) -> bool:
        """Whether the configuration has an optimizer, which DeepSpeed then makes."""
        return "optimizer" in self.config

    @property
    def makes_schedule(self) -> bool:
        """Whether the configuration has a schedule, which DeepSpeed then makes and moves."""
        return "scheduler" in self.config

    @property
    def gathers_weights(self) -> bool:
        """Whether checkpoints of stage 3 hold whole weights beside the pieces."""
        return bool(self.config.get("zero_optimization", {}).get("stage3_gather_16bit_weights_on_model_save", False))

    @property
    def precision(self) -> str:
        """What the model computes in: bf16, fp16 or fp32."""
        chosen = (name for name in ("bf16", "fp16") if self.config.get(name, {}).get("enabled") is True)
        return next(chosen, "fp32")

    def completed(self, hidden_size: int | None, total_steps: int, warmup_steps: int) -> dict[str, Any]:
        """The configuration that the engine starts with.

        Args:
            hidden_size: Of the model; None where it does not say.
            total_steps: Updates of the run.
            warmup_steps: Those of them that warm up.

        Raises:
            OptionError: What contradicts the options, all of it; or what cannot be filled in.
        """
        return copy.deepcopy(dict(self.config))


def deepspeed_settings(args: Any) -> DeepSpeedSettings | None:
    """The DeepSpeed configuration of these arguments; None where DeepSpeed was not asked for."""
    given = getattr(args, "deepspeed", None)
    if not given:
        return None
    config = dict(given) if isinstance(given, Mapping) else json.loads(Path(given).read_text(encoding="utf-8"))
    filled: dict[str, Any] = {
        **config,
        "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_clipping": args.max_grad_norm,
    }
    filled.pop("train_batch_size", None)
    return DeepSpeedSettings(filled, args.max_grad_norm)
