"""The drop-in promise about imports: every name of the reference's modules is handed on, or stands in a table here.

A name that is absent fails at the import line, with a message that says so. The tables below only shrink.
"""

from __future__ import annotations

from importlib import import_module

import pytest

import mainspring

pytestmark = pytest.mark.parity

# What the reference's top level has of its training modules.
TOP_LEVEL_MODULES = {
    "data.data_collator",
    "hf_argparser",
    "optimization",
    "trainer",
    "trainer_callback",
    "trainer_pt_utils",
    "trainer_seq2seq",
    "trainer_utils",
    "training_args",
    "training_args_seq2seq",
}
ABSENT_AT_THE_TOP: set[str] = set()

ABSENT: dict[str, set[str]] = {
    "trainer_utils": {
        # hyper-parameter search
        "default_hp_space_optuna",
        "default_hp_space_ray",
        "default_hp_space_wandb",
        # several processes and devices
        "total_processes_number",
        # models: internal helpers of the reference, or weights in several files
        "check_target_module_exists",
        "load_sharded_checkpoint",
        "unwrap_peft_model",
        "validate_quantization_for_training",
        # internal
        "compare_trainer_and_checkpoint_args",
        "suppress_progress_bars",
    },
    "training_args": {"str_to_bool"},
    "training_args_seq2seq": set(),
    "trainer_callback": set(),
    "trainer_pt_utils": {
        # several processes
        "DistributedSamplerWithLoop",
        "ShardSampler",
        "distributed_broadcast_scalars",
        "distributed_concat",
        "get_tpu_sampler",
        "nested_gather",
        "nested_xla_mesh_reduce",
        # optimizers per layer
        "LayerWiseDummyOptimizer",
        "LayerWiseDummyScheduler",
        # bodies of methods of Trainer
        "get_learning_rates",
        "get_num_trainable_parameters",
        "get_optimizer_group",
        "log_metrics",
        "save_metrics",
        "save_state",
        # internal
        "expand_like",
        "get_dataloader_sampler",
        "get_module_class_from_name",
        "is_attention_mask_causal",
        "nested_new_like",
        "reissue_pt_warnings",
        "remove_dummy_checkpoint",
        "safe_globals",
        "set_rng_state_for_device",
    },
    "trainer_seq2seq": set(),
    "optimization": set(),
    "hf_argparser": {"DataClass", "DataClassType", "make_choice_type_function", "string_to_bool"},
    "debug_utils": set(),
    "data.data_collator": {"to_numpy"},
}

# Absent too; the reference's modules hand these on from others.
ABSENT_ELSEWHERE = {
    "integrations": {"TensorBoardCallback", "WandbCallback", "get_reporting_integration_callbacks"},
    "utils.notebook": {"NotebookProgressCallback"},
}

# Handed on by the doors and the top level, though the newest reference has dropped them.
OF_THE_OLDER_GENERATION = {"DataCollatorForSOP", "DataCollatorForWholeWordMask"}

# Scripts of the reference import it from Accelerate.
OF_ACCELERATE = {"notebook_launcher"}

# Its guide imports them from DeepSpeed, below what the door hands on.
OF_DEEPSPEED = {"get_fp32_state_dict_from_zero_checkpoint", "load_state_dict_from_zero_checkpoint"}

OWN = {"EMACallback"}
"""What the reference has no counterpart of."""

# Imported by scripts from these modules, though the reference defines them elsewhere.
ALSO = {
    "training_args": {"DebugOption", "FSDPOption", "HubStrategy", "IntervalStrategy", "SaveStrategy", "SchedulerType"},
    "trainer_utils": {"PREFIX_CHECKPOINT_DIR"},
}


def defined_in(door: str) -> set[str]:
    """The public classes and functions that the reference's module defines itself."""
    module = import_module(f"transformers.{door}")
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.parametrize("door", sorted(ABSENT))
def test_each_name_is_handed_on_or_absent_by_name(door: str) -> None:
    ours = set(import_module(f"mainspring.{door}").__all__)
    theirs = defined_in(door) | ALSO.get(door, set())
    assert theirs - ours == ABSENT[door]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((f"mainspring.{door}", name) for door in ABSENT for name in sorted(ABSENT[door])),
        *((f"mainspring.{door}", name) for door in ABSENT_ELSEWHERE for name in sorted(ABSENT_ELSEWHERE[door])),
        *(("mainspring", name) for name in sorted(ABSENT_AT_THE_TOP)),
    ],
)
def test_importing_an_absent_name_says_that_it_is_not_available_yet(module: str, name: str) -> None:
    with pytest.raises(ImportError, match=rf"^{name} is not available yet in {module}$"):
        exec(f"from {module} import {name}", {})


@pytest.mark.parametrize("door", sorted({*ABSENT, "integrations", "utils", "utils.notebook"}))
def test_a_door_hands_on_what_it_lists_and_nothing_that_the_reference_lacks(door: str) -> None:
    module = import_module(f"mainspring.{door}")
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    if module.__all__:
        reference = import_module(f"transformers.{door}")
        assert {
            name for name in module.__all__ if not hasattr(reference, name)
        } <= OF_THE_OLDER_GENERATION | OF_DEEPSPEED


@pytest.mark.parametrize("door", sorted({*ABSENT, "integrations", "utils.notebook"} - {"utils.logging"}))
def test_a_door_defines_nothing(door: str) -> None:
    module = import_module(f"mainspring.{door}")
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    assert own == []


def test_the_top_level_exports_what_the_reference_s_does() -> None:
    import transformers

    homes = transformers._class_to_module
    theirs = {name for name in dir(transformers) if homes.get(name) in TOP_LEVEL_MODULES}
    assert theirs - set(mainspring.__all__) == ABSENT_AT_THE_TOP
    ours_alone = {name for name in mainspring.__all__ if not hasattr(transformers, name)}
    assert ours_alone == OF_THE_OLDER_GENERATION | OF_ACCELERATE | OWN
