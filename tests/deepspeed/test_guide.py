"""The guide to DeepSpeed is true: every configuration of the page is read, and started by the real engine on two processes."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mainspring import TrainingArguments
from mainspring.arguments.deepspeed import deepspeed_settings
from mainspring.arguments.deepspeed.reading import AUTO, leaves
from mainspring.errors import OptionError
from tests.deepspeed.guide import (
    EXAMPLE,
    FENCE,
    IN_FP16,
    PAGE,
    READ,
    REFUSED,
    SCATTERED,
    TRAINED,
    as_it_stands,
    completed,
    files,
)
from tests.deepspeed.read import alone, found
from tests.deepspeed.runs import options_of, whole
from tests.distributed.launch import torchrun
from tests.examples.runs import losses, results
from tests.helpers import compiled
from tests.helpers.once import once, shared

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

RANKS = range(2)
USES = {**TRAINED, **IN_FP16}


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found out of the page."""
    pytest.importorskip("deepspeed")
    pytest.importorskip("transformers")
    if compiled.why_not("cpu_adam") is None:
        compiled.build("cpu_adam")
    return once(
        shared(tmp_path_factory), "deepspeed-guide", lambda out: torchrun("tests.deepspeed.worker_guide", str(out))
    )


def trained(name: str, folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a process noted of a use, if this machine can do it."""
    note: dict[str, Any] = found(folder, name, "guide", rank)
    if "lacks" in note:
        pytest.skip(f"needs {note['lacks']}")
    return note


def test_no_block_of_the_page_is_left_out() -> None:
    blocks = files(".json")
    assert len(FENCE.findall(PAGE.read_text(encoding="utf-8"))) == len(blocks), "a block has no name, or one twice"
    used = {use.block for use in (*USES.values(), *READ.values(), SCATTERED)}
    assert used | set(REFUSED) == set(blocks)
    assert set(files(".py")) == {"train.py", "generate.py"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [*USES, *READ])
def test_a_block_is_filled_in_and_else_as_it_stands(name: str) -> None:
    """Nothing is left to the options, and nothing that they are not asked for is changed."""
    use = {**USES, **READ}[name]
    given = completed(as_it_stands(use.block))
    args = TrainingArguments("out", deepspeed=given, **options_of(**use.options))
    settings = deepspeed_settings(args)
    assert settings is not None
    filled = dict(leaves(settings.completed(32, 4000, args.get_warmup_steps(4000))))
    assert AUTO not in filled.values()
    for path, value in leaves(given):
        if value != AUTO:
            assert filled[path] == value, path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_of_the_page_follow_the_options() -> None:
    options = options_of(bf16=True, warmup_steps=0.25, learning_rate=2e-4, max_grad_norm=0.3, weight_decay=0.05)
    settings = deepspeed_settings(TrainingArguments("out", deepspeed=as_it_stands("zero3.json"), **options))
    assert settings is not None
    filled = dict(leaves(settings.completed(hidden_size=32, total_steps=40, warmup_steps=10)))
    assert {path: filled[path] for path, value in leaves(as_it_stands("zero3.json")) if value == AUTO} == {
        "zero_optimization.reduce_bucket_size": 1024,
        "zero_optimization.stage3_prefetch_bucket_size": 921,
        "zero_optimization.stage3_param_persistence_threshold": 320,
        "bf16.enabled": True,
        "optimizer.params.lr": 2e-4,
        "optimizer.params.betas": [0.9, 0.999],
        "optimizer.params.eps": 1e-8,
        "optimizer.params.weight_decay": 0.05,
        "scheduler.params.warmup_min_lr": 0,
        "scheduler.params.warmup_max_lr": 2e-4,
        "scheduler.params.warmup_num_steps": 10,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.3,
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8,
    }


@pytest.mark.parametrize("block", REFUSED)
def test_what_the_page_says_is_refused_is(block: str) -> None:
    """In one line, which names the setting and the reason."""
    setting, reason = REFUSED[block]
    with pytest.raises(OptionError) as refused:
        TrainingArguments("out", deepspeed=as_it_stands(block), use_cpu=True)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(setting)
    assert reason in line


def test_a_batch_that_does_not_come_out_is_said_with_both_sizes() -> None:
    """12 on one process in micro-batches of 4 takes three of them."""
    args = TrainingArguments("out", deepspeed=as_it_stands("batch.json"), use_cpu=True, per_device_train_batch_size=4)
    with pytest.raises(OptionError, match="^deepspeed train_batch_size=12: the options say 4 "):
        deepspeed_settings(args)


def test_what_the_trainer_refuses(guide: Path) -> None:
    """Folders of which each machine has a part."""
    assert "OptionError: save_on_each_node=True: " in found(guide, "scattered", "guide")


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", USES)
def test_the_engine_is_what_the_page_says(name: str, rank: int, guide: Path) -> None:
    """DeepSpeed's, over two processes, divided as its stage says, with the settings of the block."""
    use, note = USES[name], trained(name, guide, rank)
    stage = as_it_stands(use.block).get("zero_optimization", {"stage": 2})["stage"]
    assert (note["world_size"], note["wrapper"], note["stage"]) == (2, "DeepSpeedEngine", stage)
    assert note["numbers"] == (whole() / 2 if stage == 3 else whole())
    assert 2 * whole() / (1 if stage == 0 else 2) <= note["states"] < 2.02 * whole() / (1 if stage == 0 else 2)
    assert {key: note[key] for key in use.engine} == use.engine


@pytest.mark.parametrize("name", [name for name, use in USES.items() if use.alone is not None])
def test_losses_are_those_of_a_plain_run(name: str, guide: Path) -> None:
    """Of one process, with the same options."""
    use, note = USES[name], trained(name, guide)
    assert use.alone is not None
    assert note["loss"] == pytest.approx(alone(**use.alone)["loss"], rel=use.tolerance)
    if not {"sums", "fp16", "bf16"} & set(name.split()):
        assert note["grad_norm"] == pytest.approx(alone(**use.alone)["grad_norm"], rel=1e-4)


def warmed(top: float, steps: int) -> list[float]:
    """The rates of `WarmupLR` by its definition: in proportion to the logarithm of the updates that went before."""
    return [0.0, *(top * min(1.0, math.log(done) / math.log(steps)) for done in (1, 2, 3))]


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("zero2", warmed(1e-2, 2)),
        ("zero3", warmed(1e-2, 2)),
        ("zero3 in numbers", warmed(3e-5, 500)),
        ("WarmupLR", warmed(1e-2, 2)),
        ("WarmupLR in numbers", warmed(1e-3, 1000)),
        ("WarmupDecayLR", warmed(1e-2, 2)),  # it begins to fall with the fifth update
    ],
)
def test_schedules_of_the_page_have_their_rates(name: str, rates: list[float], guide: Path) -> None:
    assert trained(name, guide)["learning_rate"] == pytest.approx(rates, rel=1e-6)


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2 in bf16", "zero3 in bf16", "WarmupDecayLR"])
def test_stages_and_optimizers_of_the_page_agree(name: str, guide: Path) -> None:
    """With AdamW of either side, and WarmupLR; in bf16 about so."""
    wanted = trained("WarmupLR", guide)["loss"]
    assert trained(name, guide)["loss"] == pytest.approx(wanted, rel=2e-2 if "bf16" in name else 5e-5)


def test_a_device_without_fp16_is_told_of_before_anything_is_divided(guide: Path) -> None:
    said = found(guide, "no fp16", "guide")
    assert said.startswith("NotAvailableError: deepspeed fp16.enabled=True: DeepSpeed does not compute in fp16 on this")
    assert said.endswith("compute in bf16, or in fp32 by leaving it out")


def test_the_script_of_the_page_runs(guide: Path) -> None:
    assert "DeepSpeedEngine 2" in found(guide, "train.py", "guide")


@pytest.mark.parametrize("rank", RANKS)
def test_the_script_without_a_trainer_generates(rank: int, guide: Path) -> None:
    """What the whole model says to each process's own text."""
    from tests.deepspeed.runs import model

    texts = torch.tensor([[1, 2, 3]]) + rank
    expected = model().eval().generate(texts, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert found(guide, "generate.py", "guide", rank).strip().splitlines()[-1] == str(expected)


@pytest.fixture(scope="module")
def plain_example(guide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the example's run without DeepSpeed, in one process."""
    pytest.importorskip("sklearn")
    from examples import image_classification as images

    out = tmp_path_factory.mktemp("example") / "out"
    with pytest.MonkeyPatch.context() as patch:
        words = ["--model_name_or_path", str(guide / "example-3" / "vit"), "--per_device_train_batch_size", "32"]
        patch.setattr(sys, "argv", ["script", *EXAMPLE, *words, "--output_dir", str(out)])
        images.main()
    return out


@pytest.mark.parametrize("stage", [2, 3])
def test_an_example_takes_the_configurations_beside_it(stage: int, guide: Path, plain_example: Path) -> None:
    """With the losses of the run without DeepSpeed, and a whole model in the end."""
    assert found(guide, f"example {stage}", "guide") is None, "it went through"
    out = guide / f"example-{stage}" / "out"
    assert len(losses(out)) == 6
    assert losses(out) == pytest.approx(losses(plain_example), rel=1e-4)
    for name in ("eval_loss", "predict_loss"):
        assert results(out)[name] == pytest.approx(results(plain_example)[name], rel=1e-4)
    assert load_file(out / "model.safetensors").keys() == load_file(plain_example / "model.safetensors").keys()
