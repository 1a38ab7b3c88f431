"""Schedules: equal to the reference's bit for bit and to their formulas, picklable, and clear about mistakes."""

from __future__ import annotations

import inspect
import io
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import optimization as reference
from transformers.trainer_utils import SchedulerType

from mainspring import Trainer, TrainingArguments, optimization, schedulers
from mainspring.names import SCHEDULER_NAMES
from mainspring.registry import Registry
from mainspring.schedulers import SCHEDULERS, check_options, get_scheduler
from tests.helpers import data
from tests.helpers.models import Regressor

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "linear": [{}],
    "cosine": [{}, {"num_cycles": 2}, {"num_cycles": 0.7}],
    "cosine_with_restarts": [{}, {"num_cycles": 3}],
    "polynomial": [{}, {"power": 2.3}, {"lr_end": 1e-5}],
    "constant": [{}],
    "constant_with_warmup": [{}],
    "inverse_sqrt": [{}, {"timescale": 7}],
    "cosine_with_min_lr": [{"min_lr": 1e-5}, {"min_lr_rate": 0.13}, {"min_lr_rate": 0.0, "num_cycles": 1.3}],
    "cosine_warmup_with_min_lr": [
        {"min_lr": 1e-5},
        {"min_lr_rate": 0.13, "num_cycles": 1.3},
        {"min_lr_rate": 0.13, "warmup_lr_rate": 0.3},
    ],
    "warmup_stable_decay": [
        {"num_decay_steps": steps, "warmup_type": shape, "decay_type": shape, "min_lr_ratio": floor}
        for steps in (0, 3)
        for shape in ("linear", "cosine", "1-sqrt")
        for floor in (0, 0.1)
    ]
    + [{"num_decay_steps": 5, "num_stable_steps": 4, "num_cycles": 1.2}],
}
LENGTHS = [(0, 1), (0, 7), (1, 9), (3, 13), (10, 97), (12, 9)]


def optimizer(lr: float = 3e-4) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)


def rates(build: Callable[..., Any], name: str, warmup: int, total: int, options: dict[str, Any]) -> list[float]:
    """The rates of the updates, past the end too."""
    used = optimizer()
    scheduler = build(name, used, warmup, total, options or None)
    seen = []
    for _ in range(total + 10):
        seen.append(used.param_groups[0]["lr"])
        used.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(("warmup", "total"), LENGTHS)
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, all_options in OPTIONS.items() for o in all_options])
def test_rates_equal_the_reference_bit_for_bit(name: str, options: dict[str, Any], warmup: int, total: int) -> None:
    assert rates(get_scheduler, name, warmup, total, options) == rates(
        reference.get_scheduler, name, warmup, total, options
    )


def test_every_row_of_the_table_is_compared_with_the_reference() -> None:
    assert set(SCHEDULERS.names()) == {*OPTIONS, "reduce_lr_on_plateau", "greedy"} == set(SCHEDULER_NAMES)
    assert len(SCHEDULER_NAMES) == 12


W, T, LR = 4, 20, 0.5


@pytest.mark.parametrize(
    ("name", "options", "closed_form"),
    [
        ("linear", {}, lambda t: max(0, (T - t) / (T - W))),
        ("cosine", {}, lambda t: (1 + math.cos(math.pi * (t - W) / (T - W))) / 2),
        (
            "cosine_with_restarts",
            {"num_cycles": 2},
            lambda t: 0 if t >= T else (1 + math.cos(math.pi * (2 * (t - W) / (T - W) % 1))) / 2,
        ),
        (
            "polynomial",
            {"power": 2, "lr_end": 0.1},
            lambda t: 0.2 if t >= T else (0.4 * (1 - (t - W) / (T - W)) ** 2 + 0.1) / LR,
        ),
        ("constant_with_warmup", {}, lambda t: 1),
        ("inverse_sqrt", {}, lambda t: math.sqrt(W / t)),
        ("inverse_sqrt", {"timescale": 9}, lambda t: math.sqrt(9 / (t + 9 - W))),
        (
            "cosine_with_min_lr",
            {"min_lr": 0.1},
            lambda t: 0.2 + 0.8 * (1 + math.cos(math.pi * (t - W) / (T - W))) / 2,
        ),
    ],
)
def test_rates_follow_the_closed_form(name: str, options: dict[str, Any], closed_form: Callable[[int], float]) -> None:
    scheduler = get_scheduler(name, optimizer(LR), W, T, options)
    assert isinstance(scheduler, LambdaLR)
    (factor,) = scheduler.lr_lambdas
    assert [factor(t) for t in range(W)] == [t / W for t in range(W)]
    assert [factor(t) for t in range(W, T + 5)] == pytest.approx([closed_form(t) for t in range(W, T + 5)], abs=1e-12)


def test_the_constant_schedule_has_no_warm_up() -> None:
    (factor,) = get_scheduler("constant", optimizer(LR), W, T).lr_lambdas  # type: ignore[attr-defined]
    assert [factor(t) for t in range(T + 5)] == [1.0] * (T + 5)


def half_cosine(p: float, cycles: float = 0.5) -> float:
    return (1 + math.cos(2 * math.pi * cycles * p)) / 2


@pytest.mark.parametrize(
    ("options", "rise", "fall"),
    [
        ({"min_lr_rate": 0.1}, lambda t: (t + 1) / W, lambda p: 0.1 + 0.9 * half_cosine(p)),
        ({"min_lr": 0.05}, lambda t: (t + 1) / W, lambda p: 0.1 + 0.9 * half_cosine(p)),
        (
            {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2, "num_cycles": 1.5},
            lambda t: 0.2 + 0.8 * t / (W - 1),
            lambda p: 0.1 + 0.9 * half_cosine(p, 1.5),
        ),
    ],
    ids=["rate", "number", "start and cycles"],
)
def test_the_cosine_that_warms_up_by_itself_follows_its_closed_form(
    options: dict[str, Any], rise: Callable[[int], float], fall: Callable[[float], float]
) -> None:
    (factor,) = get_scheduler("cosine_warmup_with_min_lr", optimizer(LR), W, T, options).lr_lambdas  # type: ignore[attr-defined]
    assert [factor(t) for t in range(W)] == pytest.approx([rise(t) for t in range(W)])
    expected = [fall((t - W + 1) / (T - W)) for t in range(W, T)]
    assert [factor(t) for t in range(W, T)] == pytest.approx(expected, abs=1e-12)


RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda p: p,
    "cosine": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "1-sqrt": lambda p: 1 - math.sqrt(1 - p),
}
FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda p: 1 - p,
    "cosine": half_cosine,
    "1-sqrt": lambda p: 1 - math.sqrt(p),
}


@pytest.mark.parametrize("rise", RISES)
@pytest.mark.parametrize("fall", FALLS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_rise_plateau_and_fall_follow_their_closed_forms(rise: str, fall: str, floor: float) -> None:
    options = {"num_decay_steps": 6, "warmup_type": rise, "decay_type": fall, "min_lr_ratio": floor}
    (factor,) = get_scheduler("warmup_stable_decay", optimizer(LR), W, T, options).lr_lambdas  # type: ignore[attr-defined]
    expected = [
        *(floor + (1 - floor) * RISES[rise](t / W) for t in range(W)),
        *([1.0] * (T - W - 6)),
        *(floor + (1 - floor) * FALLS[fall](t / 6) for t in range(6)),
        *([floor] * 5),
    ]
    assert [factor(t) for t in range(T + 5)] == pytest.approx(expected, abs=1e-12)


def test_the_cosine_with_an_own_start_reaches_its_floor_at_the_last_update() -> None:
    used = optimizer(LR)
    scheduler = get_scheduler("cosine_warmup_with_min_lr", used, W, T, {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2})
    assert isinstance(scheduler, LambdaLR)
    (factor,) = scheduler.lr_lambdas
    assert factor(0) == 0.2
    assert factor(W - 1) == pytest.approx(1.0)
    assert factor(T - 1) == pytest.approx(0.1, abs=1e-12)


def test_a_plateau_lies_between_warm_up_and_decay() -> None:
    options = {"num_decay_steps": 6, "min_lr_ratio": 0.1, "decay_type": "linear"}
    scheduler = get_scheduler("warmup_stable_decay", optimizer(), W, T, options)
    assert isinstance(scheduler, LambdaLR)
    (factor,) = scheduler.lr_lambdas
    assert factor(0) == pytest.approx(0.1)
    assert {factor(t) for t in range(W, T - 6)} == {1.0}
    assert factor(T - 3) == pytest.approx(0.55)
    assert factor(T) == factor(T + 9) == 0.1


def test_a_polynomial_without_room_after_warm_up_ends_at_its_end() -> None:
    scheduler = get_scheduler("polynomial", optimizer(LR), 5, 5, {"lr_end": 0.1})
    assert isinstance(scheduler, LambdaLR)
    assert [scheduler.lr_lambdas[0](t) for t in (4, 5, 6)] == [0.8, 0.2, 0.2]


@pytest.mark.parametrize("name", [name for name in dir(reference) if name.startswith("get_") and "sched" in name])
def test_functions_have_the_names_and_parameters_of_the_reference(name: str) -> None:
    theirs = inspect.signature(getattr(reference, name)).parameters
    ours = inspect.signature(getattr(optimization, name)).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


# State ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [(name, options[-1]) for name, options in OPTIONS.items()])
def test_state_goes_through_a_safe_file_into_the_reference_and_back(name: str, options: dict[str, Any]) -> None:
    expected = rates(get_scheduler, name, 3, 13, options)
    used = optimizer()
    scheduler = get_scheduler(name, used, 3, 13, options)
    for build in (reference.get_scheduler, get_scheduler):
        for _ in range(5):
            used.step()
            scheduler.step()
        file = io.BytesIO()
        torch.save(scheduler.state_dict(), file)
        file.seek(0)
        fresh = optimizer()
        scheduler = build(name, fresh, 3, 13, options or None)
        fresh.load_state_dict(used.state_dict())
        scheduler.load_state_dict(torch.load(file, weights_only=True))
        used = fresh
    assert scheduler.last_epoch == 10
    assert used.param_groups[0]["lr"] == expected[10]


@pytest.mark.parametrize(("name", "options"), [(name, options[-1]) for name, options in OPTIONS.items()])
def test_schedulers_can_be_pickled(name: str, options: dict[str, Any]) -> None:
    scheduler = get_scheduler(name, optimizer(), 3, 13, options)
    copy = pickle.loads(pickle.dumps(scheduler))
    assert [copy.lr_lambdas[0](t) for t in range(20)] == [scheduler.lr_lambdas[0](t) for t in range(20)]  # type: ignore[attr-defined]


def test_a_schedule_goes_on_from_the_last_epoch_given() -> None:
    expected = rates(get_scheduler, "linear", 3, 13, {})
    used = optimizer()
    used.param_groups[0]["initial_lr"] = 3e-4
    schedulers.get_linear_schedule_with_warmup(used, 3, 13, last_epoch=6)
    assert used.param_groups[0]["lr"] == expected[7]


# Names, steps and options -----------------------------------------------------------------------------------------


def test_members_of_an_enumeration_are_names() -> None:
    assert isinstance(get_scheduler(SchedulerType.COSINE, optimizer(), 0, 10), LambdaLR)


def test_plateau_is_that_of_torch_with_its_options() -> None:
    scheduler = get_scheduler("reduce_lr_on_plateau", optimizer(), scheduler_specific_kwargs={"patience": 3})
    assert isinstance(scheduler, ReduceLROnPlateau)
    assert scheduler.patience == 3


def test_an_unknown_name_suggests_one() -> None:
    with pytest.raises(ValueError, match=r"'cosin'; did you mean 'cosine'\?"):
        get_scheduler("cosin", optimizer(), 0, 10)


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_unknown_options_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"num_cycle=3 is no option of schedule '{name}'"):
        get_scheduler(name, optimizer(), 0, 10, {"num_cycle": 3})


def test_a_misspelt_option_suggests_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'num_cycles'\?"):
        get_scheduler("cosine", optimizer(), 0, 10, {"num_cycle": 3})


@pytest.mark.parametrize(
    ("name", "warmup", "total", "missing"),
    [
        ("linear", None, 10, "num_warmup_steps"),
        ("linear", 1, None, "num_training_steps"),
        ("cosine_with_min_lr", 1, None, "num_training_steps"),
        ("constant_with_warmup", None, None, "num_warmup_steps"),
        ("inverse_sqrt", None, 10, "num_warmup_steps"),
    ],
)
def test_missing_numbers_of_steps_are_named(name: str, warmup: int | None, total: int | None, missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing}=None: schedule '{name}' needs it"):
        get_scheduler(name, optimizer(), warmup, total)


@pytest.mark.parametrize("name", ["constant", "reduce_lr_on_plateau", "greedy"])
def test_schedules_without_steps_need_none(name: str) -> None:
    stepped = optimizer()
    made = get_scheduler(name, stepped)
    assert made.optimizer is stepped


def test_endless_schedules_need_no_total() -> None:
    endless = (
        get_scheduler("constant_with_warmup", optimizer(), 2),
        get_scheduler("inverse_sqrt", optimizer(), 2),
        get_scheduler("warmup_stable_decay", optimizer(), 2, None, {"num_decay_steps": 3, "num_stable_steps": 4}),
    )
    assert [made.get_last_lr() for made in endless] == [[0.0]] * 3  # the warm-up begins


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine_with_min_lr", {}, "neither is given"),
        ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}, "both are given"),
        ("cosine_warmup_with_min_lr", {}, "neither is given"),
        ("polynomial", {"lr_end": 1.0}, r"lr_end=1.0 is not below learning_rate=0.0003"),
        ("warmup_stable_decay", {}, "needs 'num_decay_steps'"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "decay_type": "step"}, "decay_type='step' is unknown"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "warmup_type": "step"}, "warmup_type='step' is unknown"),
    ],
)
def test_options_that_cannot_be_are_explained(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_scheduler(name, optimizer(), 2, 10, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"num_cycle": 2}, "num_cycle=2 is no option of schedule 'cosine'.*did you mean 'num_cycles'"),
        ("linear", {"power": 2}, "power=2 is no option of schedule 'linear'; it has no options"),
        ("constant", {"num_cycles": 2}, "num_cycles=2 is no option of schedule 'constant'"),
        ("warmup_stable_decay", {}, "needs 'num_decay_steps'"),
        ("cosine_with_min_lr", {}, "neither is given"),
        ("polynomial", {"lr_end": 1}, r"lr_end=1 is not below learning_rate=0.0003"),
        ("reduce_lr_on_plateau", {"patient": 3}, "patient=3 is no option.*did you mean 'patience'"),
        ("greedy", {"factor": 2}, "factor=2: a rate is lowered by it"),
    ],
)
def test_what_no_schedule_can_be_built_with_is_refused_before_any_work(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    def build(cls: type[Trainer] = Trainer, **more: Any) -> Trainer:
        evaluated = {"eval_strategy": "epoch", "metric_for_best_model": "loss"}
        given = {"lr_scheduler_type": name, "lr_scheduler_kwargs": options, "learning_rate": 3e-4, "use_cpu": True}
        args = TrainingArguments(str(tmp_path), **given, **evaluated)
        rows = data.Items(data.points(4))
        return cls(Regressor(), args, train_dataset=rows, eval_dataset=rows, **more)

    class Own(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            raise NotImplementedError

    with pytest.raises(ValueError, match=message):
        build()
    build(Own)
    own = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    build(optimizers=(own, torch.optim.lr_scheduler.ConstantLR(own)))


def test_a_bound_for_each_group_is_no_mistake() -> None:
    check_options("greedy", {"min_lr": [0.1, 0.2]}, 0.5)
    check_options("reduce_lr_on_plateau", {"min_lr": [0.1, 0.2]}, 0.5)
    check_options("of the user's own", {"whatever": 1}, 0.5)
    with pytest.raises(ValueError, match="neither is given"):
        check_options(SchedulerType.COSINE_WITH_MIN_LR, None, 0.5)


def test_a_plateau_of_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match="num_stable_steps"):
        get_scheduler("warmup_stable_decay", optimizer(), 2, None, {"num_decay_steps": 2})


def test_a_row_of_ones_own_is_given_what_its_parameters_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_end(optimizer: torch.optim.Optimizer, num_training_steps: int, factor: float = 0.5) -> LambdaLR:
        return LambdaLR(optimizer, lambda t: factor if t >= num_training_steps else 1.0)

    registry = Registry("learning-rate schedule", {})
    monkeypatch.setattr("mainspring.schedulers.by_name.SCHEDULERS", registry)
    registry.add("at_end", at_end)
    scheduler = get_scheduler("at_end", optimizer(), 2, 10, {"factor": 0.25})
    assert isinstance(scheduler, LambdaLR)
    assert [scheduler.lr_lambdas[0](t) for t in (9, 10)] == [1.0, 0.25]
    with pytest.raises(ValueError, match="other=1 is no option"):
        get_scheduler("at_end", optimizer(), 2, 10, {"other": 1})


# Schedules that follow a metric -------------------------------------------------------------------------------------

GREEDY: list[dict[str, Any]] = [
    {},
    {"patience": 0},
    {"patience": 1, "factor": 0.5, "min_lr": 0.01, "max_lr": 0.4},
    {"patience": 0, "cooldown": 2, "warmup": 3, "min_lr": 0.0},
    {"mode": "max", "patience": 1, "threshold": 0.05, "threshold_mode": "rel"},
    {"patience": 1, "threshold": 0.1},
    {"patience": 0, "smooth": True, "window_size": 4, "min_lr": 0.05},
    {"patience": 0, "factor": 0.3, "min_lr": 0.05, "reset_start": 3, "smooth": True},
    {"patience": 0, "min_lr": [0.01, 0.1], "max_lr": [0.2, 0.3], "eps": 1e-3},
]


def two_groups() -> torch.optim.Optimizer:
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    return torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.2}], lr=0.1)


def metrics(seed: int, count: int = 120) -> list[float]:
    """A metric that falls, stalls and rises again, with noise."""
    generator = torch.Generator().manual_seed(seed)
    trend = torch.cat([torch.linspace(2, 1, count // 3), torch.ones(count // 3), torch.linspace(1, 3, count // 3)])
    return (trend + 0.05 * torch.randn(len(trend), generator=generator)).tolist()


@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_greedy_moves_as_the_reference_does(options: dict[str, Any]) -> None:
    for seed in range(3):
        ours, theirs = two_groups(), two_groups()
        mine, other = (
            get_scheduler("greedy", ours, scheduler_specific_kwargs=options),
            reference.GreedyLR(theirs, **options),
        )
        for value in metrics(seed):
            mine.step(value)
            other.step(value)
            assert mine.get_last_lr() == other.get_last_lr() == [group["lr"] for group in ours.param_groups]
        assert mine.state_dict() == other.state_dict()


def test_greedy_rises_with_improvements_and_falls_without_as_its_formula_says() -> None:
    used = optimizer(0.1)
    scheduler = get_scheduler("greedy", used, scheduler_specific_kwargs={"factor": 0.5, "patience": 1, "max_lr": 0.3})
    for value in (4.0, 3.0):  # the second improvement is one more than the patience
        scheduler.step(value)
    assert used.param_groups[0]["lr"] == 0.1 / 0.5
    for value in (2.0, 1.0):
        scheduler.step(value)
    assert used.param_groups[0]["lr"] == 0.3
    for _ in range(4):
        scheduler.step(1.0)
    assert used.param_groups[0]["lr"] == 0.3 * 0.5 * 0.5


@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_greedy_goes_on_exactly_from_its_state_and_the_reference_s(options: dict[str, Any]) -> None:
    values = metrics(5)
    whole = two_groups()
    scheduler = schedulers.GreedyLR(whole, **options)
    expected = []
    for value in values:
        scheduler.step(value)
        expected.append(scheduler.get_last_lr())
    used: Any = two_groups()
    going: Any = schedulers.GreedyLR(used, **options)
    for start, make in ((40, reference.GreedyLR), (80, schedulers.GreedyLR), (120, schedulers.GreedyLR)):
        for value in values[start - 40 : start]:
            going.step(value)
        assert going.get_last_lr() == expected[start - 1]
        file = io.BytesIO()
        torch.save(going.state_dict(), file)
        file.seek(0)
        used = two_groups()
        going = make(used, **options)
        going.load_state_dict(torch.load(file, weights_only=True))
        assert [group["lr"] for group in used.param_groups] == expected[start - 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor=1.0: a rate is lowered by it"),
        ({"mode": "least"}, "mode='least' is unknown; use one of: min, max"),
        ({"threshold_mode": "sum"}, "threshold_mode='sum' is unknown"),
        ({"min_lr": [0.1, 0.1]}, r"min_lr=\[0.1, 0.1\] has 2 values, and the optimizer 1 groups"),
    ],
)
def test_what_greedy_cannot_do_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_scheduler("greedy", optimizer(), scheduler_specific_kwargs=options)


def test_greedy_tells_of_its_changes_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = get_scheduler("greedy", optimizer(0.1), scheduler_specific_kwargs={"patience": 0, "verbose": True})
    scheduler.step(1.0)
    assert capsys.readouterr().out == "step 1: learning rate of group 0 from 1.0000e-01 to 1.0526e-01\n"


def test_a_greedy_schedule_that_can_never_fall_is_told() -> None:
    message = "min_lr=0.001 of schedule 'greedy' is above learning_rate=0.0003, which is never lowered"
    with pytest.warns(UserWarning, match=message):
        scheduler = get_scheduler("greedy", optimizer(3e-4), scheduler_specific_kwargs={"patience": 0})
    for _ in range(3):
        scheduler.step(math.inf)
    assert scheduler.get_last_lr() == [3e-4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_scheduler("greedy", optimizer(3e-4), scheduler_specific_kwargs={"min_lr": 1e-5})
        check_options("greedy", {}, 3e-4)  # said when it is built


def test_greedy_sets_a_rate_that_is_a_tensor_in_place() -> None:
    rate = torch.tensor(0.1, dtype=torch.float64)
    used = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=rate)
    scheduler = get_scheduler("greedy", used, scheduler_specific_kwargs={"patience": 0, "factor": 0.5})
    scheduler.step(1.0)
    assert used.param_groups[0]["lr"] is rate
    assert rate.item() == 0.2


@pytest.mark.parametrize(
    ("name", "options"), [("polynomial", {"lr_end": 0.1}), ("cosine_with_min_lr", {"min_lr": 0.1})]
)
def test_several_optimizers_as_one_may_have_no_default_rate(name: str, options: dict[str, Any]) -> None:
    used = optimizer(LR)
    used.defaults.clear()
    scheduler = get_scheduler(name, used, W, T, options)
    assert isinstance(scheduler, LambdaLR)
    assert scheduler.lr_lambdas[0](T) == pytest.approx(0.2)
