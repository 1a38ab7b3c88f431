"""AutoTP: layers that DeepSpeed divides over processes train, are saved whole, and go on, as those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.deepspeed.autotp import CASES, REFUSED, alone
from tests.deepspeed.read import found
from tests.deepspeed.runs import BATCH, series

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

WHY = {
    "no_plan": "NotAvailableError: deepspeed tensor_parallel.autotp_size=2: DeepSpeed divides GPT2LMHeadModel in none",
    "averages": "OptionError: ema_decay=0.5: 2 processes divide the layers",
    "in_pieces": "OptionError: deepspeed zero_optimization.stage3_gather_16bit_weights_on_model_save=False: processes divide",
}


def _facts(features: Path, name: str, rank: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = found(features, f"autotp_{name}", "features", rank)
    return facts


@pytest.mark.parametrize("name", CASES)
def test_layers_are_divided(name: str, features: Path) -> None:
    """Each process has half of a layer, both read the same samples, and predictions are of the whole vocabulary."""
    for rank in range(2):
        facts = _facts(features, name, rank)
        assert (facts["wrapper"], facts["stage"], facts["world_size"]) == ("DeepSpeedEngine", CASES[name].stage, 2)
        assert facts["part"][0] * 2 == facts["whole"][0]
        assert facts["part"][1] == facts["whole"][1]
        assert facts["sizes"] == [2, 1]
        assert facts["batch"] == BATCH
        assert (facts["predicted"][0], facts["predicted"][-1]) == (11, 48)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_one_process(name: str, features: Path, tmp_path: Path) -> None:
    """Losses, norms, rates, evaluations; and the weights that are saved."""
    case = CASES[name]
    run = alone(case, tmp_path)
    for rank in range(2):
        facts = _facts(features, name, rank)
        for key, values in series(run).items():
            assert facts[key] == pytest.approx(values, rel=case.tolerance), key
    run.save_model(str(tmp_path))
    saved, expected = (
        load_file(folder / "model.safetensors") for folder in (features / f"autotp_{name}" / "model", tmp_path)
    )
    assert saved.keys() == expected.keys()
    for key, value in saved.items():
        torch.testing.assert_close(value.float(), expected[key].float(), rtol=0, atol=100 * case.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_exactly(name: str, features: Path) -> None:
    """Bit for bit, from a checkpoint in the middle; and whole weights are put into the parts that lie here."""
    facts = _facts(features, name)
    assert facts["again"] == {key: facts[key] for key in facts["again"]}
    assert facts["resumed_alike"]
    assert facts["filled_alike"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_refused(name: str, features: Path) -> None:
    """On every process, naming what was asked for."""
    for rank in range(2):
        assert str(_facts(features, name, rank)).startswith(WHY[name])


def test_what_an_undivided_optimizer_remembers_is_refused(features: Path) -> None:
    """And a run without divided layers, after one with them, averages over all processes again."""
    said = str(_facts(features, "from_one"))
    assert said.startswith("2: CheckpointError: ")
    assert "was not written by a run of tp_size=2" in said
