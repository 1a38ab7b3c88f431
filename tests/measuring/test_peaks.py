"""What devices can do, by the names that torch gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mainspring.measuring.peaks import DEVICES, format_of, known_peak, peak_of

FIGURES = [
    ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
    ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
    ("NVIDIA A100-PCIE-40GB", "fp32", 19.5e12),
    ("NVIDIA A100 80GB PCIe", "fp16", 312e12),
    ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
    ("NVIDIA H100 PCIe", "bf16", 756e12),
    ("NVIDIA H200", "bf16", 989.5e12),
    ("NVIDIA L4", "fp16", 121e12),
    ("NVIDIA L40S", "bf16", 362e12),
    ("NVIDIA A10", "bf16", 125e12),
    ("Tesla V100-SXM2-32GB", "fp16", 125e12),
    ("Tesla V100-PCIE-16GB", "fp16", 112e12),
    ("Tesla T4", "fp16", 65e12),
    ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
    ("NVIDIA GeForce RTX 3090", "tf32", 35.6e12),
    ("AMD Instinct MI300X", "bf16", 1307.4e12),
]


@pytest.mark.parametrize(("name", "form", "peak"), FIGURES)
def test_a_device_is_known_by_its_name(name: str, form: str, peak: float) -> None:
    assert known_peak(name, form) == pytest.approx(peak)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A10G",
        "NVIDIA A1000",
        "NVIDIA H100 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "Tesla T40",
        "AMD Instinct MI300A",
        "",
    ],
)
def test_a_slice_or_a_variant_is_another_device(name: str) -> None:
    assert known_peak(name, "fp32") is None


def test_a_format_that_a_device_lacks_has_no_peak() -> None:
    assert known_peak("Tesla V100-SXM2-32GB", "bf16") is None
    assert known_peak("Tesla T4", "tf32") is None


def test_every_row_is_reached_says_its_source_and_gets_faster_with_fewer_bits() -> None:
    reached = {
        next(row for row in DEVICES if re.fullmatch(row.name, re.sub("^(NVIDIA|AMD) ", "", name))).name
        for name, *_ in FIGURES
    }
    assert reached == {row.name for row in DEVICES}
    for row in DEVICES:
        assert len(row.source) > 10
        assert row.peaks["fp32"] <= row.peaks.get("tf32", row.peaks["fp32"]) <= row.peaks["fp16"]
        assert row.peaks.get("bf16", row.peaks["fp16"]) == row.peaks["fp16"]


def test_of_the_cpu_nothing_is_known() -> None:
    assert peak_of(torch.device("cpu"), "fp32") is None


def test_a_gpu_is_asked_for_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_of(torch.device("cuda:0"), "bf16") == pytest.approx(989.5e12)


@pytest.fixture
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_the_format_is_autocasts_else_the_weights() -> None:
    model = nn.Linear(2, 2)
    assert [format_of(model, precision) for precision in ("bf16", "fp16", "no")] == ["bf16", "fp16", "fp32"]
    assert format_of(nn.Linear(2, 2).to(torch.bfloat16), "no") == "bf16"
    assert format_of(nn.Identity(), "no") == "fp32"


@pytest.mark.usefixtures("_tf32")
def test_products_of_float32_may_be_in_tf32() -> None:
    assert [format_of(nn.Linear(2, 2), precision) for precision in ("bf16", "no")] == ["bf16", "tf32"]
    assert format_of(nn.Linear(2, 2).to(torch.float16), "no") == "fp16"
