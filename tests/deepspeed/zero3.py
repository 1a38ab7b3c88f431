"""Models that are divided before there is a trainer, or without one: each probe returns what this process saw of it."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from mainspring.arguments.deepspeed import registry
from mainspring.integrations import HfDeepSpeedConfig, deepspeed as door
from tests.deepspeed.runs import (
    ADAMW,
    DECAYS,
    config,
    facts,
    held,
    logged,
    model,
    options_of,
    series,
    trainer,
    weights,
    world_size,
)
from tests.helpers import data
from tests.helpers.seq2seq import PAD, tiny_t5

Z3 = config(3)
WORDS = 48
FORMATS = ("whole", "shards", "pickled", "other_names", "lacking", "misfit")
"""Folders of weights, all for the same model."""


def prepare(folder: Path) -> None:
    """Save what the probes load, before they are launched."""
    own = model()
    own.save_pretrained(folder / "whole")
    own.save_pretrained(folder / "shards", max_shard_size="20KB")
    texts_to_texts().save_pretrained(folder / "t5")
    experts().save_pretrained(folder / "experts")
    state = dict(own.state_dict())
    state.pop("lm_head.weight")
    norm = state.pop("transformer.ln_f.bias")
    for name, changed in {
        "pickled": {"transformer.ln_f.bias": norm},
        "other_names": {"transformer.ln_f.bias": norm, "a.stranger": norm},
        "lacking": {},
        "misfit": {"transformer.ln_f.bias": norm[:3]},
    }.items():
        (folder / name).mkdir()
        own.config.save_pretrained(folder / name)
        torch.save({**state, **changed}, folder / name / "pytorch_model.bin")


def texts_to_texts() -> Any:
    """A T5, whose texts end soon for some inputs and late for others."""
    torch.manual_seed(0)
    return tiny_t5()


def experts() -> Any:
    """A model whose experts transformers keeps one by one on the disk, and together in memory."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return MixtralForCausalLM(MixtralConfig(vocab_size=WORDS, max_position_embeddings=64, **sizes, **heads))


def raised(call: Callable[[], Any]) -> str:
    """What a call is refused with."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 (whatever it is, the test reads it)
        return f"{type(error).__name__}: {error}"
    return "nothing"


@contextlib.contextmanager
def in_force(stage: int = 3) -> Iterator[Any]:
    """A configuration that a script keeps."""
    kept = HfDeepSpeedConfig({**config(stage), "train_micro_batch_size_per_gpu": 4, "train_batch_size": 8})
    yield kept
    door.unset_hf_deepspeed_config()


def divided(folder: Path) -> Any:
    """A model that transformers divides while it loads it."""
    from transformers import AutoModelForCausalLM

    with in_force():
        return AutoModelForCausalLM.from_pretrained(folder)


def sizes(own: nn.Module) -> dict[str, Any]:
    """How a model lies on this process."""
    found: list[Any] = list(own.parameters())
    return {
        "ids": all(hasattr(p, "ds_id") for p in found),
        "here": sum(p.numel() for p in found),
        "pieces": sum(p.ds_tensor.numel() for p in found),
        "whole": sum(p.ds_numel for p in found),
    }


# ---- which configuration is in force ----


def first_load(folder: Path, out: Path) -> Any:
    """The first thing of a script: arguments, then a model, when no processes have joined yet."""
    from transformers import AutoModelForCausalLM

    args = TrainingArguments(str(out), **options_of(deepspeed=Z3))
    joined = dist.is_initialized()
    own = AutoModelForCausalLM.from_pretrained(folder / "whole")
    found = {**sizes(own), "joined": joined, "backend": dist.get_backend(), "world": dist.get_world_size()}
    run = Trainer(own, args, train_dataset=data.Items(data.ragged_text(40)), data_collator=data.collate_text)
    run.train()
    return {**found, **series(run), **facts(run)}


def both_registries(folder: Path, out: Path) -> Any:
    """What our door and transformers' say, while configurations of either class come and go."""
    from transformers.integrations import deepspeed as theirs

    def asked() -> list[bool]:
        gc.collect()
        return [door.is_deepspeed_zero3_enabled(), theirs.is_deepspeed_zero3_enabled()]

    door.unset_hf_deepspeed_config()
    found: dict[str, Any] = {"before": asked()}
    ours: Any = HfDeepSpeedConfig(Z3)
    found["ours"] = asked()
    found["config"] = [door.deepspeed_config() == Z3, theirs.deepspeed_config() == Z3]
    other: Any = theirs.HfDeepSpeedConfig(config(2))
    found["theirs_of_stage_2"] = asked()
    other = theirs.HfDeepSpeedConfig(Z3)
    found["theirs"] = asked()
    found["same"] = door.deepspeed_config() is theirs.deepspeed_config()
    del other
    found["theirs_gone"] = asked()
    ours = HfDeepSpeedConfig(Z3)
    theirs.unset_hf_deepspeed_config()
    found["unset_there"] = asked()
    ours = HfDeepSpeedConfig(Z3)
    door.unset_hf_deepspeed_config()
    found["unset_here"] = asked()
    ours = HfDeepSpeedConfig(Z3)
    del ours
    found["gone"] = asked()
    return found


# ---- without a trainer ----


def documented(folder: Path, out: Path) -> Any:
    """The documented example without a trainer: each process generates for an input of its own."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    import deepspeed

    hidden = AutoConfig.from_pretrained(folder / "t5").d_model
    ds_config = {
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": False},
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": hidden * hidden,
            "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),  # the version here refuses fractions
            "stage3_param_persistence_threshold": 0,
        },
        "steps_per_print": 2000,
        "train_batch_size": world_size(),
        "train_micro_batch_size_per_gpu": 1,
        "wall_clock_breakdown": False,
    }
    dschf = HfDeepSpeedConfig(ds_config)
    own = AutoModelForSeq2SeqLM.from_pretrained(folder / "t5")
    loaded = sizes(own)
    ds_engine = deepspeed.initialize(model=own, config_params=ds_config)[0]
    ds_engine.module.eval()
    texts = inputs_of(dist.get_rank())
    with torch.no_grad():
        outputs = ds_engine.module.generate(texts, synced_gpus=True, max_new_tokens=12)
    found = {**loaded, "tokens": outputs.tolist(), "stage": ds_engine.zero_optimization_stage()}
    ds_engine.destroy()
    del dschf
    return found


def inputs_of(rank: int) -> Tensor:
    """What a process generates from."""
    return torch.tensor([[5 + 7 * rank, 9, 4 + rank, 1]])


# ---- evaluation and generation without training ----


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """What is logged in the body."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mainspring")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def evaluations(folder: Path, out: Path) -> Any:
    """An evaluation without training, with sections that only training needs; then training."""
    run = trainer(out, divided(folder / "whole"), deepspeed=config(3, optimizer=ADAMW, scheduler=DECAYS))
    with said() as lines:
        before = run.evaluate()["eval_loss"]
    predicted = run.predict(run.eval_dataset)
    engine = run.deepspeed
    found = {
        "before": before,
        "predicted": float(torch.as_tensor(predicted.predictions).sum()),
        "optimizers": [type(engine.optimizer).__name__, run.optimizer is None, run.lr_scheduler is None],
        "lines": [line for line in lines if "without" in line],
        "numbers": held(run),
    }
    run.train()
    return {**found, **series(run), **facts(run), "after": run.evaluate()["eval_loss"]}


def uneven_texts(folder: Path, out: Path, **options: Any) -> Any:
    """Generated texts whose lengths differ from process to process, of unequally many inputs."""
    own = texts_to_texts()
    own.generation_config.eos_token_id = LAST
    given = {
        **options_of(),
        "predict_with_generate": True,
        "generation_max_length": 24,
        "per_device_eval_batch_size": 1,
    }
    run = Seq2SeqTrainer(
        own,
        Seq2SeqTrainingArguments(str(out), **given, **options),
        train_dataset=data.Items(data.ragged_text(40)),
        eval_dataset=data.Items(data.ragged_text(7, 9)),
        data_collator=data.collate_text,
    )
    texts = run.predict(run.eval_dataset).predictions
    return {"texts": texts.tolist(), "lengths": [int((row != PAD).sum()) for row in texts]}


LAST = 29
"""A token that some of the texts of that model come to at once, and the others never."""


# ---- models that were divided in other ways ----


class Tower(nn.Module):
    """Linear layers of which the constructor of the whole changes some, when they are there."""

    def __init__(self, own_start: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.second = nn.Linear(16, 1)
        if own_start:
            nn.init.constant_(self.second.weight, 0.25)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The squared error."""
        found = self.second(torch.tanh(self.first(x))).squeeze(-1)
        return {"loss": nn.functional.mse_loss(found, labels), "logits": found}


class Shares(nn.Module):
    """Uses the weights of one module in the forward pass of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The squared error."""
        hidden = torch.tanh(self.first(x))
        found = self.head(hidden @ self.first.weight).squeeze(-1)
        return {"loss": nn.functional.mse_loss(found, labels), "logits": found}


def of_points(out: Path, own: nn.Module, **options: Any) -> Any:
    """A trainer of points."""
    given = {**options_of(**options), "weight_decay": 0.0}
    return Trainer(own, TrainingArguments(str(out), **given), train_dataset=data.Items(data.points(32)))


def under_zero_init(make: Callable[[], Any]) -> Any:
    """A model whose class is called under `zero.Init`."""
    import deepspeed

    torch.manual_seed(0)
    make()  # which imports what cannot be imported where zero.Init has replaced functions of torch
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path={**Z3, "train_micro_batch_size_per_gpu": 4}):
        return make()


def constructed(folder: Path, out: Path) -> Any:
    """What is said of models whose class was called under `zero.Init`, and of those that the library made."""
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    found: dict[str, Any] = {
        "gpt2": raised(lambda: trainer(out, under_zero_init(model), deepspeed=Z3)),
        "vit": raised(lambda: of_points(out, under_zero_init(images), deepspeed=Z3)),
    }
    for name, ways in (("plain", False), ("own_start", True)):
        own = under_zero_init(partial(Tower, ways))
        with said() as lines:
            run = of_points(out, own, deepspeed=Z3)
        run.train()
        found[name] = {"losses": logged(run), "lines": lines}
    torch.manual_seed(0)
    run = of_points(out, Tower(), deepspeed=Z3)
    run.train()
    found["whole"] = logged(run)
    with in_force():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(model().config)
        other = AutoModelForImageClassification.from_config(images().config)
        found["from_config"] = {**sizes(made), "spreads": spreads(made)}
        found["other_from_config"] = raised(lambda: of_points(out, other, deepspeed=Z3))
    found["whole_spreads"] = spreads(model())
    run = trainer(out, made, deepspeed=Z3)
    run.train()
    found["from_config"]["losses"] = logged(run)
    return found


def images() -> Any:
    """A classifier of images: it has no embeddings of words."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))


def spreads(own: Any) -> dict[str, float]:
    """The standard deviation of each whole weight."""
    import deepspeed

    pieces = [p for p in own.parameters() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(pieces, enabled=bool(pieces)):
        return {name: float(p.detach().std()) for name, p in own.named_parameters()}


def for_other_engines(folder: Path, out: Path) -> Any:
    """What is said where a run divides no weights, and its model came divided."""
    return {
        "plain": raised(lambda: trainer(out, divided(folder / "whole"))),
        "stage2": raised(lambda: trainer(out, divided(folder / "whole"), deepspeed=config(2))),
    }


def changed_by_hand(folder: Path, out: Path) -> Any:
    """Losses where a script has changed gathered weights, and where a module uses those of another."""
    import deepspeed

    own = divided(folder / "whole")
    with deepspeed.zero.GatheredParameters([own.transformer.wte.weight], modifier_rank=0):
        if dist.get_rank() == 0:
            own.transformer.wte.weight.data.mul_(3.0)
    plain = model()
    plain.transformer.wte.weight.data.mul_(3.0)
    runs = {
        "changed": trainer(out, own, deepspeed=Z3),
        "changed_whole": trainer(out, plain),
        "shares": of_points(out, Shares(), deepspeed=Z3),
        "shares_whole": of_points(out, Shares()),
    }
    for run in runs.values():
        run.train()
    return {name: logged(run) for name, run in runs.items()}


# ---- what looks at the weights before training ----

LOOKS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"chunked_cross_entropy": True},
    "packed": {"pack_sequences": True, "pack_length": 64},
    "neftune": {"neftune_noise_alpha": 5.0},
}


def looks(folder: Path, out: Path) -> Any:
    """Losses and counts of a model that came divided, and of a whole one with plain data parallelism."""
    found: dict[str, Any] = {}
    for name, options in LOOKS.items():
        for how, own, ways in (("divided", divided(folder / "whole"), {"deepspeed": Z3}), ("whole", model(), {})):
            run = trainer(out, own, **options, **ways)
            run.train()
            count = run.get_num_trainable_parameters()
            found[f"{name}_{how}"] = {**series(run), "flops": run.state.total_flos, "count": count}
    return found


def resized(folder: Path, out: Path) -> Any:
    """A divided model with a larger vocabulary, and the file that is saved of it."""
    from safetensors.torch import load_file

    with in_force():
        own = divided_now(folder / "whole")
        own.resize_token_embeddings(WORDS + 8, mean_resizing=False)
        size = own.get_input_embeddings().weight
        size = list(getattr(size, "ds_shape", size.shape))
        tied = own.lm_head.weight is own.transformer.wte.weight
    gathers = {"stage3_gather_16bit_weights_on_model_save": True}
    run = trainer(out, own, deepspeed=config(3, zero_optimization=gathers))
    before = run.evaluate()["eval_loss"]
    run.train()
    run.save_model(str(out))
    dist.barrier()
    saved = load_file(out / "model.safetensors")
    return {
        "size": size,
        "tied": tied,
        "before": before,
        "saved": list(saved["transformer.wte.weight"].shape),
        "names": len(saved),
        **facts(run),
    }


def divided_now(folder: Path) -> Any:
    """As `divided`, of the configuration in force."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def new_models(folder: Path, out: Path) -> Any:
    """Losses of two runs that each load a model anew, which the configuration of the arguments divides."""
    loads = partial(divided_now, folder / "whole")
    run = Trainer(
        args=TrainingArguments(str(out), **options_of(deepspeed=Z3)),
        model_init=loads,
        train_dataset=data.Items(data.ragged_text(40)),
        data_collator=data.collate_text,
    )
    before = sizes(run.model)
    run.train()
    first = logged(run)
    run.train()
    return {"before": before, "first": first, "second": logged(run)}


def second_trainers(folder: Path, out: Path) -> Any:
    """Losses of trainers that go on with the model of another, divided and whole."""
    found: dict[str, Any] = {}
    for how, ways in (("3", {"deepspeed": Z3}), ("2", {"deepspeed": config(2)}), ("None", {})):
        own = model()
        runs: list[Any] = []
        for number, options in enumerate(({}, {"chunked_cross_entropy": True})):
            run = trainer(out, own, **options, **ways)
            runs.append(run)
            run.train()
            found[f"{how}_{number}"] = [*logged(run), run.evaluate()["eval_loss"]]
        found[f"{how}_said"] = raised(runs[0].evaluate)
    return found


# ---- weights that are loaded into pieces ----


def filled(folder: Path, out: Path) -> Any:
    """What is loaded from each folder, into pieces and into a whole model, and how much was whole at once."""
    from mainspring import checkpoint as ckpt

    found: dict[str, Any] = {}
    for name in FORMATS:
        own, whole = another(), another()
        run = trainer(out, own, deepspeed=Z3)
        run.evaluate()
        most = watch(own)
        note: dict[str, Any] = {
            "said": raised(
                lambda run=run, name=name: found.update(report=run._engine.load_weights(run.model, str(folder / name)))
            ),
            "plain": raised(lambda whole=whole, name=name: found.update(plain=ckpt.load_weights(whole, folder / name))),
            "most": max(most, default=0),
        }
        if note["said"] == "nothing":
            note["reports"] = [[*map(list, vars_of(found.pop(key)))] for key in ("report", "plain")]
            note["equal"] = equal_weights(run, whole)
            note["loss"] = run.evaluate()["eval_loss"]
            note["here"] = sum(p.numel() for p in own.parameters())
        found[name] = note
    return found


def vars_of(report: Any) -> tuple[Any, Any]:
    """The names that did not match."""
    return report.missing, report.unexpected


def another() -> Any:
    """The model with other weights."""
    own = model()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.5)
    return own


def watch(own: nn.Module) -> list[int]:
    """How many parameters are whole, after each module that is loaded."""
    seen: list[int] = []
    pieces: list[Any] = list(own.parameters())
    for module in own.modules():
        module.register_load_state_dict_post_hook(lambda *_: seen.append(sum(p.numel() == p.ds_numel for p in pieces)))
    return seen


def equal_weights(run: Any, whole: nn.Module) -> bool | None:
    """Whether gathered weights are those of a whole model; None on processes that have none."""
    state, own = weights(run), whole.state_dict()
    return all(torch.equal(tensor, own[name]) for name, tensor in state.items()) if state else None


def loaded(folder: Path, out: Path) -> Any:
    """What transformers loads in pieces, from whole and sharded files; and experts that it joins."""
    found: dict[str, Any] = {}
    for name in ("whole", "shards", "pickled"):
        own = divided(folder / name)
        run = trainer(out, own, deepspeed=Z3)
        found[name] = {**sizes(own), "loss": run.evaluate()["eval_loss"], "equal": equal_weights(run, model())}
    own = experts()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.5)
    run = trainer(out, own, deepspeed=Z3)
    run.evaluate()
    with in_force():
        report = run._engine.load_weights(own, str(folder / "experts"))
        kept = door.is_deepspeed_zero3_enabled()
    found["experts"] = {"reports": [*map(list, vars_of(report))], "equal": equal_weights(run, experts()), "kept": kept}
    return found


# ---- saving ----


def saved(folder: Path, out: Path) -> Any:
    """Whether weights that are saved in each way are those that were trained."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    gathers = {"stage3_gather_16bit_weights_on_model_save": True}
    run = trainer(out, divided(folder / "whole"), deepspeed=config(3, zero_optimization=gathers))
    run.train()
    trained = weights(run)
    with said() as lines:
        run.save_model(str(out / "trainer"))
        run.deepspeed.save_checkpoint(str(out / "engine"))
        run.model.save_pretrained(str(out / "given"), state_dict=trained, is_main_process=run.is_world_process_zero())
    quiet = not [line for line in lines if "in pieces" in line]
    with said() as lines:
        run.model.save_pretrained(str(out / f"bare-{dist.get_rank()}"))
    bare = [line for line in lines if "in pieces" in line]
    dist.barrier()
    if not trained:
        return {"bare": bare, "quiet": quiet}
    joined = get_fp32_state_dict_from_zero_checkpoint(str(out / "engine"))
    with registry.out_of_force():
        own = AutoModelForCausalLM.from_pretrained(out / "trainer").state_dict()
    return {
        "bare": bare,
        "quiet": quiet,
        "trainer": same(load_file(out / "trainer" / "model.safetensors"), trained),
        "given": same(load_file(out / "given" / "model.safetensors"), trained),
        "joined": same(joined, trained),
        "loaded": same(own, trained),
        "sizes": [len(trained), len(joined), len(own)],
        **facts(run),
    }


def same(found: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> bool:
    """Whether each of these weights is the trained one."""
    return bool(found) and all(torch.equal(tensor, trained[name]) for name, tensor in found.items())


PROBES: Mapping[str, Callable[[Path, Path], Any]] = {
    "first_load": first_load,
    "both_registries": both_registries,
    "documented": documented,
    "evaluations": evaluations,
    "uneven_texts": partial(uneven_texts, deepspeed=Z3),
    "uneven_texts_whole": uneven_texts,
    "constructed": constructed,
    "for_other_engines": for_other_engines,
    "changed_by_hand": changed_by_hand,
    "looks": looks,
    "resized": resized,
    "new_models": new_models,
    "second_trainers": second_trainers,
    "filled": filled,
    "loaded": loaded,
    "saved": saved,
}
"""What two processes are asked, by name, in this order."""
