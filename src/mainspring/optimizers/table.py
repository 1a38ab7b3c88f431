"""Which optimizers there are: a row each."""

from __future__ import annotations

from mainspring.names import OPTIMIZER_PACKAGES
from mainspring.registry import Entry, Registry

_BUILDERS = {
    "adamw_torch": "standard:adamw",
    "adamw_torch_fused": "standard:adamw_fused",
    "adamw_torch_xla": "vendors:xla",
    "adamw_torch_npu_fused": "vendors:npu",
    "adamw_apex_fused": "vendors:apex",
    "adafactor": "standard:adafactor",
    "sgd": "standard:sgd",
    "adagrad": "standard:adagrad",
    "rmsprop": "standard:rmsprop",
    "adamw_hf": "adamw_hf:adamw_hf",
    "adamw_anyprecision": "any_precision:any_precision",
    "adamw_torch_4bit": "low_bit:four_bits",
    "adamw_torch_8bit": "low_bit:eight_bits",
    "adamw_bnb_8bit": "bnb:adamw_8bit",
    "adamw_8bit": "bnb:adamw_8bit",
    "paged_adamw_32bit": "bnb:paged_adamw_32bit",
    "paged_adamw_8bit": "bnb:paged_adamw_8bit",
    "lion_32bit": "bnb:lion_32bit",
    "lion_8bit": "bnb:lion_8bit",
    "paged_lion_32bit": "bnb:paged_lion_32bit",
    "paged_lion_8bit": "bnb:paged_lion_8bit",
    "rmsprop_bnb": "bnb:rmsprop_32bit",
    "rmsprop_bnb_8bit": "bnb:rmsprop_8bit",
    "rmsprop_bnb_32bit": "bnb:rmsprop_32bit",
    "ademamix": "bnb:ademamix_32bit",
    "ademamix_8bit": "bnb:ademamix_8bit",
    "paged_ademamix_32bit": "bnb:paged_ademamix_32bit",
    "paged_ademamix_8bit": "bnb:paged_ademamix_8bit",
    "galore_adamw": "low_rank:galore_adamw",
    "galore_adamw_8bit": "low_rank:galore_adamw_8bit",
    "galore_adafactor": "low_rank:galore_adafactor",
    "galore_adamw_layerwise": "low_rank:galore_adamw",
    "galore_adamw_8bit_layerwise": "low_rank:galore_adamw_8bit",
    "galore_adafactor_layerwise": "low_rank:galore_adafactor",
    "apollo_adamw": "low_rank:apollo_adamw",
    "apollo_adamw_layerwise": "low_rank:apollo_adamw",
    "lomo": "lomo:lomo",
    "adalomo": "lomo:adalomo",
    "grokadamw": "grok:grokadamw",
    "schedule_free_adamw": "schedule_free:adamw",
    "schedule_free_sgd": "schedule_free:sgd",
    "schedule_free_radam": "schedule_free:radam",
    "stable_adamw": "stable:stable_adamw",
}

OPTIMIZERS = Registry(
    "optimizer",
    {
        name: Entry(f"mainspring.optimizers.{builder}", needs=OPTIMIZER_PACKAGES.get(name))
        for name, builder in _BUILDERS.items()
    },
)
"""Name to builder; the module of a builder imports the package that it needs."""

LAYERWISE = "_layerwise"
"""How the names of optimizers that act inside the backward pass end."""
