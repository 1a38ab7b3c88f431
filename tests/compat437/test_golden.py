"""`compat="4.37"` gives the numbers of version 4.37.2, which `make_golden.py` wrote down, and every row of the table matters."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mainspring.trainer
from mainspring.arguments.compat import BEHAVIOURS, Behaviour
from mainspring.checkpoint import rotate_checkpoints
from mainspring.optimizers import decay_parameter_names_of_4_37
from tests.compat437 import scenarios
from tests.compat437.library import MAINSPRING, arguments, with_row
from tests.compat437.scenarios import OVER_TWO_PROCESSES, SCENARIOS, Scenario
from tests.distributed.launch import torchrun
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(SUBJECT.is_reference, reason="the newest reference has no such option"),
]

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
SAME_ARITHMETIC = {name: GOLDEN["made with"][name] for name in scenarios.arithmetic()} == scenarios.arithmetic()
TOLERANCE = 0.0 if SAME_ARITHMETIC else 1e-6
"""Another torch, or another processor, may round the last bits otherwise; the loss is summed in float32."""

ELSEWHERE = {
    "eval_loss_reduction": "decides nothing in 4.37, where no items are counted: auto is batch_mean then",
    "watch_normalisation": "likewise: no loss is normalised by items",
    "exact_label_count": "likewise",
    "loss_by_ending": "decides an option, see below",
    "share_router_losses": "no scenario's model has routers: see tests/test_fitting.py",
    "weigh_micro_batches": "the scenarios' losses are means over equal batches, or normalised: see tests/contract",
    "orders_by_seed": "no order goes by length: see tests/test_sampling_strategies.py",
    "log_padding": "the scenarios' batches have no attention mask: see tests/data/test_padding.py",
    "log_waiting": "logs of times are left out of the comparison: see tests/measuring",
    "log_utilization": "the peak of a CPU is not known: see tests/measuring",
    "metric_once": "shows in who is called, not in numbers: see tests/distributed/test_uneven_data.py",
    "first_buffers": "the scenarios' models have no buffers that training changes: see tests/distributed/test_ddp_options.py",
    "exact_generation": "nothing is generated: see tests/parity/test_seq2seq.py",
    "complete_optimizers": "is of optimizers that this version did not have: see tests/optimizers",
    "evaluation_weights": "is of optimizers that this version did not have: see tests/optimizers",
    "grouped_evaluations": "is the newest reference's alone: see tests/parity",
    "sortish_groups": "likewise of Seq2SeqTrainer: see tests/test_sampling_strategies.py",
    "log_saves": "logs of times are left out of the comparison: see tests/test_saving.py",
    **dict.fromkeys(
        ("groups_of_engine", "rates_of_engine", "norms_of_engine", "gradients_of_engine", "clip_by_option"),
        "is of DeepSpeed: see tests/deepspeed",
    ),
    "own_data_stream": "the scenarios' data draws nothing: see tests/test_data_stream.py",
}
"""Rows that no scenario depends on."""


def differences(expected: Any, found: Any, place: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        for key in expected:
            yield from differences(expected[key], found[key], f"{place}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from differences(*pair, f"{place}/{index}")
    elif isinstance(expected, float) and isinstance(found, float):
        both_nan = math.isnan(expected) and math.isnan(found)
        if not both_nan and not math.isclose(expected, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{place}: expected {expected!r}, got {found!r}"
    elif expected != found:
        yield f"{place}: expected {expected!r}, got {found!r}"


def run(scenario: Scenario, folder: Path) -> Any:
    return json.loads(json.dumps(scenarios.run(scenario, MAINSPRING, folder)))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_numbers_equal_those_of_that_version(scenario: Scenario, tmp_path: Path) -> None:
    assert list(differences(GOLDEN["runs"][scenario.name], run(scenario, tmp_path))) == []


def other_generations() -> Iterator[tuple[Scenario, str, Any]]:
    """Every value that a row has in another generation, with a scenario whose numbers depend on it."""
    for scenario in SCENARIOS:
        for row in scenario.about:
            values = {getattr(BEHAVIOURS[compat], row) for compat in ("none", "5")}
            for value in sorted(values - {getattr(BEHAVIOURS["4.37"], row)}):
                yield scenario, row, value


@pytest.mark.parametrize(
    ("scenario", "row", "value"), [pytest.param(*case, id="-".join(map(str, case[1:]))) for case in other_generations()]
)
def test_a_row_with_another_generations_value_is_noticed(
    scenario: Scenario, row: str, value: Any, tmp_path: Path
) -> None:
    with with_row(**{row: value}):
        assert list(differences(GOLDEN["runs"][scenario.name], run(scenario, tmp_path)))


def test_every_row_is_looked_at() -> None:
    seen = {row for scenario in (*SCENARIOS, OVER_TWO_PROCESSES) for row in scenario.about}
    assert seen | ELSEWHERE.keys() == {row.name for row in dataclasses.fields(Behaviour)}
    assert not seen & ELSEWHERE.keys()


@pytest.mark.distributed
@pytest.mark.slow
def test_numbers_over_two_processes_equal_those_of_that_version(tmp_path: Path) -> None:
    torchrun("tests.compat437.worker", str(tmp_path), timeout=180)
    records = json.loads((tmp_path / "records.json").read_text())
    assert list(differences(GOLDEN["over two processes"], records.pop("4.37"))) == []
    assert records.keys() == set(OVER_TWO_PROCESSES.about)
    for row, found in records.items():
        assert list(differences(GOLDEN["over two processes"], found)), row


def test_plans_equal_those_of_that_version(tmp_path: Path) -> None:
    found = []
    for count, group, epochs, max_steps in scenarios.PLANS:
        options = {"gradient_accumulation_steps": group, "num_train_epochs": epochs, "max_steps": max_steps}
        trainer = mainspring.Trainer(
            scenarios.Net(),
            arguments(tmp_path, **{**scenarios.QUIET, **options}),
            train_dataset=scenarios.Items(scenarios.rows(count)),
        )
        plan = trainer.plan()
        found.append([plan.max_steps, plan.num_train_epochs])
    assert found == GOLDEN["plans"]


def test_rotation_keeps_what_that_version_kept(tmp_path: Path) -> None:
    by_time = BEHAVIOURS["4.37"].rotate_by_time
    for number, ((limit, best), kept) in enumerate(zip(scenarios.KEPT, GOLDEN["kept"], strict=True)):
        folder = tmp_path / str(number)
        scenarios.write_checkpoints(folder)
        rotate_checkpoints(folder, limit, best and folder / f"checkpoint-{best}", use_mtime=by_time)
        assert sorted(path.name for path in folder.iterdir()) == kept, (limit, best)


@pytest.mark.parametrize("name", sorted(GOLDEN["decayed"]))
def test_weight_decay_applies_to_the_parameters_of_that_version(name: str) -> None:
    model = scenarios.transformers_models()[name]
    assert sorted(decay_parameter_names_of_4_37(model)) == sorted(GOLDEN["decayed"][name])
    normalisations = [name for name in GOLDEN["decayed"][name] if "norm" in name.lower()]
    assert bool(normalisations) == (name == "mistral")


@pytest.mark.parametrize("metric", scenarios.METRICS)
def test_a_larger_metric_is_better_where_that_version_says_so(metric: str, tmp_path: Path) -> None:
    older = arguments(tmp_path, metric_for_best_model=metric, eval_strategy="steps")
    assert older.greater_is_better == GOLDEN["greater_is_better"][metric]
    newer = arguments(tmp_path, metric_for_best_model=metric, eval_strategy="steps", compat="5")
    assert (newer.greater_is_better != older.greater_is_better) == (metric in ("eval_data1_loss", "my_loss"))
