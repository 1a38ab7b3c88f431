"""Runs whose optimizer or weights rest on a disk."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed as dist

from tests.deepspeed.checkpoints import SAVES, Warnings, masters, raised
from tests.deepspeed.offload import LETS_OTHERS, OWN
from tests.deepspeed.runs import SAVED, config, facts, logged, optimizer, trainer
from tests.helpers.models import tiny_gpt2

Ask = Callable[[Path], Any]
AIO = {
    "block_size": 131072,
    "queue_depth": 4,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": False,
}
"""None of them DeepSpeed's own choice."""

BUFFERS = {"buffer_count": 8, "buffer_size": 500_000, "max_in_cpu": 0}
"""Of weights: DeepSpeed's own take gigabytes."""


SUB_GROUP = 600_000
"""Numbers that come and go together; less than a megabyte stays in memory."""


def wide() -> Any:
    """A model of which most pieces are large enough for a disk."""
    torch.manual_seed(0)
    return tiny_gpt2(width=384)


def on_disk(folder: Path | str, states: bool = True, weights: bool = False, **given: Any) -> dict[str, Any]:
    """A configuration of stage 3 whose optimizer, or weights, rest in a folder."""
    there = {"device": "nvme", "nvme_path": str(folder), "pin_memory": False}
    zero: dict[str, Any] = {"sub_group_size": SUB_GROUP, **given}
    zero |= {"offload_optimizer": there} if states else {}
    zero |= {"offload_param": {**there, **BUFFERS}} if weights else {}
    return config(3, zero_optimization=zero, optimizer=OWN, aio=AIO)


def on_host(states: bool = True, weights: bool = False) -> dict[str, Any]:
    """The same in memory."""
    there = {"device": "cpu", "pin_memory": False}
    zero: dict[str, Any] = {"sub_group_size": SUB_GROUP}
    zero |= {"offload_optimizer": there} if states else {}
    zero |= {"offload_param": there} if weights else {}
    return config(3, zero_optimization=zero, optimizer=OWN if states else optimizer(torch_adam=True))


def first(out: Path, given: dict[str, Any], **options: Any) -> Any:
    """A run from the beginning."""
    run = trainer(out, wide(), deepspeed=given, **options)
    run.train()
    return run


def trains(out: Path, states: bool, weights: bool) -> Any:
    """Losses with everything on a disk and in memory, files that were there, and what of the disk's settings acts."""
    given = on_disk(out / "disk", states, weights)
    if not states:
        given["optimizer"] = optimizer(torch_adam=True)
    run = first(out / "run", given)
    held = run.deepspeed._config.aio_config
    files = list((out / "disk").rglob("*.swp"))
    divided = run.deepspeed.optimizer
    rests = [index for index in range(len(divided.fp16_groups)) if divided._swappable_optimizer_subgroup(index)]
    return {
        **facts(run),
        "losses": logged(run),
        "memory": logged(first(out / "memory", on_host(states, weights))),
        "aio": {name: held.get(name) for name in AIO}
        if isinstance(held, Mapping)
        else {n: getattr(held, n) for n in AIO},
        "bytes": sum(path.stat().st_size for path in files),
        "rests": sum(int(divided.fp16_partitioned_groups_flat_numel[index]) for index in rests),
    }


def resumes(out: Path, weights: bool, elsewhere: bool, **options: Any) -> Any:
    """A run, one that goes on from its checkpoint, maybe in another folder, and one that begins there with fresh states."""
    run = first(out / "run", on_disk(out / "disk", weights=weights), **SAVES, **options)
    stepped = masters(run)
    dist.barrier()
    there = out / ("other" if elsewhere else "disk")
    again = trainer(out / "again", wide(), deepspeed=on_disk(there, weights=weights), **options)
    with Warnings() as heard:
        again.train(resume_from_checkpoint=str(out / "run" / f"checkpoint-{SAVED}"))
    return {
        **facts(again),
        "losses": logged(run),
        "again": logged(again),
        "rates": logged(again, "learning_rate"),
        "far": max(float((stepped[name] - value).abs().max()) for name, value in masters(again).items()),
        "moments": moments(again),
        "moments_of_first": moments(run),
        "heard": [text for text in heard.texts if "afresh" in text],
    }


def moments(run: Any) -> float:
    """The size of what the optimizer remembers of the first weights, wherever it rests."""
    from deepspeed.utils import safe_get_full_optimizer_state

    found = safe_get_full_optimizer_state(run.model.transformer.wte.weight, "exp_avg_sq")
    return float(torch.as_tensor(found).double().sum())


def to_memory(out: Path) -> Any:
    """Losses of a run that goes on in memory from a checkpoint of a disk, and the other way round."""
    disk, memory = on_disk(out / "disk"), on_host()
    run = first(out / "disk_run", disk, **SAVES)
    first(out / "memory_run", memory, **SAVES)
    dist.barrier()
    found = {}
    for name, source, given in (("to", "disk_run", memory), ("from", "memory_run", on_disk(out / "third"))):
        again = trainer(out / name, wide(), deepspeed=given)
        again.train(resume_from_checkpoint=str(out / source / f"checkpoint-{SAVED}"))
        found[name] = logged(again)
    return {"losses": logged(run), **found}


def lost(out: Path) -> Any:
    """What is said where the checkpoint has no states for the disk, or only some of them."""
    run = first(out / "run", on_disk(out / "disk"), **SAVES)
    assert run.deepspeed is not None
    dist.barrier()
    folder = out / "run" / f"checkpoint-{SAVED}"
    if dist.get_rank() == 0:
        next(folder.rglob("*rank_1_*optim_states.pt")).unlink()
        for name in ("manifest.json", "progress.json", "training_args.json"):  # which would refuse it first
            (folder / name).unlink()
    dist.barrier()
    again = trainer(out / "again", wide(), deepspeed=on_disk(out / "disk"))
    return raised(lambda: again.train(resume_from_checkpoint=str(folder)))


def refused(out: Path) -> Any:
    """What is said of folders that cannot be written to, and of a disk without room."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "file").write_text("")
    dist.barrier()
    found = {
        name: raised(lambda given=given: first(out / "run", given))  # type: ignore[misc]
        for name, given in (
            ("states", on_disk(out / "file")),
            ("weights", {**on_disk(out / "file" / "below", states=False, weights=True), **LETS_OTHERS}),
        )
    }
    usage = namedtuple("usage", "total used free")
    with mock.patch.object(shutil, "disk_usage", return_value=usage(1 << 20, 1 << 20, 4096)):
        found["full"] = raised(lambda: first(out / "run", on_disk(out / "disk")))
    return found


def asked(shared: Path) -> Mapping[str, Ask]:
    """All that two processes are asked, by name."""
    return {
        "states": partial(trains, states=True, weights=False),
        "weights": partial(trains, states=False, weights=True),
        "both": partial(trains, states=True, weights=True),
        "resumes": partial(resumes, weights=False, elsewhere=False),
        "resumes_elsewhere": partial(resumes, weights=False, elsewhere=True),
        "resumes_both": partial(resumes, weights=True, elsewhere=True),
        "resumes_bf16": partial(resumes, weights=False, elsewhere=True, bf16=True),
        "to_memory": to_memory,
        "lost": lost,
        "refused": refused,
    }
