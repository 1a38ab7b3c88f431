"""What users do with sharded models beside training them: each returns what this process saw of it."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback
from mainspring.engines.fsdp.first import AgreeingScaler
from tests.distributed.fsdp_cases import ENGINES, first
from tests.distributed.fsdp_runs import arguments, logged, model, trainer
from tests.helpers import data
from tests.helpers.models import Regressor
from tests.helpers.seq2seq import tiny_t5

VERSIONS: Mapping[str, dict[str, Any]] = {"2": {"fsdp": True}, "1": {"fsdp": True, "fsdp_config": first()}}
ALL: Mapping[str, dict[str, Any]] = {"ddp": {}, **VERSIONS}

Probe = Callable[[Path], dict[str, Any]]


def each(ways: Mapping[str, dict[str, Any]], look: Callable[[Path, dict[str, Any]], Any]) -> Probe:
    """A probe that looks at several ways to train."""
    return lambda out: {name: look(out / name, dict(options)) for name, options in ways.items()}


# ---- evaluation ----


def evaluations(out: Path, options: dict[str, Any]) -> Any:
    """The loss before training, without it, and after it."""
    run = trainer(out, **options)
    before = run.evaluate()["eval_loss"]
    predicted = run.predict(run.eval_dataset).predictions.sum().item()
    run.train()
    return [before, predicted, *logged(run), run.evaluate()["eval_loss"]]


def half_evaluations(out: Path, options: dict[str, Any]) -> Any:
    """Losses of evaluations in half precision, around training in fp32."""
    run = trainer(out, bf16_full_eval=True, **options)
    before = run.evaluate()["eval_loss"]
    run.train()
    return [before, run.evaluate()["eval_loss"]]


def generations(out: Path, options: dict[str, Any]) -> Any:
    """Sums of generated tokens, for texts of different lengths on each process, before and after training."""
    found = []
    for build in (tiny_t5, model):
        torch.manual_seed(0)
        arguments = Seq2SeqTrainingArguments(
            str(out),
            use_cpu=True,
            max_steps=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=2,
            learning_rate=0.01,
            predict_with_generate=True,
            generation_max_length=24,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            **options,
        )
        run = Seq2SeqTrainer(
            build(),
            arguments,
            train_dataset=data.Items(data.ragged_text(40)),
            eval_dataset=data.Items(data.ragged_text(11, 9)),
            data_collator=data.collate_text,
            compute_metrics=lambda prediction: {"sum": float(prediction.predictions.sum())},
        )
        before = run.evaluate()
        run.train()
        after = run.evaluate()
        found += [before["eval_sum"], after["eval_sum"], after["eval_loss"]]
    return found


# ---- where weights come from and go to ----


def unlike_models(out: Path, options: dict[str, Any]) -> Any:
    """Losses where only the first process has the right weights."""
    own = model()
    if dist.get_rank() != 0:
        for parameter in own.parameters():
            nn.init.normal_(parameter)
    run = trainer(out, own, **options)
    run.train()
    return logged(run)


def unsynchronised(out: Path) -> dict[str, Any]:
    """The same, where the first version is told to leave them so."""
    return {"losses": unlike_models(out, {"fsdp": True, "fsdp_config": first(sync_module_states=False)})}


def empty_models(out: Path, options: dict[str, Any]) -> Any:
    """Losses where the other processes have no weights at all, and whether tied ones are still tied."""
    config = {**options.get("fsdp_config", {}), "cpu_ram_efficient_loading": True}
    if dist.get_rank() == 0:
        own = model()
    else:
        with torch.device("meta"):
            own = model()
        own.tie_weights()
    run = trainer(out, own, **{**options, "fsdp_config": config})
    run.train()
    return {"losses": logged(run), "tied": run.model.lm_head.weight is run.model.transformer.wte.weight}


def no_weights(out: Path) -> dict[str, Any]:
    """What is said where no process has weights."""
    with torch.device("meta"):
        own = model()
    return raised(lambda: trainer(out, own, fsdp=True).train())


def pretrained(out: Path) -> dict[str, Any]:
    """Losses of a model that `from_pretrained` opened after arguments that ask it to load on the first process only."""
    saved = out / "saved"
    if dist.get_rank() == 0:
        model().save_pretrained(saved)
    dist.barrier()
    options = arguments(out / "run", fsdp=True, fsdp_config={"cpu_ram_efficient_loading": True})
    _ = options.device
    own = type(model()).from_pretrained(saved)
    run = Trainer(own, options, data.collate_text, data.Items(data.ragged_text(40)))
    run.train()
    return {"losses": logged(run), "variable": os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")}


def unlike_buffers(out: Path, options: dict[str, Any]) -> Any:
    """Losses where the other processes have no values in buffers either, which no checkpoint holds; the plain run's first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    found = []
    for way in ({}, options):
        torch.manual_seed(0)
        own = LlamaForCausalLM(
            LlamaConfig(vocab_size=48, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        )
        if way and dist.get_rank() != 0:
            for tensor in (*own.parameters(), *own.buffers()):
                tensor.detach().zero_()
        run = trainer(out, own, **way)
        run.train()
        found.append(logged(run))
    return found


def saved_models(out: Path, options: dict[str, Any]) -> Any:
    """`save_model` of shards, opened by `from_pretrained`: whether it evaluates as the sharded model does."""
    config = {**options.get("fsdp_config", {}), "state_dict_type": "SHARDED_STATE_DICT"}
    run = trainer(out, **{**options, "fsdp_config": config})
    run.train()
    run.save_model(str(out))
    dist.barrier()
    opened = type(model()).from_pretrained(out)
    plain = trainer(out, opened)
    return {
        "classes": opened.config.architectures,
        "there": plain.evaluate()["eval_loss"],
        "here": run.evaluate()["eval_loss"],
    }


def best_models(out: Path, options: dict[str, Any]) -> Any:
    """Which update was the best, and the loss of the model that was loaded back at the end."""
    events = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run = trainer(out, **events, load_best_model_at_end=True, greater_is_better=True, learning_rate=0.5, **options)
    run.train()
    return [run.state.best_global_step, run.state.best_metric, run.evaluate()["eval_loss"]]


def only_models(out: Path, options: dict[str, Any]) -> Any:
    """The files of a checkpoint without the rest."""
    run = trainer(out, save_strategy="steps", save_steps=2, save_only_model=True, **options)
    run.train()
    return sorted(path.name for path in (out / "checkpoint-2").iterdir())


def reference_files(out: Path) -> dict[str, Any]:
    """Losses of runs that go on from a whole state under the name that the reference gives it."""
    made = out / "made"
    run = trainer(made, save_strategy="steps", save_steps=2, fsdp=True)
    run.train()
    state = run.accelerator.get_state_dict(run.model)
    folder = made / "checkpoint-2"
    if dist.get_rank() == 0:
        _as_the_reference(folder, made / "theirs")
    dist.barrier()
    found = {}
    for name, options in ALL.items():
        again = trainer(out / name, **options)
        again.train(resume_from_checkpoint=str(made / "theirs"))
        found[name] = logged(again)
    return {**found, "names": len(state)}


def _as_the_reference(ours: Path, theirs: Path) -> None:
    from safetensors.torch import load_file

    theirs.mkdir()
    for name in ("optimizer.bin", "scheduler.pt", "trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"):
        (theirs / name).write_bytes((ours / name).read_bytes())
    state = load_file(ours / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"]
    torch.save(state, theirs / "pytorch_model_fsdp.bin")


def adapters(out: Path, options: dict[str, Any]) -> Any:
    """Losses of an adapter's run, and of one that goes on from its checkpoint; what was saved."""
    import peft

    def build() -> Any:
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        return peft.get_peft_model(model(), config)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frozen parameters beside others take more memory in the first version
        run = trainer(out, build(), save_strategy="steps", save_steps=2, **options)
        run.train()
        again = trainer(out, build(), **options)
        again.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    return {
        "losses": logged(run),
        "again": logged(again),
        "files": sorted(p.name for p in (out / "checkpoint-2").iterdir()),
    }


# ---- gradients ----


class StopOnce(TrainerCallback):
    """Ends the epoch in the middle of the second update."""

    def __init__(self) -> None:
        self.done = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop once."""
        if state.global_step == 1 and not self.done:
            self.done = control.should_epoch_stop = True


def half_updates(out: Path, options: dict[str, Any]) -> Any:
    """Gradient norms around an update that was left in the middle."""
    counts = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    run = trainer(out, callbacks=[StopOnce()], **counts, **options)
    run.train()
    return logged(run, "grad_norm")


def frozen(out: Path, options: dict[str, Any]) -> Any:
    """Losses with a layer and the embeddings frozen."""
    own = model()
    own.transformer.h[0].requires_grad_(False)
    own.transformer.wte.requires_grad_(False)
    run = trainer(out, own, gradient_accumulation_steps=2, **options)
    run.train()
    return logged(run)


class SpoiledOnce(Trainer):
    """A piece of a gradient overflows in the second update, on the last process only."""

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.state.global_step == 1 and dist.get_rank() == dist.get_world_size() - 1:
            pieces = (p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters())
            next(piece for piece in pieces if piece is not None and piece.numel()).view(-1)[0] = float("inf")
        return super()._clip_grad_norm(model)


class Skips(TrainerCallback):
    """Notes which steps were skipped."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.noted: list[bool] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the engine."""
        self.noted.append(self.engine.step_was_skipped)


def overflows(out: Path, options: dict[str, Any]) -> Any:
    """Steps that were skipped with scaled losses: one, then all; and losses, which must not be those of spoiled weights."""
    found = []
    for cls, scale in ((SpoiledOnce, 4.0), (Trainer, 3e38)):
        skips = Skips()
        run = trainer(out, callbacks=[skips], cls=cls, **options)
        plain = torch.amp.GradScaler("cpu", init_scale=scale)
        is_first = "fsdp_config" in options
        run._engine.scaler = AgreeingScaler.like(plain, torch.device("cpu")) if is_first else plain
        skips.engine = run._engine
        run.train()
        found.append({"skipped": skips.noted, "losses": logged(run)})
    return found


def scaled(out: Path, options: dict[str, Any]) -> Any:
    """A run in fp16, with what it computed in, and one that goes on from its second update."""
    formats: set[str] = set()
    own = model()
    own.transformer.h[0].mlp.c_fc.register_forward_hook(lambda *call: formats.add(str(call[-1].dtype)))
    run = trainer(out, own, fp16=True, save_strategy="steps", save_steps=2, **options)
    run.train()
    again = trainer(out, fp16=True, **options)
    again.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    return {
        "world_size": run.args.world_size,
        "wrapper": type(run.model_wrapped).__name__,
        "scaler": type(run._engine.scaler).__name__,
        "formats": sorted(formats),
        "losses": logged(run),
        "norms": logged(run, "grad_norm"),
        "again": logged(again),
    }


# ---- what others read ----


def accelerators(out: Path, options: dict[str, Any]) -> Any:
    """What `trainer.accelerator` says and does."""
    run = trainer(out, **options)
    run.train()
    accelerator = run.accelerator
    second = accelerator.prepare(model())
    logits = second(input_ids=torch.ones(1, 3, dtype=torch.long)).logits
    return {
        "type": accelerator.distributed_type.value,
        "plugin": getattr(accelerator.state, "fsdp_plugin", None) is not None,
        "unwraps": accelerator.unwrap_model(run.model_wrapped) is run.model,
        "second": isinstance(second, (FSDPModule, FullyShardedDataParallel)),
        "shape": list(logits.shape),
        "names": sorted(accelerator.get_state_dict(run.model)),
        "loss": run.evaluate()["eval_loss"],
        "same": run.accelerator.prepare(run.model) is run.model_wrapped,
        "second_version": accelerator.is_fsdp2,
        "operations": run.state.total_flos,
    }


def later_trainers(out: Path, options: dict[str, Any]) -> Any:
    """Evaluation losses of the trainer that sharded a model, and of a later one that is given it as it is."""
    run = trainer(out, **options)
    run.train()
    again = trainer(out, run.model, **options)
    found = [run.evaluate()["eval_loss"], again.evaluate()["eval_loss"]]
    run.train()
    again.train()
    return [*found, logged(run)[-1], logged(again)[-1]]


def new_models(out: Path, options: dict[str, Any]) -> Any:
    """Losses of two calls of `train` with `model_init`."""

    run = Trainer(
        model_init=model,
        args=arguments(out, **options),
        train_dataset=data.Items(data.ragged_text(40)),
        data_collator=data.collate_text,
    )
    run.train()
    once = logged(run)
    run.train()
    return [once, logged(run)]


def policies(out: Path) -> dict[str, Any]:
    """How torch was told to offload and reshard."""
    offloads = trainer(out, fsdp=True, fsdp_config={"cpu_offload": True})
    offloads.train()
    policy = offloads.model._get_fsdp_state()._fsdp_param_groups[0].offload_policy
    found: dict[str, Any] = {"offloads": isinstance(policy, CPUOffloadPolicy), "pins": policy.pin_memory}
    for name, config in {"freed": {}, "kept": {"reshard_after_forward": False}}.items():
        found[name] = _gathered_after_forward(out, config)
    config = first(forward_prefetch=True, backward_prefetch="backward_post", limit_all_gathers=True)
    run = trainer(out, fsdp=True, fsdp_config=config)
    run.train()
    wrapped = run.model_wrapped
    found["first"] = [
        wrapped.sharding_strategy.name,
        wrapped.forward_prefetch,
        wrapped.backward_prefetch.name,
        wrapped.limit_all_gathers,
        wrapped._use_orig_params,
    ]
    return found


def _gathered_after_forward(out: Path, config: dict[str, Any]) -> bool:
    seen: list[bool] = []

    class Watching(Trainer):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, *args, **kwargs)
            seen.append(not isinstance(next(self.model.transformer.h[0].parameters()), DTensor))
            return loss

    run = trainer(out, cls=Watching, fsdp=True, fsdp_config=config)
    run.train()
    return seen[0]


def precisions(out: Path, options: dict[str, Any]) -> Any:
    """What a layer's weight is in a bf16 forward pass, and what it is kept and saved as."""
    seen: list[str] = []
    own = model()
    own.transformer.h[0].ln_1.register_forward_pre_hook(lambda module, _: seen.append(str(module.weight.dtype)))
    run = trainer(out, own.bfloat16(), bf16=True, **options)
    run.train()
    kept = {str(parameter.dtype) for parameter in run.model.parameters()}
    saved = {str(tensor.dtype) for tensor in run.accelerator.get_state_dict(run.model).values()}
    return {"gathered": seen[0], "kept": sorted(kept), "saved": sorted(saved)}


def other_models(out: Path, options: dict[str, Any]) -> Any:
    """Losses of a model that no library knows, before and after a resume."""

    def run(checkpoint: str | None) -> list[float]:
        torch.manual_seed(0)
        given = arguments(out, save_strategy="steps", save_steps=2, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = Trainer(Regressor(), given, train_dataset=data.Items(data.points(32)))
            one.train(resume_from_checkpoint=checkpoint)
        return logged(one)

    return [run(None), run(str(out / "checkpoint-2"))]


# ---- refusals ----


def raised(work: Callable[[], Any]) -> dict[str, Any]:
    """The error of a piece of work."""
    try:
        work()
    except Exception as error:  # noqa: BLE001
        return {"type": type(error).__name__, "text": str(error)}
    return {"type": None, "text": ""}


def refusals(out: Path) -> dict[str, Any]:
    """What is not done, and what is said of it."""
    own = model()
    stepped = torch.optim.SGD(own.parameters(), lr=0.1)

    def with_optimizer() -> Any:
        return Trainer(own, trainer(out, fsdp=True).args, optimizers=(stepped, None))

    def broken_promise() -> None:
        run = trainer(out, fsdp=True)
        run._engine.shard = lambda model, units: model
        run.train()

    return {
        "optimizer": raised(with_optimizer),
        "unknown_layer": raised(
            lambda: trainer(out, fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": "GPT2Blok"})
        ),
        "offload_of_first": raised(lambda: trainer(out, fsdp=True, fsdp_config=first(cpu_offload=True))),
        "not_sharded": raised(broken_promise),
    }


INSIDE: Mapping[str, dict[str, Any]] = {
    "option": {"optimizer_in_backward": True},
    "layerwise": {"optim": "galore_adamw_layerwise", "optim_target_modules": ["lm_head"]},
    "lomo": {"optim": "lomo"},
}


def inside(out: Path, options: dict[str, Any]) -> Any:
    """What is said, before any work, of optimizers inside the backward pass."""
    return {name: raised(lambda asked=asked: trainer(out, **asked, **options)) for name, asked in INSIDE.items()}  # type: ignore[misc]


SHARDED = {name: dict(options) for name, options in ENGINES.items()}

PROBES: Mapping[str, Probe] = {
    "evaluations": each(ALL, evaluations),
    "half_evaluations": each(ALL, half_evaluations),
    "generations": each(ALL, generations),
    "unlike_models": each(VERSIONS, unlike_models),
    "unsynchronised": unsynchronised,
    "empty_models": each(VERSIONS, empty_models),
    "no_weights": no_weights,
    "pretrained": pretrained,
    "unlike_buffers": each(VERSIONS, unlike_buffers),
    "saved_models": each(VERSIONS, saved_models),
    "best_models": each(SHARDED, best_models),
    "only_models": each(VERSIONS, only_models),
    "reference_files": reference_files,
    "half_updates": each({**ALL, "flat": {"fsdp": True, "fsdp_config": first(use_orig_params=False)}}, half_updates),
    "frozen": each(ALL, frozen),
    "overflows": each(VERSIONS, overflows),
    "scaled": each(ALL, scaled),
    "inside": each(ALL, inside),
    "accelerators": each(ALL, accelerators),
    "later_trainers": each(ALL, later_trainers),
    "new_models": each(VERSIONS, new_models),
    "policies": policies,
    "precisions": each(VERSIONS, precisions),
    "other_models": each(ALL, other_models),
    "refusals": refusals,
}
"""What two processes are asked, by name."""

if importlib.util.find_spec("peft"):
    PROBES = {**PROBES, "adapters": each({**SHARDED}, adapters)}
