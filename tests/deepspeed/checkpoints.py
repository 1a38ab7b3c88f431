"""What is asked of checkpoints in several processes, each by a run or several."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed as dist

from mainspring import TrainerCallback
from mainspring.checkpoint import verify
from mainspring.checkpoint.zero import get_fp32_state_dict_from_zero_checkpoint
from mainspring.engines.deepspeed import files as files_module
from tests.deepspeed.results import RANK
from tests.deepspeed.runs import ADAMW, SAVED, config, facts, logged, optimizer, trainer, weights
from tests.helpers.models import tiny_gpt2

SAVES = {"save_strategy": "steps", "save_steps": SAVED}
GATHERS = {"stage3_gather_16bit_weights_on_model_save": True}
Ask = Callable[[Path], Any]


def raised(call: Callable[[], Any]) -> str:
    """What an error says; "nothing" without one."""
    try:
        call()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (all of them are to be told)
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Warnings(logging.Handler):
    """Keeps the package's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> Warnings:
        logging.getLogger("mainspring").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("mainspring").removeHandler(self)


def masters(run: Any) -> dict[str, torch.Tensor]:
    """The weights that are trained, as the optimizer steps them, in full precision; of stage 0 those of the model."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in ((n, p) for n, p in run.model.named_parameters() if p.requires_grad):
        whole = safe_get_full_fp32_param(parameter) if run.deepspeed.zero_optimization_stage() else parameter
        found[name] = whole.detach().clone().float()
    return found


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Whether all tensors of the first are the other's."""
    return all(torch.equal(value.float(), right[name].float()) for name, value in left.items())


def divided(stage: int, **options: Any) -> dict[str, Any]:
    """The options of a run at a stage."""
    sections = options.pop("sections", {})
    return {"deepspeed": config(stage, **sections), **options}


def first_run(out: Path, own_model: Any = None, **options: Any) -> Any:
    """A run with checkpoints."""
    run = trainer(out, own_model, **SAVES, **options)
    run.train()
    dist.barrier()
    return run


def goes_on(out: Path, source: Path, own_model: Any = None, step: int = SAVED, **options: Any) -> Any:
    """A run that goes on from a checkpoint of another."""
    run = trainer(out, own_model, **options)
    run.train(resume_from_checkpoint=str(source / f"checkpoint-{step}"))
    return run


# ---- what lies in a checkpoint ----


def contents(out: Path, stage: int) -> Any:
    """Files of checkpoints, how many are kept, whether the manifest covers all, and what is warned of."""
    run = first_run(out, save_total_limit=1, **divided(stage))
    (kept,) = sorted(path.name for path in out.glob("checkpoint-*"))
    folder = out / kept
    again = trainer(out, **SAVES, **divided(stage, max_steps=6))
    with Warnings() as heard:
        again.train(resume_from_checkpoint=True)
    return {
        **facts(run),
        "kept": kept,
        "files": sorted(path.name for path in folder.iterdir()) if folder.exists() else [],
        "left": sorted(path.name for path in out.glob("checkpoint-*")),
        "damage": verify(sorted(out.glob("checkpoint-*"))[0]),
        "steps": again.state.global_step,
        "heard": heard.texts,
    }


def damaged(out: Path, stage: int) -> Any:
    """Where a run goes on whose newest checkpoint has lost bits in the pieces of one process."""
    run = first_run(out, **divided(stage))
    if RANK == 0:
        shard = next((out / "checkpoint-4").rglob("*optim_states.pt"))
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    dist.barrier()
    again = trainer(out, **SAVES, **divided(stage))
    again.train(resume_from_checkpoint=True)
    return {
        "losses": logged(run),
        "again": logged(again),
        "left": sorted(path.name for path in out.glob("checkpoint-*")),
    }


class Foreign:
    """Executes something where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def dangerous(out: Path, stage: int) -> Any:
    """What is said of pieces with a foreign global, by the run and by DeepSpeed's engine."""
    run = first_run(out, **divided(stage))
    folder = out / "checkpoint-2"
    if RANK == 0:
        for shard in folder.rglob("*_states.pt"):
            torch.save({"optimizer_state_dict": Foreign()}, shard)
        for name in ("manifest.json", "progress.json", "training_args.json"):  # as the reference's
            (folder / name).unlink()
    dist.barrier()
    again = trainer(out / "again", **divided(stage))
    return {
        "resumed": raised(lambda: again.train(resume_from_checkpoint=str(folder))),
        "loaded": raised(lambda: run.deepspeed.load_checkpoint(str(folder))),
        "executed": os.path.exists("executed"),
    }


def no_room(out: Path, stage: int) -> Any:
    """What becomes of a run whose disk is full on one process for the first checkpoint."""
    original = files_module.Files._save

    def full(self: Any, state: Any, path: str) -> None:
        if "global_step2" in path and RANK == 1:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        original(self, state, path)

    files_module.Files._save = full  # type: ignore[method-assign]
    try:
        run = first_run(out, **divided(stage))
    finally:
        files_module.Files._save = original  # type: ignore[method-assign]
    return {"left": sorted(path.name for path in out.glob("checkpoint-*")), "steps": run.state.global_step}


def estimate(out: Path, stage: int, **options: Any) -> Any:
    """How many bytes a checkpoint was expected to take, and takes."""
    run = first_run(out, **divided(stage, **options))
    expected = run._checkpoint_bytes()
    taken = sum(path.stat().st_size for path in (out / "checkpoint-4").rglob("*") if path.is_file())
    return {"expected": expected, "taken": taken}


def in_background(out: Path, stage: int) -> Any:
    """Losses after resuming what was written in the background, and whether DeepSpeed's own files were."""
    threads: set[str] = set()
    original = files_module.Files._save

    def noted(self: Any, state: Any, path: str) -> None:
        import threading

        threads.add("main" if threading.current_thread() is threading.main_thread() else "other")
        original(self, state, path)

    files_module.Files._save = noted  # type: ignore[method-assign]
    try:
        run = first_run(out, save_in_background=True, **divided(stage))
    finally:
        files_module.Files._save = original  # type: ignore[method-assign]
    again = goes_on(out / "again", out, **divided(stage))
    return {
        "losses": logged(run),
        "again": logged(again),
        "threads": sorted(threads),
        "damage": verify(out / "checkpoint-2"),
    }


class Terminated(TrainerCallback):
    """The system asks the first process to end, in the middle of an update's work."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and RANK == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(out: Path, stage: int) -> Any:
    """A run that was asked to end, and what went on from it."""
    run = trainer(out, callbacks=[Terminated()], save_strategy="steps", save_steps=100, **divided(stage))
    ended = raised(run.train)
    dist.barrier()
    left = sorted(path.name for path in out.glob("checkpoint-*"))
    again = trainer(out, **SAVES, **divided(stage))
    again.train(resume_from_checkpoint=True)
    whole = trainer(out / "whole", **divided(stage))
    whole.train()
    return {"ended": ended, "left": left, "again": logged(again), "whole": logged(whole)}


# ---- other engines, stages and numbers of processes ----


def from_plain(out: Path, source: Path, stage: int, **options: Any) -> Any:
    """A run that goes on from a checkpoint without DeepSpeed, and its weights before the first step."""
    run = trainer(out, **divided(stage, **options))
    with Warnings() as heard:
        run.train(resume_from_checkpoint=str(source / f"checkpoint-{SAVED}"))
    return {"losses": logged(run), "rates": logged(run, "learning_rate"), "heard": heard.texts}


def masters_from_plain(out: Path, source: Path, stage: int) -> Any:
    """Whether the optimizer's copies are the checkpoint's in full precision, where the model computes in half."""
    run = trainer(out, **divided(stage, bf16=True, max_steps=SAVED))
    run.train(resume_from_checkpoint=str(source / f"checkpoint-{SAVED}"))
    stored = load_file(source / f"checkpoint-{SAVED}" / "model.safetensors")
    got = masters(run)
    return {"same": same({n: v for n, v in stored.items() if n in got}, got), "names": len(stored)}


def between_stages(out: Path, source: int, stage: int, **options: Any) -> Any:
    """Losses of a run, and of one at another stage that goes on from it."""
    run = first_run(out / "source", **divided(source, **options))
    again = goes_on(out / "on", out / "source", **divided(stage, **options))
    return {"losses": logged(run), "again": logged(again), "rates": logged(again, "learning_rate")}


def to_other_engine(out: Path, stage: int, half: bool, **options: Any) -> Any:
    """Losses of a run without DeepSpeed that goes on from a checkpoint of DeepSpeed's, and of that which wrote it."""
    run = first_run(out / "source", bf16=half, **divided(stage))
    again = goes_on(out / "on", out / "source", bf16=half, **options)
    return {"losses": logged(run), "again": logged(again), "wrapper": type(again.model_wrapped).__name__}


def for_others(out: Path, stage: int) -> Any:
    """A run whose checkpoint other numbers of processes go on from, also as a universal one."""
    run = first_run(out, **divided(stage))
    universal(out / f"checkpoint-{SAVED}")
    return {"losses": logged(run), "rates": logged(run, "learning_rate")}


def of_others(out: Path, source: Path, stage: int) -> Any:
    """Losses of this number of processes that goes on from it, both ways."""
    asks = {"checkpoint": {"load_universal": True}}
    found = {}
    for name, sections in (("pieces", {}), ("universal", asks)):
        run = goes_on(out / name, source, **divided(stage, sections=sections))
        found[name] = {**facts(run), "losses": logged(run), "rates": logged(run, "learning_rate")}
    return found


# ---- optimizers that rest elsewhere ----


def offloaded(out: Path, stage: int, place: str, **options: Any) -> Any:
    """Losses of a run whose optimizer rests elsewhere, and of others: there, on the device, and there from an engine of ours."""
    resting = {"device": place, "pin_memory": False, **({"nvme_path": str(out / "nvme")} if place == "nvme" else {})}
    there = {"optimizer": optimizer(betas="auto", eps="auto"), "zero_optimization": {"offload_optimizer": resting}}
    here = {"optimizer": ADAMW}
    run = first_run(out, wide(), **divided(stage, sections=there, **options))
    stepped = masters(run)
    with Warnings() as heard:
        again = goes_on(out / "again", out, wide(), **divided(stage, sections=there, **options))
    first_run(out / "plain", wide(), **options)
    return {
        **facts(run),
        "losses": logged(run),
        "again": logged(again),
        "heard": heard.texts,
        "far": max(float((stepped[name] - value).abs().max()) for name, value in masters(again).items()),
        "here": logged(goes_on(out / "here", out, wide(), **divided(stage, sections=here, **options))),
        "there": logged(goes_on(out / "there", out / "plain", wide(), **divided(stage, sections=there, **options))),
    }


def wide() -> Any:
    """A model of which an optimizer lays pieces on a disk: smaller ones stay in memory."""
    torch.manual_seed(0)
    return tiny_gpt2(width=192)


# ---- saved models ----


def saved(out: Path, stage: int, gathers: bool, half: bool) -> Any:
    """What `save_model` writes, and how far its weights and the checkpoint's pieces are from the trained ones."""
    run = first_run(out, bf16=half, **divided(stage, sections={"zero_optimization": GATHERS if gathers else {}}))
    whole, own = weights(run), masters(run)
    with Warnings() as heard:
        run.save_model(str(out / "saved"))
    dist.barrier()
    found: dict[str, Any] = {"files": sorted(path.name for path in (out / "saved").iterdir()), "heard": heard.texts}
    if RANK == 0:
        pieces = get_fp32_state_dict_from_zero_checkpoint(out / "checkpoint-4")
        found["pieces"] = same({name: pieces[name] for name in own}, own)
        if "model.safetensors" in found["files"]:
            stored = load_file(out / "saved" / "model.safetensors")
            found["stored"] = same(stored, whole)
            found["as_pieces"] = all(torch.equal(v, pieces[n].to(v.dtype)) for n, v in stored.items())
        else:
            left = get_fp32_state_dict_from_zero_checkpoint(out / "saved")
            found["stored"] = same({name: left[name] for name in own}, own)
    return found


def by_hand(out: Path, stage: int) -> Any:
    """Losses after DeepSpeed's own functions have saved and loaded in the middle of everything."""
    run = first_run(out, **divided(stage))
    run.deepspeed.save_checkpoint(str(out / "by_hand"))
    before = masters(run)
    again = trainer(out / "again", **divided(stage, max_steps=1))
    again.train()
    path, _ = again.deepspeed.load_checkpoint(str(out / "by_hand"))
    return {"path": Path(path).name if path else None, "same": same(before, masters(again))}


def best(out: Path, stage: int, **options: Any) -> Any:
    """A run whose best model, by a measure that only gets worse, is that of its first checkpoint."""
    by_loss = {"metric_for_best_model": "loss", "greater_is_better": True, "eval_strategy": "steps"}
    keeps = {"load_best_model_at_end": True, "save_total_limit": 1, "eval_steps": SAVED, **by_loss}
    run = first_run(out, **keeps, **divided(stage, **options))
    return {
        "best": run.state.best_metric,
        "at": run.state.best_global_step,
        "evaluated": logged(run, "eval_loss"),
        "after": run.evaluate()["eval_loss"],
        "left": sorted(path.name for path in out.glob("checkpoint-*")),
        "files": sorted(path.name for path in (out / f"checkpoint-{SAVED}").iterdir()),
        "trained": raised(run.train),
    }


def recovered(out: Path, stage: int, last: bool, **options: Any) -> Any:
    """The documented ways to whole weights while the trainer is there, and what comes of going on with its engine."""
    from mainspring.integrations.deepspeed import load_state_dict_from_zero_checkpoint
    from mainspring.trainer_utils import get_last_checkpoint

    trainer = first_run(out, **divided(stage, **options))
    own = masters(trainer)
    if last:
        checkpoint_dir = get_last_checkpoint(trainer.args.output_dir)
        fp32_model = load_state_dict_from_zero_checkpoint(trainer.model, checkpoint_dir)
    else:
        checkpoint_dir = os.path.join(trainer.args.output_dir, "checkpoint-final")
        trainer.deepspeed.save_checkpoint(checkpoint_dir)
        fp32_model = load_state_dict_from_zero_checkpoint(trainer.model, checkpoint_dir)
    whole = {name: value.detach().clone() for name, value in fp32_model.named_parameters()}
    other = tiny_gpt2(width=32).to(next(fp32_model.parameters()).dtype)
    other.load_state_dict(fp32_model.state_dict())
    ids = torch.arange(8)[None] + 3
    return {
        "engine": type(trainer.deepspeed).__name__,
        "same": same(whole, {name: value.to(whole[name].dtype) for name, value in own.items()}),
        "computes": torch.equal(fp32_model.eval()(ids).logits, other.eval()(ids).logits),
        "trained": raised(trainer.train),
        "evaluated": raised(trainer.evaluate),
    }


def filled(out: Path, stage: int) -> Any:
    """What is said to a run that goes on with weights from elsewhere, in the middle of training and after it."""

    class Fills(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                kwargs["model"].load_state_dict(tiny_gpt2(width=32).state_dict())

    run = trainer(out / "in", callbacks=[Fills()], **divided(stage))
    inside = raised(run.train)
    dist.barrier()
    run = first_run(out, **divided(stage))
    run.deepspeed.load_checkpoint(str(out / f"checkpoint-{SAVED}"))
    loaded = raised(run.train)
    run.model.load_state_dict(tiny_gpt2(width=32).state_dict())
    return {"inside": inside, "loaded": loaded, "after": raised(run.train), "evaluated": raised(run.evaluate)}


def not_universal(out: Path, source: int, stage: int) -> Any:
    """Losses of a run that asks for a universal checkpoint of one that is none, and what is said of it."""
    run = first_run(out / "source", **divided(source))
    with Warnings() as heard:
        asks = {"checkpoint": {"load_universal": True}}
        again = goes_on(out / "on", out / "source", **divided(stage, sections=asks))
    return {"losses": logged(run), "again": logged(again), "heard": heard.texts}


def with_adapters() -> Any:
    """A model of which a hundredth is trained."""
    import peft

    torch.manual_seed(3)
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return peft.get_peft_model(tiny_gpt2(dropout=0.1, width=64), settings)


def _are_adapters_of(folder: Path, trained: Mapping[str, Tensor]) -> bool:
    """Whether PEFT finds all adapters of these weights in a folder: on the process that has the weights whole."""
    saved = load_file(folder / "adapter_model.safetensors")
    wanted = {name.replace(".default", ""): value for name, value in trained.items() if "lora_" in name}
    return not trained or (saved.keys() == wanted.keys() and all(torch.equal(saved[n], wanted[n]) for n in saved))


def adapters(out: Path, stage: int, **options: Any) -> Any:
    """A run of adapters, what it leaves with and without the frozen weights, and what goes on from it."""
    run = first_run(out, with_adapters(), **divided(stage, **options))
    run.deepspeed.save_checkpoint(str(out / "with_frozen"))
    trained = weights(run)
    again = goes_on(out / "again", out, with_adapters(), **divided(stage, **options))
    other = goes_on(out / "other", out, with_adapters(), **divided(5 - stage, **options))
    folder = out / "checkpoint-4"
    return {
        **facts(run),
        "losses": logged(run),
        "again": logged(again),
        "other": logged(other),
        "same": same(masters(run), masters(again)),
        "files": sorted(path.name for path in folder.iterdir()),
        "adapters_are_the_trained": _are_adapters_of(folder, trained),
        "without": _weight(folder),
        "with": _weight(out / "with_frozen"),
        "damage": verify(folder),
    }


def _weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("global_step*/*"))


def universal(folder: Path) -> None:
    """Make a universal checkpoint of one, as documented; one process does."""
    if RANK == 0:
        tag = (folder / "latest").read_text()
        alone = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("TORCHELASTIC", "MASTER", "RANK", "WORLD", "LOCAL"))
        }
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        subprocess.run(
            [*command, "--input_folder", str(folder / tag), "--output_folder", str(folder / f"{tag}_universal")],
            env=alone, check=True, capture_output=True,
        )  # fmt: skip
    dist.barrier()


STAGES = (0, 1, 2, 3)
OTHERS: Mapping[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"fsdp": "full_shard", "fsdp_config": {"version": 2, "min_num_params": 1}},
}
DIVIDED = (1, 2, 3)
BEST: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = (
    ("2", {}, {}),
    ("2_only_the_model", {}, {"save_only_model": True}),
    ("2_in_the_background", {}, {"save_in_background": True}),
    ("3", {}, {}),
    ("3_whole", GATHERS, {}),
    ("3_only_the_model", GATHERS, {"save_only_model": True}),
    ("3_in_the_background", {}, {"save_in_background": True, "bf16": True}),
)
HAS_PEFT = importlib.util.find_spec("peft") is not None
ADAPTERS: Mapping[str, Mapping[str, Any]] = {"2": {}, "3": {}, "3_whole": GATHERS} if HAS_PEFT else {}


def asked(shared: Path) -> Mapping[str, Ask]:
    """All that two processes are asked, by name; what several need is made in `shared`."""
    plain = shared / "plain"
    return {
        **{f"contents{stage}": partial(contents, stage=stage) for stage in STAGES},
        **{f"damaged{stage}": partial(damaged, stage=stage) for stage in (2, 3)},
        **{f"dangerous{stage}": partial(dangerous, stage=stage) for stage in (2, 3)},
        **{f"no_room{stage}": partial(no_room, stage=stage) for stage in (2, 3)},
        **{f"estimate{stage}": partial(estimate, stage=stage) for stage in STAGES},
        **{f"estimate{stage}_bf16": partial(estimate, stage=stage, bf16=True) for stage in STAGES},
        **{f"in_background{stage}": partial(in_background, stage=stage) for stage in STAGES},
        "stopped2": partial(stopped, stage=2),
        **{f"from_plain{stage}": partial(from_plain, source=plain, stage=stage) for stage in STAGES},
        **{f"from_plain{stage}_bf16": partial(from_plain, source=plain, stage=stage, bf16=True) for stage in STAGES},
        **{f"masters{stage}": partial(masters_from_plain, source=plain, stage=stage) for stage in DIVIDED},
        **{
            f"stage{source}_to_{stage}": partial(between_stages, source=source, stage=stage)
            for source in STAGES
            for stage in STAGES
            if source != stage
        },
        **{f"for_others{stage}": partial(for_others, stage=stage) for stage in DIVIDED},
        **{
            f"stage{stage}_{'bf16' if half else 'fp32'}_to_{name}": partial(
                to_other_engine, stage=stage, half=half, **options
            )
            for name, options in OTHERS.items()
            for stage in STAGES
            for half in (False, True)
        },
        **{f"by_hand{stage}": partial(by_hand, stage=stage) for stage in DIVIDED},
        **{
            f"best_{name}": partial(best, stage=int(name[0]), sections={"zero_optimization": {**whole}}, **options)
            for name, whole, options in BEST
        },
        **{
            f"recovered{stage}_{'last' if last else 'by_hand'}{'_bf16' if half else ''}": partial(
                recovered, stage=stage, last=last, bf16=half
            )
            for stage, half in ((2, False), (2, True), (3, False), (3, True))
            for last in (True, False)
        },
        **{f"filled{stage}": partial(filled, stage=stage) for stage in (0, 1, 2)},
        **{
            f"not_universal{source}_{stage}": partial(not_universal, source=source, stage=stage)
            for source, stage in ((2, 2), (3, 3), (2, 3))
        },
        **{
            f"adapters{name}": partial(adapters, stage=int(name[0]), sections={"zero_optimization": {**whole}})
            for name, whole in ADAPTERS.items()
        },
        **{
            f"saved{stage}_{'whole' if gathers else 'pieces'}_{'bf16' if half else 'fp32'}": partial(
                saved, stage=stage, gathers=gathers, half=half
            )
            for stage in DIVIDED
            for gathers in (True, False)
            for half in (True, False)
            if gathers or stage == 3
        },
    }


def asked_of_others(shared: Path) -> Mapping[str, Ask]:
    """All that another number of processes is asked."""
    made = shared / "checkpoints"
    return {f"stage{stage}": partial(of_others, source=made / f"for_others{stage}", stage=stage) for stage in DIVIDED}


def asked_of_offloaded(shared: Path) -> Mapping[str, Ask]:
    """What is asked where DeepSpeed's own Adam for the host steps."""
    return {
        f"stage{stage}_{'bf16' if half else 'fp32'}": partial(offloaded, stage=stage, place="cpu", bf16=half)
        for stage in (2, 3)
        for half in (False, True)
    }


def asked_of_nvme(shared: Path) -> Mapping[str, Ask]:
    """What is asked where the optimizer rests on a disk."""
    return {
        f"nvme_{'bf16' if half else 'fp32'}": partial(offloaded, stage=3, place="nvme", bf16=half)
        for half in (False, True)
    }


ASKED: Mapping[str, Callable[[Path], Mapping[str, Ask]]] = {
    "checkpoints": asked,
    "one": asked_of_others,
    "four": asked_of_others,
    "offloaded": asked_of_offloaded,
    "nvme": asked_of_nvme,
}
"""By the kind of work."""
