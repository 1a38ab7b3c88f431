"""A user's script: it says nothing of processes or devices, and runs unchanged under every launcher."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from mainspring import Trainer, TrainerCallback, TrainingArguments


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x, labels):
        return {"loss": (self.layer(x).squeeze(-1) - labels).square().mean()}


class Watch(TrainerCallback):
    """Says that training has begun, to whoever waits for that to act."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            print("training", flush=True)


def rows(count):
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(count, 4, generator=generator)
    return [{"x": point, "labels": point.sum()} for point in points]


def main(out, batch, steps=6):
    torch.manual_seed(0)
    args = TrainingArguments(
        f"{out}/run",
        per_device_train_batch_size=batch,
        max_steps=steps,
        logging_steps=1,
        save_steps=1_000_000,
        learning_rate=0.1,
        disable_tqdm=True,
    )
    with args.main_process_first(local=False):
        (Path(out) / f"entered-{args.process_index}").touch()
        entered = sorted(path.name for path in Path(out).glob("entered-*"))
    trainer = Trainer(Line(), args, train_dataset=rows(64), callbacks=[Watch()])
    trainer.train()
    facts = {
        "world_size": args.world_size,
        "rank": args.process_index,
        "local_rank": args.local_process_index,
        "should_log": args.should_log,
        "entered": entered,
        "wrapper": type(trainer.model_wrapped).__name__,
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
    }
    (Path(out) / f"rank{args.process_index}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], *(json.loads(word) for word in sys.argv[2:]))
