"""Names that options accept, of both generations of the API, apart from the rooms that give them a meaning.

They stand here so that arguments can be checked and listed without importing an optimizer or a scheduler.
"""

from __future__ import annotations

__all__ = ["OPTIMIZER_NAMES", "OPTIMIZER_NEEDS", "OPTIMIZER_PACKAGES", "SCHEDULER_NAMES", "SCHEDULER_NEEDS"]

OPTIMIZER_NAMES: tuple[str, ...] = (
    # torch
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "sgd",
    "adagrad",
    "rmsprop",
    # factored and low-precision states
    "adafactor",
    "adamw_anyprecision",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    # bitsandbytes
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    # low-rank gradients
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    # fused into the backward pass
    "lomo",
    "adalomo",
    # others
    "grokadamw",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "schedule_free_radam",
    "stable_adamw",
    # of the older generation
    "adamw_hf",
    "adamw_apex_fused",
)

_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("torch_xla", ("adamw_torch_xla",)),
    ("torch_npu", ("adamw_torch_npu_fused",)),
    ("torchao", ("adamw_torch_4bit", "adamw_torch_8bit")),
    (
        "bitsandbytes",
        tuple(
            name
            for name in OPTIMIZER_NAMES
            if name in ("adamw_bnb_8bit", "adamw_8bit") or name.startswith(("paged_", "lion_", "rmsprop_", "ademamix"))
        ),
    ),
    # The packages below that import transformers do not all say so to pip.
    ("galore-torch transformers", tuple(name for name in OPTIMIZER_NAMES if name.startswith("galore_"))),
    ("apollo-torch transformers", tuple(name for name in OPTIMIZER_NAMES if name.startswith("apollo_"))),
    ("lomo-optim transformers", ("lomo", "adalomo")),
    ("grokadamw", ("grokadamw",)),
    ("schedulefree", ("schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam")),
    ("torch-optimi", ("stable_adamw",)),
    ("git+https://github.com/NVIDIA/apex", ("adamw_apex_fused",)),
)

OPTIMIZER_PACKAGES: dict[str, str] = {name: package for package, names in _FAMILIES for name in names}
"""What `pip install` has to be given for an optimizer that is not torch's or this package's own."""

_CUDA = ("adalomo", "galore_adamw_8bit", "galore_adamw_8bit_layerwise", "adamw_apex_fused")
_TARGETS = ("galore_", "apollo_")

OPTIMIZER_NEEDS: dict[str, str] = {
    name: ", ".join(
        [
            *([OPTIMIZER_PACKAGES[name]] if name in OPTIMIZER_PACKAGES else []),
            *(["a CUDA device"] if name in _CUDA else []),
            *(["optim_target_modules"] if name.startswith(_TARGETS) else []),
        ]
    )
    for name in OPTIMIZER_NAMES
    if name in OPTIMIZER_PACKAGES
}
"""All that an optimizer needs, in words."""

SCHEDULER_NAMES: tuple[str, ...] = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
)

SCHEDULER_NEEDS: dict[str, str] = {
    "reduce_lr_on_plateau": "eval_strategy other than 'no'",
    "cosine_with_min_lr": "min_lr or min_lr_rate in lr_scheduler_kwargs",
    "cosine_warmup_with_min_lr": "min_lr or min_lr_rate in lr_scheduler_kwargs",
    "warmup_stable_decay": "num_decay_steps in lr_scheduler_kwargs",
    "greedy": "eval_strategy other than 'no'",
}
"""What a schedule needs, in words."""
