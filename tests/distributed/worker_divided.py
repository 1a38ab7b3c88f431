"""Runs of processes that divide a model among them, on this process of several; what came of each is written to a file."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from tests.distributed import divided_models as models
from tests.distributed.divided_models import ON_FOUR, ON_TWO, WRITERS, Run, llama, numbers, trainer
from tests.helpers.models import word_tokenizer


def facts(of: Trainer) -> dict[str, Any]:
    """What the run says of its world, and how its parameters lie."""
    engine = of._engine
    parameters = dict(of.model.named_parameters())
    return {
        "world_size": of.args.world_size,
        "engine": type(engine).__name__,
        "wrapper": type(of.model_wrapped).__name__,
        "data": (engine.data_rank, engine.data_world_size),
        "sizes": (of.get_tp_size(), of.get_cp_size(), of.get_sp_size()),
        "accelerate": of.accelerator.parallelism_config.tp_size,
        "batch": of.get_total_train_batch_size(of.args),
        "random": engine.random_rank,
        "gathered": of.accelerator.gather(torch.tensor([engine.rank])).tolist(),
        "read": [batch.tolist() for batch in of.accelerator.prepare(torch.utils.data.DataLoader(range(8), 2))],
        "divided": sorted(name for name, p in parameters.items() if isinstance(p, DTensor)),
        "pieces": {name: p.to_local().numel() / p.numel() for name, p in parameters.items() if isinstance(p, DTensor)},
        "whole": {name: p.detach().clone() for name, p in parameters.items() if not isinstance(p, DTensor)},
    }


def whole_weights(of: Trainer) -> dict[str, torch.Tensor]:
    """All weights, on the first process."""
    return of._engine.model_state(of.model) or {}


def trained(run: Run, folder: Path) -> dict[str, Any]:
    """One run from beginning to end, with an evaluation after it."""
    of = trainer(run, folder)
    before = of.evaluate()["eval_loss"]
    of.train()
    output = of.predict(of.eval_dataset)
    return {
        **facts(of),
        "logs": numbers(of),
        "weights": whole_weights(of),
        "losses": [before, output.metrics["test_loss"]],
        "predictions": output.predictions,
        "labels": output.label_ids,
    }


def complaint(attempt: Any) -> str:
    """The kind and the words of what an attempt raises."""
    try:
        attempt()
    except (ValueError, ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def complaints(out: Path) -> dict[str, str]:
    """What is said to runs that cannot be, each on two processes."""
    two = ON_TWO["llama"]

    def with_sizes(**sizes: int) -> Any:
        return lambda: trainer(dataclasses.replace(two, sizes=sizes), out / "refused")

    def with_model(model: nn.Module, plan: Any = None) -> Any:
        if plan is not None:
            model.tp_plan = plan
        return lambda: trainer(two, out / "refused", model=model)

    def early_optimizer() -> None:
        of = trainer(two, out / "refused")
        of.create_optimizer()
        of.train()

    def in_pieces() -> None:
        of = trainer(two, out / "refused")
        of.evaluate()
        trainer(dataclasses.replace(two, sizes={}), out / "refused", model=of.model)

    own = {"layers.*.up": "colwise"}
    return {
        "product": complaint(with_sizes(tp_size=4)),
        "context": complaint(with_sizes(cp_size=2)),
        "sequence": complaint(with_sizes(sp_size=2)),
        "no_plan": complaint(with_model(nn.Sequential(nn.Linear(4, 4)))),
        "no_such_module": complaint(with_model(models.Own(), own)),
        "style": complaint(with_model(models.Own(), {"up": "colwize"})),
        "parameter": complaint(with_model(models.Own(), {"up.weight": "colwise"})),
        "kind": complaint(with_model(models.Own(), {"dropout": "colwise"})),
        "heads": complaint(with_model(llama(num_attention_heads=1, num_key_value_heads=1, head_dim=16))),
        "width": complaint(with_model(models.Own(width=7))),
        "shared": complaint(lambda: with_model(models.neox(tie_word_embeddings=True))().train()),
        "early": complaint(early_optimizer),
        "in_pieces": complaint(in_pieces),
        "optimizer": complaint(lambda: with_optimizer(two, out / "refused")),
    }


def with_optimizer(run: Run, folder: Path) -> None:
    """A trainer with an optimizer that was made for the whole model."""
    model = run.model()
    given = trainer(run, folder, model=model)
    Trainer(model, given.args, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))


def saved_and_resumed(run: Run, out: Path, name: str, **options: Any) -> dict[str, Any]:
    """A run that saves in its middle, and one that goes on from there."""
    folder = out / name
    dropping = dataclasses.replace(run, options={**run.options, **options, "save_strategy": "steps", "save_steps": 2})
    straight = trainer(dropping, folder)
    straight.train()
    resumed = trainer(dropping, folder)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    straight.save_model(str(folder / "model"))
    return {
        "straight": (numbers(straight), whole_weights(straight)),
        "resumed": (numbers(resumed), whole_weights(resumed)),
    }


def generated(run: Run, folder: Path) -> dict[str, Any]:
    """Texts of the trained model, on every process."""
    of = trainer(run, folder)
    of.train()
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    of.model.eval()
    return {
        "texts": of.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    }


def texts(run: Run, folder: Path, **how: Any) -> Any:
    """What the trained model writes in an evaluation: each group goes on for as long as any."""
    api = (Seq2SeqTrainer, Seq2SeqTrainingArguments)
    of = trainer(run, folder, api=api, predict_with_generate=True, generation_max_length=20, **how)
    of.processing_class = word_tokenizer()
    of.train()
    return of.predict(of.eval_dataset).predictions


def loaded_in_pieces(out: Path) -> dict[str, Any]:
    """A model that transformers divided when it loaded it."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    whole = llama()
    folder = out / "pretrained"
    if os.environ["RANK"] == "0":
        whole.save_pretrained(folder)
    torch.distributed.barrier()
    model = LlamaForCausalLM.from_pretrained(folder, tp_plan="auto")
    run = ON_TWO["llama"]
    of = trainer(dataclasses.replace(run, sizes={}), out / "loaded", model=model)
    of.train()
    of.save_model(str(out / "loaded" / "model"))
    four = complaint(lambda: trainer(dataclasses.replace(run, sizes={"tp_size": 4}), out / "loaded", model=model))
    return {**facts(of), "logs": numbers(of), "weights": whole_weights(of), "four": four}


def loaded_and_sharded(out: Path) -> dict[str, Any]:
    """A model that transformers divided and sharded when it loaded it, and one that is divided and sharded here."""
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    run = Run(llama, {"tp_size": 2, "dp_shard_size": 2}, {"fsdp": True})
    here = trainer(run, out / "here")
    torch.manual_seed(3)
    folder = out / "pretrained"
    if os.environ["RANK"] == "0":
        llama().save_pretrained(folder)
    torch.distributed.barrier()
    model = LlamaForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2, fsdp_size=2))
    there = trainer(dataclasses.replace(run, sizes={}), out / "there", model=model)
    for of in (here, there):
        of.train()
    there.save_model(str(out / "model"))
    return {**facts(there), "logs": numbers(there), "expected": numbers(here), "weights": whole_weights(here)}


def on_two(out: Path) -> dict[str, Any]:
    """What two processes do."""
    results = {name: trained(run, out / name) for name, run in ON_TWO.items()}
    results["dropout"] = trained(
        dataclasses.replace(ON_TWO["own"], model=lambda: models.Own(dropout=0.5)), out / "dropout"
    )
    results["saved"] = saved_and_resumed(ON_TWO["neox"], out, "saved", optim="adamw_torch_fused", learning_rate=1e-2)
    results["from_one"] = continued(ON_TWO["llama"], out / "alone")
    results["generated"] = generated(ON_TWO["llama"], out / "generated")
    results["loaded"] = loaded_in_pieces(out)
    results["complaints"] = complaints(out)
    return results


def continued(run: Run, folder: Path) -> dict[str, Any]:
    """A run that goes on from the checkpoint of another number of processes."""
    of = trainer(run, folder)
    of.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return {"logs": numbers(of), "weights": whole_weights(of)}


def on_four(out: Path) -> dict[str, Any]:
    """What four processes do."""
    results = {name: trained(run, out / name) for name, run in ON_FOUR.items()}
    adam = {"optim": "adamw_torch_fused", "learning_rate": 1e-2}
    results["saved"] = saved_and_resumed(ON_FOUR["shards"], out, "saved", **adam)
    pieces = {**adam, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
    results["saved_in_pieces"] = saved_and_resumed(ON_FOUR["shards"], out, "saved_in_pieces", **pieces)
    results["loaded"] = loaded_and_sharded(out / "loaded")
    results["texts"] = {name: texts(run, out / "texts") for name, run in WRITERS.items()}
    results["saved_copies"] = saved_and_resumed(ON_FOUR["copies"], out, "saved_copies", **adam)
    return results


def main(out: Path) -> None:
    """Write `rank<r>.pt`."""
    results = on_two(out) if os.environ["WORLD_SIZE"] == "2" else on_four(out)
    torch.save(results, out / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
