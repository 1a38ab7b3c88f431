"""Which optimizers there are: a row each."""

from __future__ import annotations

from mainspring.registry import Entry, Registry

_HERE = "mainspring.optimizers"
_APEX = "apex (built from https://github.com/NVIDIA/apex)"


def _bnb(builder: str) -> Entry:
    return Entry(f"{_HERE}.bnb:{builder}", needs="bitsandbytes")


OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw_torch": f"{_HERE}.standard:adamw",
        "adamw_torch_fused": f"{_HERE}.standard:adamw_fused",
        "adamw_torch_xla": Entry(f"{_HERE}.vendors:xla", needs="torch_xla"),
        "adamw_torch_npu_fused": Entry(f"{_HERE}.vendors:npu", needs="torch_npu"),
        "adamw_apex_fused": Entry(f"{_HERE}.vendors:apex", needs=_APEX),
        "adafactor": f"{_HERE}.standard:adafactor",
        "sgd": f"{_HERE}.standard:sgd",
        "adagrad": f"{_HERE}.standard:adagrad",
        "rmsprop": f"{_HERE}.standard:rmsprop",
        "adamw_hf": f"{_HERE}.adamw_hf:adamw_hf",
        "adamw_anyprecision": f"{_HERE}.any_precision:any_precision",
        "adamw_torch_4bit": Entry(f"{_HERE}.low_bit:four_bits", needs="torchao"),
        "adamw_torch_8bit": Entry(f"{_HERE}.low_bit:eight_bits", needs="torchao"),
        "adamw_bnb_8bit": _bnb("adamw_8bit"),
        "adamw_8bit": _bnb("adamw_8bit"),
        "paged_adamw_32bit": _bnb("paged_adamw_32bit"),
        "paged_adamw_8bit": _bnb("paged_adamw_8bit"),
        "lion_32bit": _bnb("lion_32bit"),
        "lion_8bit": _bnb("lion_8bit"),
        "paged_lion_32bit": _bnb("paged_lion_32bit"),
        "paged_lion_8bit": _bnb("paged_lion_8bit"),
        "rmsprop_bnb": _bnb("rmsprop_32bit"),
        "rmsprop_bnb_8bit": _bnb("rmsprop_8bit"),
        "rmsprop_bnb_32bit": _bnb("rmsprop_32bit"),
        "ademamix": _bnb("ademamix_32bit"),
        "ademamix_8bit": _bnb("ademamix_8bit"),
        "paged_ademamix_32bit": _bnb("paged_ademamix_32bit"),
        "paged_ademamix_8bit": _bnb("paged_ademamix_8bit"),
        "galore_adamw": Entry(f"{_HERE}.low_rank:galore_adamw", needs="galore-torch"),
        "galore_adamw_8bit": Entry(f"{_HERE}.low_rank:galore_adamw_8bit", needs="galore-torch"),
        "galore_adafactor": Entry(f"{_HERE}.low_rank:galore_adafactor", needs="galore-torch"),
        "galore_adamw_layerwise": Entry(f"{_HERE}.low_rank:galore_adamw", needs="galore-torch"),
        "galore_adamw_8bit_layerwise": Entry(f"{_HERE}.low_rank:galore_adamw_8bit", needs="galore-torch"),
        "galore_adafactor_layerwise": Entry(f"{_HERE}.low_rank:galore_adafactor", needs="galore-torch"),
        "apollo_adamw": Entry(f"{_HERE}.low_rank:apollo_adamw", needs="apollo-torch"),
        "apollo_adamw_layerwise": Entry(f"{_HERE}.low_rank:apollo_adamw", needs="apollo-torch"),
        "lomo": Entry(f"{_HERE}.lomo:lomo", needs="lomo-optim"),
        "adalomo": Entry(f"{_HERE}.lomo:adalomo", needs="lomo-optim"),
        "grokadamw": Entry(f"{_HERE}.grok:grokadamw", needs="grokadamw"),
        "schedule_free_adamw": Entry(f"{_HERE}.schedule_free:adamw", needs="schedulefree"),
        "schedule_free_sgd": Entry(f"{_HERE}.schedule_free:sgd", needs="schedulefree"),
        "schedule_free_radam": Entry(f"{_HERE}.schedule_free:radam", needs="schedulefree"),
        "stable_adamw": Entry(f"{_HERE}.stable:stable_adamw", needs="torch-optimi"),
    },
)
"""Name to builder; the module of a builder imports the package that it needs."""

LAYERWISE = "_layerwise"
"""How the names of optimizers that act inside the backward pass end."""
