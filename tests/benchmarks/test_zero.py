"""The benchmark of DeepSpeed: both libraries train the same with the same configuration."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.loading import load

pytest.importorskip("deepspeed")
benchmark = load("zero")


@pytest.mark.slow
@pytest.mark.deepspeed
def test_both_libraries_train_the_same() -> None:
    ours, theirs = (benchmark.measure(library, "ZeRO-3, weights too", True, 1) for library in benchmark.LIBRARIES)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
    assert min(ours.speed, ours.memory, theirs.speed, theirs.memory) > 0


def test_the_table_has_ours_and_its_share_of_the_references() -> None:
    found = {
        "mainspring": benchmark.Reading(300.0, 2_000_000_000, 1.0),
        "transformers": benchmark.Reading(200.0, 4_000_000_000, 1.0),
    }
    assert benchmark.table({"a way": found}, markdown=True).splitlines()[2] == "| a way | 2.00 | 0.500 | 300 | 1.500 |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_the_model_has_a_billion_parameters() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = benchmark.Size()
    with torch.device("meta"):
        model = GPT2LMHeadModel(
            GPT2Config(n_layer=size.layers, n_embd=size.width, n_head=size.heads, n_positions=size.tokens)
        )
    assert 0.95e9 < model.num_parameters() < 1.1e9
