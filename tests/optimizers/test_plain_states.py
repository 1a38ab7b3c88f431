"""Packages that are missing are named with their command; states of packages lie in checkpoints as plain values."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mainspring.checkpoint import load_torch
from mainspring.checkpoint.pickles import scan_folder
from mainspring.errors import MissingPackageError
from mainspring.names import OPTIMIZER_NAMES, OPTIMIZER_PACKAGES
from mainspring.optimizers import OPTIMIZERS
from mainspring.optimizers.any_precision import AnyPrecisionAdamW
from mainspring.optimizers.plain_states import PROJECTORS, keep_plain
from mainspring.optimizers.table import _BUILDERS
from mainspring.registry import Entry, Registry
from tests.optimizers import rows

COMMANDS = {
    "adamw_torch_8bit": "pip install torchao",
    "paged_lion_8bit": "pip install bitsandbytes",
    "lomo": "pip install lomo-optim transformers",
    "grokadamw": "pip install grokadamw",
    "schedule_free_sgd": "pip install schedulefree",
    "stable_adamw": "pip install torch-optimi",
    "galore_adamw": "pip install galore-torch transformers",
    "apollo_adamw": "pip install apollo-torch transformers",
    "adamw_torch_xla": "pip install torch_xla",
}


def without_package(monkeypatch: pytest.MonkeyPatch, name: str) -> Registry:
    """The table as it is where the package of an optimizer is not installed."""
    module = rows.MODULES.get(OPTIMIZER_PACKAGES[name], "torch_xla")
    for loaded in [key for key in sys.modules if key.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    path = f"mainspring.optimizers.{_BUILDERS[name]}"
    if _BUILDERS[name].partition(":")[0] not in ("low_rank", "vendors"):
        monkeypatch.delitem(sys.modules, path.partition(":")[0], raising=False)
    return Registry("optimizer", {name: Entry(path, needs=OPTIMIZER_PACKAGES[name])})


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_package_is_named_with_its_command_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("mainspring.optimizers.building.OPTIMIZERS", without_package(monkeypatch, name))
    with pytest.raises(MissingPackageError, match=f"^optimizer '{name}' needs .*: {COMMANDS[name]}$"):
        rows.trainer(tmp_path, name)


def test_every_name_is_a_row_and_every_row_a_name() -> None:
    assert set(OPTIMIZERS.names()) == set(OPTIMIZER_NAMES)
    assert set(COMMANDS.values()) >= {f"pip install {package}" for package in rows.MODULES}


@pytest.mark.skipif(not rows.is_installed("grokadamw"), reason="grokadamw is not here")
def test_importing_a_package_leaves_the_logging_of_the_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grokadamw", "grokadamw.grokadamw", "mainspring.optimizers.grok"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    Registry("optimizer", {"grokadamw": "mainspring.optimizers.grok:grokadamw"})["grokadamw"]
    assert (root.handlers, root.level) == ([], level)


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw", "grokadamw", "adamw_torch_4bit", "adamw_8bit"])
def test_a_checkpoint_holds_nothing_that_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if not rows.is_installed(name):
        pytest.skip(f"{name}: package not here")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    rows.trainer(tmp_path, name, max_steps=2, save_steps=2).train()
    assert scan_folder(tmp_path / "checkpoint-2") == []
    state = load_torch(tmp_path / "checkpoint-2" / "optimizer.pt")
    assert len(state["state"]) == 12


@pytest.mark.skipif(not rows.is_installed("galore_adamw"), reason="galore-torch is not here")
def test_a_file_cannot_have_another_class_imported() -> None:
    from galore_torch import GaLoreAdamW

    weight = nn.Parameter(torch.ones(4, 4))
    group = {"params": [weight], "rank": 2, "update_proj_gap": 2, "scale": 1.0, "proj_type": "std"}
    optimizer: Any = keep_plain(GaLoreAdamW([group], lr=0.1, no_deprecation_warning=True))
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["state"][0]["projector"]["projector_class"] in PROJECTORS
    saved["state"][0]["projector"]["projector_class"] = "subprocess:Popen"
    optimizer.load_state_dict(saved)
    assert type(optimizer.state[weight]["projector"]) is dict


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_a_chosen_format_come_back_as_they_were(dtype: torch.dtype) -> None:
    def build(weight: nn.Parameter) -> AnyPrecisionAdamW:
        formats = {"momentum_dtype": torch.float32, "variance_dtype": torch.bfloat16}
        return AnyPrecisionAdamW([weight], lr=0.1, use_kahan_summation=True, **formats)

    weight = nn.Parameter(torch.linspace(0, 1, 8).to(dtype))
    first = build(weight)
    for _ in range(3):
        weight.grad = torch.sin(weight.detach() * 3)
        first.step()
    again = build(weight)
    again.load_state_dict(first.state_dict())
    one, other = first.state[weight], again.state[weight]
    assert {key: getattr(value, "dtype", value) for key, value in one.items()} == {
        key: getattr(value, "dtype", value) for key, value in other.items()
    }
    assert all(torch.equal(one[key], other[key]) for key in ("exp_avg", "exp_avg_sq", "compensation"))
    assert one["exp_avg"].data_ptr() != other["exp_avg"].data_ptr()


def test_kahan_summation_keeps_what_bfloat16_would_lose() -> None:
    ends = []
    for kahan in (False, True):
        weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        optimizer = AnyPrecisionAdamW([weight], lr=1e-4, use_kahan_summation=kahan)
        for _ in range(200):
            weight.grad = torch.ones(1, dtype=torch.bfloat16)
            optimizer.step()
        ends.append(weight.item())
    assert ends[0] == 1.0  # every single update is below the last bit
    assert ends[1] == pytest.approx(1 - 200 * 1e-4, abs=4e-3)
