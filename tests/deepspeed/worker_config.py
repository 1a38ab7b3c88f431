"""One process that trains a little with DeepSpeed's engine, and tells what became of its configuration."""

from __future__ import annotations

import copy
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

CONFIG = {
    "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
            "warmup_max_lr": "auto",
            "warmup_min_lr": "auto",
        },
    },
}


def facts(folder: Path) -> dict[str, Any]:
    """Load a model that is divided at once, train it, and look at what the engine was given."""
    from transformers import GPT2Config, GPT2LMHeadModel

    import deepspeed
    from mainspring import Trainer, TrainingArguments

    whole = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=16))
    whole.save_pretrained(folder / "model")
    given = copy.deepcopy(CONFIG)
    args = TrainingArguments(
        str(folder / "out"),
        use_cpu=True,
        deepspeed=given,
        max_steps=3,
        save_strategy="no",
        per_device_train_batch_size=2,
        optim="adamw_torch",
        max_grad_norm=0.25,
    )
    _ = args.device
    model = GPT2LMHeadModel.from_pretrained(folder / "model")
    divided = all(hasattr(parameter, "ds_id") and parameter.numel() == 0 for parameter in model.parameters())
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
    trainer = Trainer(model, args, train_dataset=rows)
    out = io.StringIO()
    trainer.explain(file=out)
    trainer.train()
    engine = trainer.deepspeed
    shown = copy.deepcopy(args.hf_deepspeed_config.config)
    args.learning_rate = 1e-3
    trainer.propagate_args_to_deepspeed()
    return {
        "divided": divided,
        "same": same,
        "engine": type(engine).__name__,
        "stage": engine.zero_optimization_stage(),
        "clipping": engine.gradient_clipping(),
        "shown": shown,
        "explained": out.getvalue(),
        "given": given == CONFIG,
        "propagated": args.hf_deepspeed_config.config["scheduler"]["params"]["warmup_max_lr"],
    }


def batch(folder: Path) -> dict[str, Any]:
    """Train with the guide's batch of 12 in micro-batches of 4, of which one process accumulates three."""
    from tests.deepspeed.guide import as_it_stands
    from tests.deepspeed.runs import config, logged, trainer

    way = {
        **config(2),
        **as_it_stands("batch.json"),
        **as_it_stands("accumulation.json"),
        **as_it_stands("clipping.json"),
    }
    run = trainer(folder, deepspeed=way, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    run.train()
    engine = run.deepspeed
    sizes = [engine.train_batch_size(), engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()]
    return {"sizes": sizes, "clipping": engine.gradient_clipping(), "losses": logged(run)}


if __name__ == "__main__":
    from tests.deepspeed.runs import compile_nothing

    warnings.simplefilter("ignore")
    compile_nothing()
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: os.environ.get(name, value) for name, value in place.items()})
    results = Path(sys.argv[1])
    (results / "facts.json").write_text(json.dumps({**facts(results), "batch": batch(results / "batch")}))
