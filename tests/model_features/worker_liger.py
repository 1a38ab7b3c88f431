"""Liger kernels in Triton's interpreter, all cases in one process, whose names are put back after each.

The interpreter is chosen by a variable of the environment that Triton reads when it is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch.nn import functional as F

from mainspring.model_features import liger
from tests.helpers import data
from tests.helpers.sides import REFERENCE, SUBJECT, Side

CPU = torch.device("cpu")
FAMILIES = ("Llama", "Gemma", "Mistral", "Mixtral")
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
RUNS_HERE = {"rope": True, "fused_linear_cross_entropy": True, "rms_norm": False}
STEPS = 3
PLAIN = Side(SUBJECT.name, SUBJECT.package, {})


def configuration(family: str) -> Any:
    more = {"num_local_experts": 2} if family == "Mixtral" else {}
    return getattr(transformers, f"{family}Config")(**SIZES, **more, pad_token_id=0, use_cache=False)


def model_of(family: str, head: str = "ForCausalLM") -> Any:
    torch.manual_seed(0)
    return getattr(transformers, f"{family}{head}")(configuration(family))


def running_here(family: str) -> dict[str, bool]:
    return {**RUNS_HERE, "geglu" if family == "Gemma" else "swiglu": False}


@contextlib.contextmanager
def names_kept(family: str) -> Iterator[Any]:
    """Put back what the package replaces in the module that defines the models, and in torch."""
    module = importlib.import_module(f"transformers.models.{family.lower()}.modeling_{family.lower()}")
    before, loss = dict(vars(module)), F.cross_entropy
    try:
        yield module
    finally:
        for name, value in before.items():
            setattr(module, name, value)
        F.cross_entropy = loss


def patched(family: str, config: dict[str, bool] | None) -> dict[str, Any]:
    """What patching a model replaces."""
    with names_kept(family) as module, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before, loss = dict(vars(module)), F.cross_entropy
        model = model_of(family)
        liger.patch(model, config, CPU)
        layer = model.model.layers[0]
        return {
            "module": sorted(name for name, value in vars(module).items() if before.get(name) is not value),
            "loss": F.cross_entropy is not loss,
            "forward": model.forward.__func__.__module__,
            "norm": model.model.norm.forward.__func__.__qualname__,
            "instance": sorted(name for name in ("input_layernorm", "mlp") if "forward" in vars(getattr(layer, name))),
            "warnings": [str(one.message) for one in caught if "use_liger_kernel" in str(one.message)],
        }


def trained(side: Side, model: Any, family: str, folder: Path, **options: Any) -> dict[str, Any]:
    """The losses of a run and an evaluation, and the logits that the evaluation saw."""
    seen: list[bool] = []
    rows = data.ragged_text(2)  # the interpreter takes some hundredths of a second for a token
    texts = {"train_dataset": data.Items(rows), "eval_dataset": data.Items(rows)}
    args = side.arguments(folder, max_steps=STEPS, seed=3, **options)
    with names_kept(family):
        trainer = side.api.Trainer(model, args, data_collator=data.collate_text, **texts)
        trainer.train()
        model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.logits is not None))
        alone = trainer.evaluate()["eval_loss"]
        trainer.prediction_step(model, data.collate_text(rows), prediction_loss_only=False)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {"losses": losses, "eval_loss": alone, "logits": seen}


def adapters(family: str) -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(model_of(family), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def runs(folder: Path) -> dict[str, Any]:
    found = {}
    for family in FAMILIES:
        on = {"use_liger_kernel": True, "liger_kernel_config": running_here(family)}
        makers: dict[str, Callable[[], Any]] = {family: lambda family=family: model_of(family)}
        if family == "Llama":
            makers["adapters"] = lambda: adapters("Llama")
        for name, make in makers.items():
            found[name] = {
                "without": trained(PLAIN, make(), family, folder / f"{name}-0"),
                "with": trained(PLAIN, make(), family, folder / f"{name}-1", **on),
            }
    on = {"use_liger_kernel": True, "liger_kernel_config": running_here("Llama")}
    for side in (REFERENCE, SUBJECT):
        found[side.name] = trained(side, model_of("Llama"), "Llama", folder / side.name, **on)
    return found


def classifier() -> list[bool]:
    """Whether a patched model without logits of a vocabulary still has its own forward pass, and a loss."""
    with names_kept("Llama"):
        model = model_of("Llama", "ForSequenceClassification")
        liger.patch(model, {"rms_norm": False, "swiglu": False}, CPU)
        loss = model(input_ids=torch.ones(2, 3, dtype=torch.long), labels=torch.tensor([0, 1])).loss
        return ["forward" not in vars(model), bool(loss.isfinite())]


def main(folder: Path) -> None:
    """Save what the tests read."""
    scripts = {"plain": None, "loss": {"cross_entropy": True, "fused_linear_cross_entropy": False}}
    found = {
        "patched": {f: {name: patched(f, config) for name, config in scripts.items()} for f in FAMILIES},
        "runs": runs(folder),
        "classifier": classifier(),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
