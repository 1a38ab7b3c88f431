"""Save, load, gather and hand out states over worlds of several sizes, and write down what came of it."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed as dist, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

from mainspring.checkpoint import Facts, Saver, load_torch, seal
from mainspring.checkpoint.names import FSDP_WEIGHTS_NAME, SHARDED_MODEL_FOLDER, SHARDED_OPTIMIZER_FOLDER
from mainspring.checkpoint.sharded import (
    load_model_shards,
    load_optimizer_across,
    load_optimizer_shards,
    load_shards,
    put_model_state,
    put_optimizer_state,
    read_metadata,
    save_shards,
    sharded_model_state,
    sharded_optimizer_state,
    whole_model_state,
    whole_optimizer_state,
)
from mainspring.checkpoint.sharded.folder import _Writer
from mainspring.engines.processes import Channel
from mainspring.errors import CheckpointError
from tests.helpers import ranks

CHAIN = (4, 2, 1, 3)
"""Numbers of processes, each of which goes on from what the one before it saved."""


class Net(nn.Module):
    """Odd sizes, tied weights, a frozen parameter, one that gets no gradient, a buffer, and a layer called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.module = nn.Linear(5, 9)
        self.back = nn.Linear(9, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of each token's successor."""
        self.count += 1
        scores: torch.Tensor = self.head(self.back(torch.tanh(self.module(self.embed(tokens)))))
        return scores


def net() -> Net:
    """The same one every time."""
    torch.manual_seed(1)
    return Net()


def sharded(model: Net | None = None) -> nn.Module:
    """The model in FSDP's second form, over all processes."""
    model = model or net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model.module, model.back, model):
        fully_shard(layer, mesh=mesh)
    assert isinstance(model, FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def all_trained() -> Net:
    """Without the parameter that gets no gradient: Accelerate cannot load an optimizer's state that lacks one."""
    model = net()
    model.unused.requires_grad_(False)
    return model


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with weight decay for matrices alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1}
    others = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Losses of some updates on the same tokens, the same on every process."""
    losses = []
    for _ in range(steps):
        tokens = torch.arange(14).view(2, 7) % 7
        loss = nn.functional.cross_entropy(model(tokens).view(-1, 7), (tokens.view(-1) * 3 + 1) % 7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Both states in shards."""
    save_shards(folder / SHARDED_MODEL_FOLDER, {"model": sharded_model_state(model)})
    save_shards(folder / SHARDED_OPTIMIZER_FOLDER, {"optimizer": sharded_optimizer_state(model, optimizer)})


def note(path: Path, rank: int, **facts: Any) -> None:
    """Write down, on the first process, what it found."""
    if rank == 0:
        torch.save(facts, path)


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole states, which only the first process has."""
    model_state, optimizer_state = whole_model_state(model), whole_optimizer_state(model, optimizer)
    assert dist.get_rank() == 0 or (model_state, optimizer_state) == ({}, {})
    return copy.deepcopy({"model": model_state, "optimizer": optimizer_state})


def _link(place: int, out: Path, rank: int) -> None:
    """One link of the chain: load what the link before saved, train, save; note the states before and after."""
    model = sharded()
    optimizer = adam(model)
    facts: dict[str, Any] = {"world": dist.get_world_size()}
    if place:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        report = load_model_shards(model, out / f"link-{place - 1}" / SHARDED_MODEL_FOLDER)
        load_optimizer_shards(model, optimizer, out / f"link-{place - 1}" / SHARDED_OPTIMIZER_FOLDER)
        facts.update(loaded=states(model, optimizer), report=(report.missing, report.unexpected))
    facts["losses"] = train(model, optimizer, 3)
    save(model, optimizer, out / f"link-{place}")
    note(out / f"link-{place}.pt", rank, saved=states(model, optimizer), **facts)


def handed_out(out: Path, rank: int) -> None:
    """The first link's whole states, from the first process to all; and an optimizer's by numbers."""
    saved = torch.load(out / "link-0.pt", weights_only=True)["saved"]
    model = sharded()
    optimizer = adam(model)
    mine = saved if rank == 0 else {"model": {}, "optimizer": {}}
    put_model_state(model, mine["model"])
    put_optimizer_state(model, optimizer, mine["optimizer"])
    got = states(model, optimizer)
    alone = net()
    numbered = adam(alone)
    train(alone, numbered, 2)
    put_optimizer_state(model, optimizer, numbered.state_dict() if rank == 0 else {})
    expected = [
        numbered.state[p]["exp_avg"] for group in numbered.param_groups for p in group["params"] if p.grad is not None
    ]
    state = states(model, optimizer)["optimizer"]
    names = [name for group in state.get("param_groups", []) for name in group["params"] if name in state["state"]]
    note(
        out / "handed-out.pt",
        rank,
        world=dist.get_world_size(),
        got=got,
        expected=expected,
        numbered=[state["state"][name]["exp_avg"] for name in names] if rank == 0 else [],
    )


def wrapped_names(out: Path, rank: int) -> None:
    """Layers that are recomputed, compiled and sharded keep their names."""
    model = net()
    model.back = checkpoint_wrapper(model.back)  # type: ignore[assignment]
    fully_shard(model.module)
    fully_shard(model)
    compiled: Any = torch.compile(model, backend="eager")
    optimizer = adam(compiled)
    note(
        out / "names.pt",
        rank,
        model=sorted(whole_model_state(compiled)),
        optimizer=sorted(n for g in sharded_optimizer_state(compiled, optimizer)["param_groups"] for n in g["params"]),
    ) if rank == 0 else whole_model_state(compiled)


def first_form(out: Path, rank: int) -> None:
    """FSDP's first form saves in shards, and another world of its second form loads that."""
    model = FullyShardedDataParallel(
        net(),
        device_id=torch.device("cpu"),
        use_orig_params=True,
        device_mesh=init_device_mesh("cpu", (dist.get_world_size(),)),
    )
    assert isinstance(model, FullyShardedDataParallel)
    optimizer = adam(model)
    train(model, optimizer, 3)
    save(model, optimizer, out / "first-form")
    whole = states(model, optimizer)
    again = FullyShardedDataParallel(
        net(),
        device_id=torch.device("cpu"),
        use_orig_params=True,
        device_mesh=init_device_mesh("cpu", (dist.get_world_size(),)),
    )
    other = adam(again)
    load_model_shards(again, out / "first-form" / SHARDED_MODEL_FOLDER)
    load_optimizer_shards(again, other, out / "first-form" / SHARDED_OPTIMIZER_FOLDER)
    note(out / "first-form.pt", rank, saved=whole, loaded=states(again, other), world=dist.get_world_size())


def first_form_in_second(out: Path, rank: int) -> None:
    """What the first form saved, in the second."""
    model = sharded()
    optimizer = adam(model)
    load_model_shards(model, out / "first-form" / SHARDED_MODEL_FOLDER)
    load_optimizer_shards(model, optimizer, out / "first-form" / SHARDED_OPTIMIZER_FOLDER)
    note(out / "first-in-second.pt", rank, loaded=states(model, optimizer))


def references(out: Path, rank: int) -> None:
    """What Accelerate writes of the same model, loaded here; and what is saved here, loaded by it."""
    from accelerate.utils import fsdp_utils
    from torch.distributed.fsdp import StateDictType

    for kind in (StateDictType.SHARDED_STATE_DICT, StateDictType.FULL_STATE_DICT):
        plugin = SimpleNamespace(
            state_dict_type=kind,
            fsdp_version=2,
            state_dict_config=SimpleNamespace(),
            optim_state_dict_config=SimpleNamespace(rank0_only=True),
            cpu_offload=None,
        )
        accelerator = SimpleNamespace(
            process_index=rank,
            num_processes=1,
            is_fsdp2=True,
            is_main_process=rank == 0,
            wait_for_everyone=dist.barrier,
        )
        model = sharded(all_trained())
        optimizer = adam(model)
        train(model, optimizer, 3)
        theirs = out / f"theirs-{kind.name}"
        with patch.object(fsdp_utils, "logger", SimpleNamespace(info=lambda *_: None)), _uncrashed(fsdp_utils):
            fsdp_utils.save_fsdp_model(plugin, accelerator, model, str(theirs))
            fsdp_utils.save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(theirs))
            dist.barrier()
            other = sharded(all_trained())
            other_optimizer = adam(other)
            if (theirs / SHARDED_MODEL_FOLDER).is_dir():
                load_model_shards(other, theirs / SHARDED_MODEL_FOLDER)
            else:
                put_model_state(other, load_torch(theirs / FSDP_WEIGHTS_NAME) if rank == 0 else {})
            assert load_optimizer_across(other, other_optimizer, theirs)
            note(
                out / f"theirs-{kind.name}.pt",
                rank,
                saved=states(model, optimizer),
                loaded=states(other, other_optimizer),
            )
            if kind == StateDictType.SHARDED_STATE_DICT:
                third = sharded(all_trained())
                third_optimizer = adam(third)
                train(third, third_optimizer, 1)  # its loader expects the names that there are
                save(model, optimizer, out / "ours")
                fsdp_utils.load_fsdp_model(plugin, accelerator, third, str(out / "ours"))
                fsdp_utils.load_fsdp_optimizer(plugin, accelerator, third_optimizer, third, str(out / "ours"))
                note(out / "ours.pt", rank, saved=states(model, optimizer), loaded=states(third, third_optimizer))


def _uncrashed(fsdp_utils: Any) -> Any:
    """Without the offload that crashes the interpreter where the shards are on the CPU."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    def options(plugin: Any) -> StateDictOptions:
        whole = plugin.state_dict_type.name == "FULL_STATE_DICT"
        return StateDictOptions(full_state_dict=whole, broadcast_from_rank0=whole)

    return patch.object(fsdp_utils, "_prepare_sd_options", options)


def refused_write(out: Path, rank: int) -> None:
    """The disk refuses the second process: every process has an error of the system."""
    model = sharded()

    def write_data(self: Any, *args: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left", "a shard")

    told = ""
    with patch.object(_Writer, "write_data", write_data) if rank == 1 else _nothing():
        try:
            save_shards(out / "refused", {"model": sharded_model_state(model)})
        except OSError as error:
            told = f"{error.errno} {error}"
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, told)
    note(out / "refused.pt", rank, told=every)


def _nothing() -> Any:
    return contextlib.nullcontext()


def damaged(out: Path, rank: int) -> None:
    """A shard that is missing, cut, or of another model is an error on every process, and nobody hangs."""
    told: dict[str, str] = {}
    for name, change in {
        "missing": lambda file: file.unlink(),
        "cut": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    }.items():
        folder = out / f"damaged-{name}"
        if rank == 0:
            shutil.copytree(out / "link-0" / SHARDED_MODEL_FOLDER, folder)
            change(folder / "__1_0.distcp")  # type: ignore[no-untyped-call]
        dist.barrier()
        told[name] = _refusal(lambda folder=folder: load_model_shards(sharded(), folder))  # type: ignore[misc]
    told["shape"] = _refusal(
        lambda: load_shards(out / "link-0" / SHARDED_MODEL_FOLDER, {"model": {"back.weight": torch.empty(2, 2)}})
    )
    told["name"] = _refusal(
        lambda: load_shards(out / "link-0" / SHARDED_MODEL_FOLDER, {"model": {"other": torch.empty(2)}})
    )
    evil = out / "damaged-evil"
    if rank == 0:
        shutil.copytree(out / "link-0" / SHARDED_OPTIMIZER_FOLDER, evil)
        make_evil(evil, out / "canary")
    dist.barrier()
    model = sharded()
    told["evil"] = _refusal(lambda: load_optimizer_shards(model, adam(model), evil))
    told["model"] = _refusal(lambda: put_model_state(sharded(), {"strange": torch.ones(2)} if rank == 0 else {}))
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, told)
    note(out / "damaged.pt", rank, told=every)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def make_evil(folder: Path, canary: Path) -> None:
    """Put a pickle that makes a folder where an optimizer's shards hold a learning rate."""
    metadata = read_metadata(folder)
    place = next(place for index, place in metadata.storage_data.items() if index.fqn.endswith("lr"))
    with (folder / place.relative_path).open("r+b") as file:
        file.seek(place.offset)
        file.write(pickle.dumps(Evil(canary), protocol=2).ljust(place.length, b"\0"))


def _refusal(load: Callable[[], object]) -> str:
    try:
        load()
    except CheckpointError as error:
        return str(error)
    return "no error"


class Gloo:
    """What `Saver` asks of an engine."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()

    def every(self, value: Any) -> list[Any]:
        """The values of all."""
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The first one's."""
        return self.every(value)[0]

    def any(self, flag: bool) -> bool:
        """Whether any says so."""
        return any(self.every(flag))

    def channel(self) -> Channel:
        """Another group."""
        return Channel(dist.new_group(backend="gloo"))


def background(out: Path, rank: int) -> None:
    """Saves while training goes on: they hold the state of their step; then one that the second process cannot write."""
    model = sharded()
    optimizer = adam(model)
    saver = Saver(Gloo(), writes=rank == 0, raises=False, in_background=True)
    began, may_write = threading.Event(), threading.Event()
    original = _Writer.write_data

    def write_data(self: Any, *args: Any) -> Any:
        began.set()
        assert may_write.wait(60)
        return original(self, *args)

    def fill(stage: str) -> None:
        save(model, optimizer, Path(stage))
        Path(stage, f"of-{rank}").write_text("")

    train(model, optimizer, 2)
    saved = states(model, optimizer)
    with patch.object(_Writer, "write_data", write_data):
        saver.save(out / "checkpoint-2", Facts("run", 2, 2), fill, lambda: 0)
        assert began.wait(60)
        in_place_early = (out / "checkpoint-2").exists()
        train(model, optimizer, 2)
        dist.barrier()
        may_write.set()
        finished = saver.finished(wait=True)

    def fail(self: Any, *args: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left")

    dist.barrier()
    with patch.object(_Writer, "write_data", fail) if rank == 1 else _nothing():
        saver.save(out / "checkpoint-4", Facts("run", 4, 4), fill, lambda: 0)
        failed = saver.finished(wait=True)
    saver.save(out / "checkpoint-5", Facts("run", 5, 5), fill, lambda: 0)
    last = saver.close()
    every: list[Any] = [None] * dist.get_world_size()
    outcome = [(one.folder.name, repr(one.error)) for one in (*finished, *failed, *last)]
    dist.all_gather_object(every, (in_place_early, outcome))
    note(out / "background.pt", rank, saved=saved, every=every)


def hashed(out: Path, rank: int) -> None:
    """Which files the sealing process reads itself."""
    from mainspring.checkpoint import hashing

    model = sharded()
    save_shards(out / "hashed" / SHARDED_MODEL_FOLDER, {"model": sharded_model_state(model)})
    if rank:
        return
    (out / "hashed" / "trainer_state.json").write_text('{"global_step": 1}')
    read: list[str] = []
    original = hashing.record_file
    with patch.object(hashing, "record_file", lambda path: read.append(path.name) or original(path)):
        manifest = seal(out / "hashed", Facts("run", 1, 1))
    note(out / "hashed.pt", rank, read=read, listed=sorted(manifest.files))


CASES: dict[str, tuple[int, Callable[[Path, int], None]]] = {
    **{f"link {place}": (processes, partial(_link, place)) for place, processes in enumerate(CHAIN)},
    "handed out": (3, handed_out),
    "names": (2, wrapped_names),
    "first form": (2, first_form),
    "first form in second": (3, first_form_in_second),
    "references": (2, references),
    "refused write": (3, refused_write),
    "damaged": (3, damaged),
    "background": (2, background),
    "hashed": (3, hashed),
}
"""How many processes do what, in this order."""


def main(case: str, out: Path) -> None:
    """Do one case as one process of its world."""
    processes, work = CASES[case]
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    assert dist.get_world_size() == processes
    work(out, dist.get_rank())
    ranks.leave()
