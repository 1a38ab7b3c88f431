"""Configurations of DeepSpeed that cannot be, and what is said of each."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from mainspring import TrainingArguments
from mainspring.arguments.deepspeed.settings import deepspeed_settings
from mainspring.errors import OptionError


def zero(stage: Any, **settings: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **settings}}


def schedule(name: Any, **params: Any) -> dict[str, Any]:
    return {"scheduler": {"type": name, "params": params}}


def optimizer(**params: Any) -> dict[str, Any]:
    return {"optimizer": {"type": "AdamW", "params": params}}


SAY = "; say the same, or write 'auto'"

CONFLICTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "micro-batch": (
        {"train_micro_batch_size_per_gpu": 4},
        {},
        f"deepspeed train_micro_batch_size_per_gpu=4: the options say 8 (per_device_train_batch_size){SAY}",
    ),
    "accumulation": (
        {"gradient_accumulation_steps": 2},
        {},
        f"deepspeed gradient_accumulation_steps=2: the options say 1 (gradient_accumulation_steps){SAY}",
    ),
    "batch": ({"train_batch_size": 12}, {}, "deepspeed train_batch_size=12: the options say 8 (processes x "),
    "clipping": (
        {"gradient_clipping": 3},
        {},
        f"deepspeed gradient_clipping=3: the options say 1.0 (max_grad_norm){SAY}",
    ),
    "clipping off": (
        {"gradient_clipping": 1.0},
        {"max_grad_norm": 0},
        "deepspeed gradient_clipping=1.0: the options say 0",
    ),
    "learning rate": (
        optimizer(lr=1e-3),
        {},
        f"deepspeed optimizer.params.lr=0.001: the options say 5e-05 (learning_rate){SAY}",
    ),
    "betas": (
        optimizer(betas=[0.9, 0.98]),
        {},
        f"deepspeed optimizer.params.betas=[0.9, 0.98]: the options say [0.9, 0.999] (adam_beta1 and adam_beta2){SAY}",
    ),
    "epsilon": (optimizer(eps=1e-6), {}, "deepspeed optimizer.params.eps=1e-06: the options say 1e-08 (adam_epsilon)"),
    "decay": (optimizer(weight_decay=0.1), {}, "deepspeed optimizer.params.weight_decay=0.1: the options say 0.0"),
    "top of the warm-up": (
        schedule("WarmupLR", warmup_max_lr=1),
        {},
        "deepspeed scheduler.params.warmup_max_lr=1: the options say 5e-05",
    ),
    "fp16": (
        {"fp16": {"enabled": True}},
        {},
        "deepspeed fp16.enabled=True: the options say False (fp16 or fp16_full_eval)",
    ),
    "fp16 off": ({"fp16": {"enabled": False}}, {"fp16": True}, "deepspeed fp16.enabled=False: the options say True"),
    "bf16": (
        {"bf16": {"enabled": True}},
        {},
        "deepspeed bf16.enabled=True: the options say False (bf16 or bf16_full_eval)",
    ),
    "bf16 off": ({"bf16": {"enabled": False}}, {"bf16": True}, "deepspeed bf16.enabled=False: the options say True"),
    "both precisions": (
        {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}},
        {"bf16": True, "fp16_full_eval": True},
        "deepspeed bf16.enabled=True: fp16.enabled is true too; choose one of them",
    ),
    "node-local storage": (
        {"checkpoint": {"use_node_local_storage": True}},
        {},
        "deepspeed checkpoint.use_node_local_storage=True: the options say False (save_on_each_node)",
    ),
    "sequence parallel": (
        {"sequence_parallel_size": 2},
        {},
        "deepspeed sequence_parallel_size=2: the options say 1 (parallelism_config (sp_size))",
    ),
    "sequence parallel, other sizes": (
        {"sequence_parallel_size": 2},
        {"parallelism_config": {"sp_size": 4}},
        "deepspeed sequence_parallel_size=2: the options say 4",
    ),
    "tensor parallel": (
        {"tensor_parallel": {"autotp_size": 2}},
        {"parallelism_config": {"tp_size": 4}},
        "deepspeed tensor_parallel.autotp_size=2: the options say 4 (parallelism_config (tp_size))",
    ),
    "tensor parallel, half precision without ZeRO": (
        {"tensor_parallel": {"autotp_size": 2}, "bf16": {"enabled": "auto"}},
        {"bf16": True},
        "deepspeed tensor_parallel.autotp_size=2: at stage 0 in half precision, DeepSpeed measures the gradients of each process",
    ),
    "tensor parallel, saved in pieces": (
        {"tensor_parallel": {"autotp_size": 2}, **zero(3)},
        {},
        "deepspeed zero_optimization.stage3_gather_16bit_weights_on_model_save=False: processes divide the layers",
    ),
    "tensor parallel, parts of the vocabulary": (
        {"tensor_parallel": {"autotp_size": 2, "vocab_parallel_lm_head": True}},
        {},
        "deepspeed tensor_parallel.vocab_parallel_lm_head=True: each process would have the logits of a part of the vocabulary",
    ),
    "apex": (
        {"amp": {"enabled": True, "opt_level": "O1"}},
        {},
        "deepspeed amp.enabled=True: the package apex is not installed, and newer versions of DeepSpeed no longer use it",
    ),
    "a stage that is none": (zero(4), {}, "deepspeed zero_optimization.stage=4: is not one of 0, 1, 2, 3"),
    "a stage as text": (
        zero("3"),
        {},
        "deepspeed zero_optimization.stage='3': is not one of 0, 1, 2, 3; choose one of them: without quotes, 3",
    ),
    "no section": (
        {"zero_optimization": True},
        {},
        "deepspeed zero_optimization=True: holds no settings; write them in braces",
    ),
    "parameters offloaded at stage 2": (
        zero(2, offload_param={"device": "cpu"}),
        {},
        "deepspeed zero_optimization.offload_param.device='cpu': the stage is 2, and only stage 3 divides the parameters",
    ),
    "optimizer offloaded at stage 0": (
        zero(0, offload_optimizer={"device": "cpu"}),
        {},
        "deepspeed zero_optimization.offload_optimizer.device='cpu': the stage is 0",
    ),
    "disks at stage 2": (
        zero(2, offload_optimizer={"device": "nvme", "nvme_path": "/disk"}),
        {},
        "deepspeed zero_optimization.offload_optimizer.device='nvme': the stage is 2, and only stage 3 uses disks",
    ),
    "disks without a path": (
        zero(3, offload_param={"device": "nvme"}),
        {},
        "deepspeed zero_optimization.offload_param.nvme_path=None: device is 'nvme'; name a folder on that disk",
    ),
    "a device that is none": (
        zero(3, offload_param={"device": "cpuu"}),
        {},
        "deepspeed zero_optimization.offload_param.device='cpuu': is not one of cpu, nvme, none; choose one of them; did you mean 'cpu'?",
    ),
    "ZeRO++ at stage 2": (
        zero(2, zero_quantized_weights=True),
        {},
        "deepspeed zero_optimization.zero_quantized_weights=True: the stage is 2, and ZeRO++ needs stage 3",
    ),
    "ZeRO++ pieces at stage 1": (
        zero(1, zero_hpz_partition_size=2),
        {},
        "deepspeed zero_optimization.zero_hpz_partition_size=2: the stage is 1",
    ),
    "a key misspelt": (
        {"gradient_cliping": 1.0},
        {},
        "deepspeed gradient_cliping=1.0: there is no such key, and it would do nothing; leave it out; did you mean 'gradient_clipping'?",
    ),
    "a key of ZeRO misspelt": (
        zero(2, overlap_com=True),
        {},
        "overlap_com=True: there is no such key in zero_optimization, and it would do nothing; leave it out; did you mean 'overlap_comm'?",
    ),
    "a key of fp16 misspelt": (
        {"fp16": {"histeresis": 2}},
        {},
        "deepspeed fp16.histeresis=2: there is no such key in fp16",
    ),
    "a key of amp in fp16": (
        {"fp16": {"enabled": False, "opt_level": "O1"}},
        {},
        "deepspeed fp16.opt_level='O1': there is no such key in fp16, and it would do nothing; leave it out: only the amp section has one",
    ),
    "a note where none can be": (
        zero(2, _note="x"),
        {},
        "deepspeed zero_optimization._note='x': there is no such key in zero_optimization",
    ),
    "aio where older texts have it": (
        zero(3, aio={"block_size": 5}),
        {},
        "there is no such key in zero_optimization, and it would do nothing; write aio at the top, beside zero_optimization",
    ),
    "an older key of aio": ({"aio": {"thread_count": 1}}, {}, "it would do nothing; write aio.intra_op_parallelism"),
    "a key of aio misspelt": ({"aio": {"block_siz": 5}}, {}, "deepspeed aio.block_siz=5: there is no such key in aio"),
    "a key in another place": (
        {"gradient_accumulation_dtype": "fp32"},
        {},
        "deepspeed gradient_accumulation_dtype='fp32': there is no such key, and it would do nothing; write data_types.grad_accum_dtype",
    ),
    "a type that is none": (
        {"communication_data_type": "bfp16"},
        {},
        "deepspeed communication_data_type='bfp16': is not one of fp16, bf16, fp32; choose one of them; did you mean 'bf16'?",
    ),
    "a type of gradients that is none": ({"data_types": {"grad_accum_dtype": "float32"}}, {}, "did you mean 'fp32'?"),
    "a truth value that is none": ({"bf16": {"enabled": 1}}, {"bf16": True}, "deepspeed bf16.enabled=1: "),
    "a schedule in other letters": (
        schedule("warmuplr"),
        {},
        "deepspeed scheduler.type='warmuplr': DeepSpeed tells capital letters",
    ),
    "a schedule misspelt": (
        schedule("WarmupDecaylLR"),
        {},
        "deepspeed scheduler.type='WarmupDecaylLR': is no scheduler of DeepSpeed's",
    ),
    "a schedule without a name": (
        {"scheduler": {"params": {}}},
        {},
        "deepspeed scheduler.type=None: the scheduler has no name",
    ),
    "a parameter that a schedule lacks": (
        schedule("WarmupLR", total_num_steps="auto"),
        {},
        "deepspeed scheduler.params.total_num_steps='auto': WarmupLR has no such parameter",
    ),
    "an optimizer misspelt": (
        {"optimizer": {"type": "AdmW"}},
        {},
        "deepspeed optimizer.type='AdmW': is no optimizer of DeepSpeed's",
    ),
    "nobody knows": ({"steps_per_print": "auto"}, {}, "deepspeed steps_per_print='auto': no option says what it is"),
    "a key of checkpoints misspelt": (
        {"checkpoint": {"load_universl": True}},
        {},
        "deepspeed checkpoint.load_universl=True: there is no such key in checkpoint, and it would do nothing; leave it out; did you mean 'load_universal'?",
    ),
    "a key of the profiler misspelt": (
        {"flops_profiler": {"enable": True}},
        {},
        "deepspeed flops_profiler.enable=True: there is no such key in flops_profiler",
    ),
    "a key of autocast misspelt": (
        {"torch_autocast": {"enabled": True, "type": "bfloat16"}},
        {},
        "deepspeed torch_autocast.type='bfloat16': there is no such key in torch_autocast",
    ),
    "a writer of DeepSpeed's": (
        {"checkpoint": {"writer": {"type": "mock"}}},
        {},
        "deepspeed checkpoint.writer={'type': 'mock'}: has DeepSpeed write by itself, and a checkpoint is sealed",
    ),
    "a list of parameters": (
        {"optimizer": {"type": "AdamW", "params": []}},
        {},
        "deepspeed optimizer.params=[]: holds no settings; write them in braces",
    ),
    "a disk that nobody names": (
        zero(3, offload_optimizer={"device": "nvme", "nvme_path": "auto"}),
        {},
        "deepspeed zero_optimization.offload_optimizer.nvme_path='none': device is 'nvme'; name a folder on that disk",
    ),
    "updates of the run": (
        schedule("WarmupDecayLR", total_num_steps=100, warmup_num_steps="auto"),
        {"max_steps": 50},
        "deepspeed scheduler.params.total_num_steps=100: the options say 50 (the updates of the run)",
    ),
    "warm-up": (
        schedule("WarmupLR", warmup_num_steps=7),
        {"warmup_steps": 5},
        "deepspeed scheduler.params.warmup_num_steps=7: the options say 5 (warmup_steps)",
    ),
    "a share that warms up": (
        schedule("WarmupLR", warmup_num_steps=7),
        {"warmup_steps": 0.1, "max_steps": 50},
        "deepspeed scheduler.params.warmup_num_steps=7: the options say 5 (warmup_steps)",
    ),
    "elastic": (
        {"elasticity": {"enabled": True}},
        {},
        "deepspeed elasticity.enabled=True: DeepSpeed would choose the batch sizes",
    ),
    "data of its own": (
        {"dataloader_drop_last": True},
        {},
        "deepspeed dataloader_drop_last=True: acts on DeepSpeed's own data loader",
    ),
    "inside the backward pass": (zero(2), {"optim": "lomo"}, "optim='lomo': steps inside the backward pass"),
    "layer by layer": (
        zero(2),
        {"optim": "galore_adamw_layerwise", "optim_target_modules": "all-linear"},
        "optim='galore_adamw_layerwise': steps inside the backward pass",
    ),
    "any optimizer inside the backward pass": (
        zero(2),
        {"optimizer_in_backward": True},
        "optimizer_in_backward=True: ",
    ),
    "a model alone in pieces": (
        zero(3),
        {"save_only_model": True},
        "save_only_model=True: stage 3 divides the weights",
    ),
    "two schedules": (
        schedule("WarmupLR"),
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "metric_for_best_model": "loss"},
        "lr_scheduler_type='reduce_lr_on_plateau': follows a metric, and the DeepSpeed configuration has a schedule of its own",
    ),
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "WORLD_SIZE", "RANK"))]:
        monkeypatch.delenv(name)


def refusal(config: dict[str, Any], options: dict[str, Any]) -> list[str]:
    with pytest.raises(OptionError) as refused:
        deepspeed_settings(TrainingArguments("out", use_cpu=True, deepspeed=config, **options))
    return str(refused.value).splitlines()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONFLICTS)
def test_what_cannot_be_is_refused_with_both_values(name: str) -> None:
    config, options, said = CONFLICTS[name]
    if name == "apex" and importlib.util.find_spec("apex") is not None:
        pytest.skip("apex is installed")
    (line,) = refusal(config, options)
    assert said in line


def test_everything_is_said_at_once() -> None:
    config = {
        **zero(2, overlap_com=True, offload_param={"device": "cpu"}),
        **optimizer(lr=1),
        **schedule("WarmupDecayLR", total_num_steps=100, warmup_num_steps=7),
        "gradient_clipping": 3,
        "communication_data_type": "bfp16",
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": 12,
    }
    lines = refusal(config, {"optimizer_in_backward": True, "max_steps": 50, "warmup_steps": 5})
    both = [line for line in lines if "the options say" in line]
    assert [line.split(";")[0] for line in both] == [
        "deepspeed train_micro_batch_size_per_gpu=1: the options say 8 (per_device_train_batch_size)",
        "deepspeed gradient_clipping=3: the options say 1.0 (max_grad_norm)",
        "deepspeed optimizer.params.lr=1: the options say 5e-05 (learning_rate)",
        "deepspeed scheduler.params.total_num_steps=100: the options say 50 (the updates of the run)",
        "deepspeed scheduler.params.warmup_num_steps=7: the options say 5 (warmup_steps)",
        "deepspeed train_batch_size=12: the options say 8 (processes x per_device_train_batch_size x gradient_accumulation_steps)",
    ]
    assert [line.partition("=")[0] for line in lines] == [
        "deepspeed train_micro_batch_size_per_gpu",
        "deepspeed gradient_clipping",
        "deepspeed optimizer.params.lr",
        "deepspeed scheduler.params.total_num_steps",
        "deepspeed scheduler.params.warmup_num_steps",
        "deepspeed zero_optimization.overlap_com",
        "deepspeed communication_data_type",
        "deepspeed zero_optimization.offload_param.device",
        "optimizer_in_backward",
        "deepspeed train_batch_size",
    ]


def test_processes_that_a_launcher_announces_are_reckoned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OptionError, match=r"^deepspeed train_batch_size=12: the options say 32 "):
        TrainingArguments("out", use_cpu=True, deepspeed={"train_batch_size": 12})


def test_what_depends_on_the_processes_is_said_when_they_are_there() -> None:
    args = TrainingArguments("out", use_cpu=True, deepspeed={"train_batch_size": 12})
    with pytest.raises(OptionError, match=r"^deepspeed train_batch_size=12: the options say 8"):
        deepspeed_settings(args)


def test_a_schedule_waits_for_the_length_of_the_run() -> None:
    config = schedule("WarmupDecayLR", total_num_steps=100, warmup_num_steps=7)
    assert deepspeed_settings(TrainingArguments("out", use_cpu=True, deepspeed=config, warmup_steps=0.1)) is not None


@pytest.mark.parametrize("name", ["optimizer", "scheduler", "zero_optimization", "fp16", "data_types", "checkpoint"])
def test_a_section_that_is_null_is_none(name: str) -> None:
    """DeepSpeed looks into it."""
    settings = deepspeed_settings(TrainingArguments("out", use_cpu=True, deepspeed={name: None, "steps_per_print": 5}))
    assert settings is not None
    assert name not in settings.config
    assert not settings.makes_optimizer
    assert not settings.makes_schedule


@pytest.mark.parametrize(
    "config",
    [
        {"_note": "for the small machines", **zero(2)},
        {"optimizer": {"type": "SGD", "params": {"lr": "auto"}}},
        {"optimizer": {"type": "RAdam"}},
        {"optimizer": {"type": "adamw"}},
        schedule("CosineAnnealingLR", T_max=5),
        zero(2, offload_param={"device": "none"}),
        {"data_types": {"keep_in_fp32_modules": "auto"}},
        zero(3, param_persistence_threshold=5),
    ],
    ids=str,
)
def test_what_can_be_is_not_refused(config: dict[str, Any]) -> None:
    assert deepspeed_settings(TrainingArguments("out", use_cpu=True, deepspeed=config)) is not None
