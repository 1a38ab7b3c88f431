"""Average weights, look for a learning rate and measure on this process of several; write down what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mainspring import EMACallback
from mainspring.errors import OptionError
from tests.distributed.fsdp_runs import facts, logged, trainer, weights

ENGINES: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"fsdp": True}, "offloaded": {"fsdp": "full_shard offload"}}
DECAY = 0.6


def run(
    folder: Path, before: Callable[[Any], Any] = lambda of: None, checkpoint: Path | None = None, **options: Any
) -> Any:
    ema = EMACallback(DECAY)
    of = trainer(folder, callbacks=[ema], eval_strategy="steps", eval_steps=1, **options)
    before(of)
    of.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    after = of.evaluate()["eval_loss"]
    return {
        **facts(of),
        "averages": ema.averages(),
        "weights": weights(of),
        "loss": logged(of),
        "eval_loss": [*logged(of, "eval_loss")],
        "after": after,
    }


def refusal(work: Callable[[], Any]) -> str:
    try:
        work()
    except (OptionError, ValueError) as error:
        return str(error)
    return ""


def main(out: Path) -> None:
    found: dict[str, Any] = {}
    for name, options in ENGINES.items():
        found[name] = run(out / name, save_strategy="steps", save_steps=2, **options)
        found[f"{name}-again"] = run(out / f"{name}-again", checkpoint=out / name / "checkpoint-2", **options)
    rates: list[Any] = []
    found["looked"] = run(
        out / "looked", lambda of: rates.append(of.lr_find(min_lr=1e-4, max_lr=10.0, num_updates=12)), **ENGINES["ddp"]
    )
    found["rates"] = rates[0]
    found["first"] = refusal(lambda: trainer(out / "x", ema_decay=0.9, fsdp=True, fsdp_config={"version": 1}))
    found["sharded"] = refusal(lambda: trainer(out / "x", fsdp=True).lr_find())
    found["measured"] = refusal(lambda: trainer(out / "x").estimate_memory())
    torch.save(found, out / f"found-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
