"""Every optimizer of torch with every schedule: learning rates and final weights equal the reference's."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.names import SCHEDULER_NAMES
from tests.helpers import data, models
from tests.helpers.sides import REFERENCE, SUBJECT, Side

pytestmark = pytest.mark.parity

OPTIMIZERS = {
    "adamw_torch": {},
    "adamw_torch_fused": {"adam_beta2": 0.95},
    "adafactor": {},
    "sgd": {"optim_args": "momentum=0.9,nesterov=True"},
    "adagrad": {"optim_args": "lr_decay=0.1"},
    "rmsprop": {"optim_args": "alpha=0.9,momentum=0.5"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"num_cycles": 0.7},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0, "lr_end": 1e-4},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": 3},
    "reduce_lr_on_plateau": {"patience": 0, "factor": 0.5, "threshold": 0.5},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-3, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 3, "decay_type": "1-sqrt", "min_lr_ratio": 0.1},
    "greedy": {"patience": 0, "factor": 0.5, "min_lr": 1e-4},
}
PAIRS = list(product(OPTIMIZERS, SCHEDULES))
METRIC_DRIVEN = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}


def trained(side: Side, folder: Path, optim: str, schedule: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Logged rates, and the weights at the end."""
    options: dict[str, Any] = {
        "optim": optim,
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": SCHEDULES[schedule] or None,
        "weight_decay": 0.1,
        "max_steps": 8,
        **OPTIMIZERS[optim],
        **({} if schedule in ("constant", "reduce_lr_on_plateau", "greedy") else {"warmup_steps": 2}),
        **(METRIC_DRIVEN if schedule in ("reduce_lr_on_plateau", "greedy") else {}),
    }
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = side.api.Trainer(
            models.Regressor(),
            side.arguments(folder, **options),
            train_dataset=data.Items(data.points(16)),
            eval_dataset=data.Items(data.points(4, seed=1)),
        )
        trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    return rates, dict(trainer.model.state_dict())


@pytest.mark.parametrize(("optim", "schedule"), PAIRS)
def test_rates_and_weights_equal_the_reference(tmp_path: Path, optim: str, schedule: str) -> None:
    rates, weights = trained(SUBJECT, tmp_path / "ours", optim, schedule)
    their_rates, their_weights = trained(REFERENCE, tmp_path / "theirs", optim, schedule)
    assert len(rates) == 8
    assert rates == their_rates
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, their_weights[name], rtol=1e-6, atol=1e-7)


def test_every_pair_is_compared() -> None:
    assert set(SCHEDULES) == set(SCHEDULER_NAMES)
    assert len(PAIRS) == 6 * 12
