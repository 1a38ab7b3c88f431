"""How many floating-point operations per second a device can do, by its name and the format it computes in.

Figures are those of dense matrix products: the datasheets of NVIDIA print the double beside them, or alone, which holds
for matrices of which half the entries are zero. Where a product of 16-bit numbers has two, the one that is summed up in
float32 is given, which is what torch does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

Format = str
"""fp32, tf32, fp16 or bf16."""


@dataclass(frozen=True)
class Device:
    """What is known of a device.

    Attributes:
        name: A regular expression of what torch calls it, without the maker.
        peaks: Operations per second, in units of 10**12, by format.
        source: Where the figures are printed.
    """

    name: str
    peaks: dict[Format, float]
    source: str


DEVICES: tuple[Device, ...] = (
    Device(
        r"A100[- ](SXM4|SXM|PCIE|PG\d+)-\w*\d+GB|A100 \d+GB PCIe",
        {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5},
        "NVIDIA A100 Tensor Core GPU datasheet, 2021",
    ),
    Device(
        r"H100 80GB HBM3",
        {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
        "NVIDIA H100 Tensor Core GPU Architecture, v1.04, table 2 (SXM5)",
    ),
    Device(
        r"H100 PCIe",
        {"bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51.2},
        "NVIDIA H100 Tensor Core GPU Architecture, v1.04, table 2 (PCIe)",
    ),
    Device(
        r"H200",
        {"bf16": 989.5, "fp16": 989.5, "tf32": 494.5, "fp32": 67},
        "NVIDIA H200 Tensor Core GPU datasheet, 2024 (SXM), halved: it prints sparse figures",
    ),
    Device(
        r"L4",
        {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3},
        "NVIDIA L4 Tensor Core GPU datasheet, 2023, halved but for fp32: it prints sparse figures",
    ),
    Device(
        r"L40S",
        {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6},
        "NVIDIA L40S datasheet, 2023",
    ),
    Device(
        r"A10",
        {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2},
        "NVIDIA A10 Tensor Core GPU datasheet, 2021",
    ),
    Device(
        r"(Tesla )?V100-SXM[23]-\d+GB(-LS)?",
        {"fp16": 125, "fp32": 15.7},
        "NVIDIA V100 Tensor Core GPU datasheet, 2020 (NVLink)",
    ),
    Device(
        r"(Tesla )?V100-PCIE-\d+GB",
        {"fp16": 112, "fp32": 14},
        "NVIDIA V100 Tensor Core GPU datasheet, 2020 (PCIe)",
    ),
    Device(
        r"(Tesla )?T4",
        {"fp16": 65, "fp32": 8.1},
        "NVIDIA T4 datasheet, 2019",
    ),
    Device(
        r"GeForce RTX 4090",
        {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6},
        "NVIDIA Ada GPU Architecture, v2.1, appendix A",
    ),
    Device(
        r"GeForce RTX 3090",
        {"bf16": 71, "fp16": 71, "tf32": 35.6, "fp32": 35.6},
        "NVIDIA Ampere GA102 GPU Architecture, v2, appendix A",
    ),
    Device(
        r"Instinct MI300X( OAM)?",
        {"bf16": 1307.4, "fp16": 1307.4, "tf32": 653.7, "fp32": 163.4},
        "AMD Instinct MI300X Accelerator datasheet, 2023",
    ),
)
"""Whole devices only: a slice of one (MIG), or a variant with another clock, is another name, and unknown."""


def known_peak(name: str, form: Format) -> float | None:
    """Operations per second of the device that torch calls `name`; None where it, or the format on it, is not known."""
    bare = re.sub(r"^(NVIDIA|AMD) ", "", name.strip())
    device = next((one for one in DEVICES if re.fullmatch(one.name, bare)), None)
    peak = None if device is None else device.peaks.get(form)
    return None if peak is None else peak * 1e12


def peak_of(device: torch.device, form: Format) -> float | None:
    """Operations per second of a device; None where nothing is known of it."""
    return known_peak(torch.cuda.get_device_name(device), form) if device.type == "cuda" else None


def format_of(model: nn.Module, mixed_precision: str) -> Format:
    """What the matrix products of a run are computed in.

    Args:
        model: The model that is trained.
        mixed_precision: The format of autocast: bf16, fp16 or no.
    """
    if mixed_precision in ("bf16", "fp16"):
        return mixed_precision
    dtype = next((one.dtype for one in model.parameters() if one.dtype.is_floating_point), torch.float32)
    halves = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return halves.get(dtype) or ("tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32")
