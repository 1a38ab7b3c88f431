"""What each `ddp_*` option does in a run of two processes: many small runs, whose findings are saved for each process."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import Tensor, distributed as dist, nn

from mainspring import Trainer, TrainerCallback, TrainingArguments
from mainspring.engines.comm_hooks import PowerSGD
from mainspring.errors import OptionError
from tests.helpers import data
from tests.helpers.models import tiny_gpt2

UPDATES = 6
TIMEOUT = 123
WIDTH = 700
"""A square layer of this width has 1.9 MiB of gradients: a bucket of its own where `ddp_bucket_cap_mb` is 1."""


class Net(nn.Module):
    """A regression with a buffer that holds this process's last batch, and a branch that may be left out."""

    def __init__(self, width: int = 40, uses_all: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = (
            nn.Linear(data.FEATURES, width),
            nn.Linear(width, width),
            nn.Linear(width, 1),
        )
        self.unused = nn.Linear(data.FEATURES, 1)
        self.uses_all = uses_all
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.seen += x.sum().detach()
        output = self.last(self.second(self.first(x).relu()).relu())
        output = output + self.unused(x) if self.uses_all else output
        return {"loss": ((output.squeeze(-1) - labels) ** 2).mean()}


class Evaluated(Net):
    """Its buffer is left as it is by evaluations."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        before = self.seen.clone()
        outputs = super().forward(x, labels)
        if not self.training:
            self.seen.copy_(before)
        return outputs


class Gradients(TrainerCallback):
    """Keeps the gradients of the last update, which all processes have summed."""

    found: list[Tensor]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


class WithKeywords(Trainer):
    """A script's own keywords for Accelerate."""

    keywords: DistributedDataParallelKwargs

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        return super()._build_accelerator_args(kwargs_handlers=[self.keywords], **kwargs)


def trained(folder: Path, model: nn.Module, kind: type[Trainer] = Trainer, resume: bool = False, **options: Any) -> Any:
    """The trainer after a run, with what its wrapper was."""
    given = {"max_steps": UPDATES, "save_strategy": "no", "learning_rate": 0.01, "per_device_train_batch_size": 4}
    fixed = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "optim": "sgd",
        "ddp_timeout": TIMEOUT,
        "max_grad_norm": 0.0,
    }
    args = TrainingArguments(str(folder), **{**fixed, **given, **options})
    callback = Gradients()
    trainer = kind(model, args, train_dataset=data.Items(data.points(48)), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume or None)
    wrapped: Any = trainer.model_wrapped
    found = {
        "wrapper": type(wrapped).__name__,
        "inside": type(wrapped.module).__name__,
        "world": dist.get_world_size(),
        "weights": [parameter.detach().clone() for parameter in trainer.model.parameters()],
        "seen": trainer.model.seen.clone(),
        "gradients": callback.found,
        "hooks": [hook.__name__ for hook, _ in wrapped._comm_hooks],
        "bucket_bytes_cap": wrapped.bucket_bytes_cap,
        "broadcast_buffers": wrapped.broadcast_buffers,
        "static_graph": wrapped.static_graph,
        "find_unused_parameters": wrapped.find_unused_parameters,
        "gradient_as_bucket_view": wrapped.gradient_as_bucket_view,
    }
    return trainer, found


def plain(folder: Path) -> Any:
    """The options' defaults."""
    _, found = trained(folder, Net())
    options = dist.group.WORLD._get_backend(torch.device("cpu")).options  # type: ignore[union-attr]
    return {**found, "backend": dist.get_backend(), "timeout": options._timeout.total_seconds()}


def unused_is_found(folder: Path) -> Any:
    """A parameter that no loss depends on, with the default."""
    return trained(folder, Net(uses_all=False))[1]


def unused_is_not_looked_for(folder: Path) -> Any:
    """The same, where the user says that there is none."""
    try:
        trained(folder, Net(uses_all=False), ddp_find_unused_parameters=False)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": None}


def static_graph(folder: Path) -> Any:
    """A graph that is the same in every update, with a parameter that is never used."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, found = trained(folder, Net(uses_all=False), ddp_static_graph=True)
    return {**found, "warnings": [str(one.message) for one in said]}


def accumulated(folder: Path) -> Any:
    """Updates of two micro-batches."""
    return trained(folder, Net(uses_all=False), gradient_accumulation_steps=2)[1]


def accumulated_static(folder: Path) -> Any:
    """The same with a static graph, with gradients rounded and not."""
    options = {"gradient_accumulation_steps": 2, "ddp_static_graph": True}
    _, rounded = trained(folder, Net(uses_all=False), ddp_comm_hook="fp16", **options)
    return {**trained(folder, Net(uses_all=False), **options)[1], "rounded": rounded["weights"]}


def buckets(folder: Path) -> Any:
    """Small buckets."""
    return trained(folder, Net(), ddp_bucket_cap_mb=3)[1]


def own_buffers(folder: Path) -> Any:
    """Each process keeps its own buffers."""
    return trained(folder, Net(), ddp_broadcast_buffers=False)[1]


def evaluated_buffers(folder: Path) -> Any:
    """Each process keeps its own buffers, until one model is evaluated."""
    trainer, found = trained(folder, Evaluated(), ddp_broadcast_buffers=False)
    trainer.evaluate(data.Items(data.points(16)))
    return {**found, "evaluated": trainer.model.seen.clone()}


def other_start(folder: Path) -> Any:
    """Every process begins with other weights."""
    return trained(folder, Net(seed=int(os.environ["RANK"])))[1]


def compiled(folder: Path) -> Any:
    """A compiled model inside."""
    return trained(folder, Net(), torch_compile=True, torch_compile_backend="aot_eager")[1]


def _language(folder: Path, **options: Any) -> Any:
    """A language model on texts of several lengths."""
    torch.manual_seed(0)
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    given = {"max_steps": UPDATES, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    args = TrainingArguments(str(folder), **{**fixed, **given, **options})
    texts = data.Items(data.ragged_text(64))
    trainer = Trainer(tiny_gpt2(), args, data_collator=data.collate_text, train_dataset=texts, eval_dataset=texts)
    trainer.train()
    wrapped: Any = trainer.model_wrapped
    return {
        "wrapper": type(wrapped).__name__,
        "inside": type(wrapped.module).__name__,
        "world": dist.get_world_size(),
        "weights": [parameter.detach().clone() for parameter in trainer.model.parameters()],
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "eval_loss": trainer.evaluate()["eval_loss"],
    }


def with_logits(folder: Path) -> Any:
    """Updates of two micro-batches of a language model."""
    return _language(folder, gradient_accumulation_steps=2)


def without_logits(folder: Path) -> Any:
    """The same, whose loss is computed in chunks."""
    return _language(folder, gradient_accumulation_steps=2, chunked_cross_entropy=True)


def compiled_without_logits(folder: Path) -> Any:
    """The same, compiled."""
    options = {"gradient_accumulation_steps": 2, "chunked_cross_entropy": True}
    return _language(folder, torch_compile=True, torch_compile_backend="aot_eager", **options)


def half(folder: Path) -> Any:
    """Gradients travel in float16."""
    return trained(folder, Net(), ddp_comm_hook="fp16")[1]


def bfloat16(folder: Path) -> Any:
    """Gradients travel in bfloat16."""
    return trained(folder, Net(), ddp_comm_hook="bf16")[1]


def keywords(folder: Path) -> Any:
    """Accelerate's keywords beside our options."""
    kind: Any = type("Keywords", (WithKeywords,), {})
    kind.keywords = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True, bucket_cap_mb=2, comm_hook=DDPCommunicationHookType.FP16
    )
    _, found = trained(folder, Net(), kind, ddp_bucket_cap_mb=3)
    try:
        trained(folder, Net(), kind, ddp_comm_hook="bf16")
    except OptionError as error:
        return {**found, "error": str(error)}
    return {**found, "error": None}


def _low_rank(folder: Path, model: Any, **options: Any) -> Any:
    """A run, and one that is stopped in its middle and resumed."""
    given = {"ddp_comm_hook": "powersgd", **options}
    _, whole = trained(folder / "whole", model(), **given)
    saves = {"save_strategy": "steps", "save_steps": 4}
    trained(folder / "half", model(), max_steps=4, **saves, **given)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mainspring").addHandler(handler)
    resumed, again = trained(folder / "half", model(), resume=True, **saves, **given)
    logging.getLogger("mainspring").removeHandler(handler)
    remembered = resumed._engine._comm_hook
    return {
        **whole,
        "resumed": again["weights"],
        "messages": messages,
        "sums": remembered.state.iter,
        "buckets": len(remembered.state.error_dict),
        "waiting": len(remembered._restored),
        "files": sorted(path.name for path in (folder / "half" / "checkpoint-4").glob("comm_hook*")),
    }


def low_rank(folder: Path) -> Any:
    """PowerSGD after the second update; buckets stay as they are."""
    return _low_rank(folder, Net, lr_scheduler_type="constant")


def low_rank_of_rebuilt_buckets(folder: Path) -> Any:
    """The same with several buckets, which DDP makes anew after the first backward pass."""
    options = {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": 1, "learning_rate": 1e-4}
    return _low_rank(folder, lambda: Net(WIDTH), lr_scheduler_type="constant", **options)


CASES = (
    plain,
    unused_is_found,
    static_graph,
    accumulated,
    accumulated_static,
    buckets,
    own_buffers,
    evaluated_buffers,
    other_start,
    compiled,
    with_logits,
    without_logits,
    compiled_without_logits,
    half,
    bfloat16,
    keywords,
    low_rank,
    low_rank_of_rebuilt_buckets,
    unused_is_not_looked_for,
)


def main(out: Path) -> None:
    """Save `<case>-rank<r>.pt` for each case."""
    PowerSGD.START = 2
    for case in CASES:
        found = case(out / case.__name__)
        torch.save(found, out / f"{case.__name__}-rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
