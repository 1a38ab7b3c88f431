"""What users do with DeepSpeed beside a plain run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.deepspeed.read import alone, found
from tests.deepspeed.runs import whole

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

STAGES = ("0", "1", "2", "3")


def _same(actual: dict[str, Any], expected: dict[str, Any], rel: float = 5e-5) -> None:
    for key in ("loss", "grad_norm", "learning_rate"):
        assert actual[key] == pytest.approx(expected[key], rel=rel), key
    assert actual["loss"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("probe", ["half_an_update", "short_updates", "uneven_data", "own_tokens", "frozen"])
def test_as_with_ddp(probe: str, stage: str, trained: Path) -> None:
    """A callback's stop inside an update, short updates, uneven data, own token counts, frozen parameters."""
    every = found(trained, probe)
    _same(every[stage], every["None"])


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_inside_an_update_leaves_nothing_of_it(stage: str, trained: Path) -> None:
    """To the next run of the same trainer."""
    every = found(trained, "after_an_error")
    assert every[stage]["said"] == "InterruptedError: inside an update"
    _same(every[stage], every["None"])


@pytest.mark.parametrize("parts", ["1", "2"])
@pytest.mark.parametrize(
    ("probe", "stage"),
    [
        *(("without_gradients", stage) for stage in STAGES),
        *(("without_gradients_on_the_host", stage) for stage in STAGES[1:]),
    ],
)
def test_parameters_without_a_gradient_are_not_stepped_with_an_older_one(
    probe: str, stage: str, parts: str, trained: Path
) -> None:
    """DeepSpeed's buffers keep it at stage 3, and where the host steps; in the first pass of an update, too."""
    _same(found(trained, probe)[stage][parts], found(trained, "without_gradients")["None"][parts])


@pytest.mark.parametrize("stage", STAGES)
def test_half_an_update_leaks_nothing_in_half_precision(stage: str, trained: Path) -> None:
    """Other buffers hold the gradients there."""
    _same(found(trained, "half_an_update_bf16")[stage], found(trained, "half_an_update")["None"], rel=4e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_scale_that_grows_changes_no_update(stage: str, trained: Path) -> None:
    """Nor does one that stays: DeepSpeed would divide by the scale of the next update, and without ZeRO by one it never used."""
    facts = found(trained, "growing_scales")[stage]
    if "said" in facts:
        assert "does not compute in fp16" in facts["said"]
        pytest.skip(facts["said"])
    assert facts["stays"]["scale"] == 256 < facts["grows"]["scale"]
    for key, tolerance in (("loss", 2e-3), ("grad_norm", 2e-2)):
        assert facts["grows"][key] == pytest.approx(facts["stays"][key], rel=1e-3)
        assert facts["stays"][key] == pytest.approx(found(trained, "growing_scales")["None"][key], rel=tolerance)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", ["optimizer", "both", "class"])
def test_what_is_passed_is_used(what: str, stage: str, trained: Path) -> None:
    """An optimizer, one with its schedule, a class: each steps as with DDP; the optimizer is the very object."""
    every = found(trained, "given_optimizers")
    _same(every[stage][what], every["None"][what])
    assert every[stage]["optimizer"]["is_stepped"]


def test_two_of_a_kind_are_refused(trained: Path) -> None:
    """Naming the configuration's."""
    said = found(trained, "two_of_a_kind")
    assert "OptionError: deepspeed optimizer='AdamW'" in said["optimizer"]
    assert "OptionError: deepspeed optimizer='AdamW'" in said["class"]
    assert "OptionError: deepspeed scheduler='WarmupDecayLR'" in said["schedule"]


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_the_older_seam_may_make_both_at_once(side: str, trained: Path) -> None:
    """The schedule is made before the engine then."""
    _same(found(trained, "older_seam")[side], alone())


@pytest.mark.parametrize("kind", ["Lamb", "Lion", "OneBitAdam", "ZeroOneAdam", "OneBitLamb", "NoSuchThing"])
def test_optimizers_that_cannot_be_made_are_named(kind: str, trained: Path) -> None:
    """With DeepSpeed's reason, and what to take instead."""
    said = found(trained, "refused_optimizers")[kind]
    assert said.startswith(f"NotAvailableError: deepspeed optimizer.type={kind!r}: DeepSpeed cannot use it here: ")
    assert "take AdamW with torch_adam" in said


def test_an_untested_optimizer_may_be_forbidden(trained: Path) -> None:
    """Ours are allowed where the configuration does not say otherwise."""
    said = found(trained, "refused_optimizers")["untested"]
    assert said.startswith("NotAvailableError: optim='SGD'")
    assert "zero_allow_untested_optimizer" in said


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize("stage", ["2", "3"])
def test_adapters_are_trained_saved_and_resumed(stage: str, trained: Path) -> None:
    """Whole ones are saved, although stage 3 has them in pieces."""
    every = found(trained, "adapters")
    _same(every[stage], every["None"])
    assert every[stage]["again"] == every[stage]["loss"]
    assert every[stage]["sizes"] == every["None"]["sizes"]


def test_floating_point_numbers_are_cast_and_others_are_not(trained: Path) -> None:
    """Labels of a regression too, as in the reference."""
    assert found(trained, "kinds_of_numbers") == {
        "fp32": ["ids torch.int64", "labels torch.float32", "x torch.float32"],
        "bf16": ["ids torch.int64", "labels torch.bfloat16", "x torch.bfloat16"],
    }


# ---- evaluation, generation ----


@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_stages_that_divide_no_weights_are_refused_without_training(stage: str, trained: Path) -> None:
    """Naming the stage, and the ways out."""
    said = found(trained, "without_training")[stage]["said"]
    assert said.startswith(f"OptionError: deepspeed zero_optimization.stage={stage}: ")
    assert "eval_on_start" in said


def test_stage_3_evaluates_without_training(trained: Path) -> None:
    """With half of the weights on each process, by one engine, which training replaces."""
    every = found(trained, "without_training")
    plain, divided = every["None"], every["3"]
    assert divided["before"]["loss"] == pytest.approx(plain["before"]["loss"], rel=1e-6)
    assert divided["before"]["predicted"] == pytest.approx(plain["before"]["predicted"], rel=1e-5)
    assert (divided["before"]["stage"], divided["before"]["numbers"]) == (3, whole() / 2)
    assert divided["before"]["same"]
    assert divided["changed"]
    _same(divided, plain)
    assert divided["after"] == pytest.approx(plain["after"], rel=1e-5)


def test_generation_in_pieces(trained: Path) -> None:
    """The same tokens, before training where stage 3 can, and after it."""
    every = found(trained, "generations")
    assert every["3"] == every["None"]
    assert every["2"] == every["None"][1:]


@pytest.mark.parametrize("stage", ["2", "3"])
def test_evaluations_in_half_precision(stage: str, trained: Path) -> None:
    """Are what the configuration computes in, or are refused; training goes on after them."""
    facts = found(trained, "half_evaluations")[stage]
    assert facts["said"].startswith("OptionError: bf16_full_eval=True: the model computes in fp32")
    assert facts["kinds"] == ["torch.bfloat16"]
    assert facts["after"] == pytest.approx(found(trained, "without_training")["None"]["after"], rel=1e-3)
    second = found(trained, "second_runs")["None"]["second"]
    assert facts["loss"] == pytest.approx(second["loss"], rel=2e-2)


# ---- more than one run ----


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_run_goes_on_with_weights_and_optimizer(stage: str, trained: Path) -> None:
    """As a trainer without DeepSpeed does."""
    every = found(trained, "second_runs")
    _same(every[stage]["first"], every["None"]["first"])
    _same(every[stage]["second"], every["None"]["second"])
    assert every[stage]["wrapper"] == "DeepSpeedEngine"


@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_a_second_run_begins_with_the_averages_or_says_why_not(stage: str, trained: Path) -> None:
    """From stage 1 on the optimizer steps copies, which the averages are not put into; evaluations have them."""
    every = found(trained, "averages_in_the_end")
    assert every[stage]["after"] == pytest.approx(every["None"]["after"], rel=1e-5)
    if stage == "0":
        _same(every[stage], every["None"])
    else:
        assert "averages when training ended), and not into the copies" in every[stage]["said"]


@pytest.mark.parametrize("stage", ["2", "3"])
def test_each_run_of_model_init_begins_anew(stage: str, trained: Path) -> None:
    """With an engine of its own."""
    every = found(trained, "new_models")
    assert every[stage]["first"] == every[stage]["second"] == pytest.approx(every["None"]["first"], rel=5e-5)


def test_plain_and_divided_runs_take_turns_in_one_process(trained: Path) -> None:
    """Nothing of one stays for the next."""
    first, plain, last = found(trained, "after_plain")
    assert (first[0], plain[0], last[0]) == ("DeepSpeedEngine", "DistributedDataParallel", "DeepSpeedEngine")
    assert first[1] == pytest.approx(plain[1], rel=5e-5)
    assert last[1] == pytest.approx(plain[1], rel=5e-5)


# ---- saving and loading ----


@pytest.mark.parametrize(("stage", "gathers"), [(2, True), (2, False), (3, True)])
@pytest.mark.parametrize("half", [True, False])
def test_saved_models_are_whole(stage: int, gathers: bool, half: bool, trained: Path) -> None:
    """But at stage 3 without whole weights in the configuration; they are those that were trained, in their precision."""
    note = found(trained, "saved_models")[f"{stage}-{gathers}-{half}"]
    assert "model.safetensors" in note["files"]
    assert note["kind"] == ["torch.bfloat16" if half else "torch.float32"]
    assert note["equal"]


@pytest.mark.parametrize("stage", ["2", "3"])
def test_the_best_model_is_loaded_in_the_end(stage: str, trained: Path) -> None:
    """Its evaluation is that of the checkpoint."""
    facts = found(trained, "best_models")[stage]
    assert facts["best"] == min(facts["losses"])
    assert facts["after"] == pytest.approx(facts["best"], rel=1e-6)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_checkpoints_in_the_background_are_gone_on_from(stage: str, trained: Path) -> None:
    """Bit for bit."""
    facts = found(trained, "other_saves")[stage]
    assert facts["again"] == facts["losses"]


def test_checkpoints_of_the_model_only(trained: Path) -> None:
    """Hold whole weights and none of DeepSpeed's files; where the configuration keeps no whole ones, they are refused."""
    facts = found(trained, "other_saves")
    assert "model.safetensors" in facts["2"]["files"]
    assert not {"latest", "global_step2"} & set(facts["2"]["files"])
    assert "save_only_model=True" in facts["3"]["said"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_without_deepspeed_is_gone_on_from(stage: str, trained: Path) -> None:
    """Its weights reach the copies that the optimizer steps, and so does what its optimizer remembers."""
    every = found(trained, "from_plain")
    _same(every[stage], every["0"])
    assert every[stage]["loss"][:3] == pytest.approx(alone()["loss"][:3], rel=5e-5)


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_both_online_recoveries_run_as_documented(stage: str, trained: Path) -> None:
    """From the last checkpoint, and from one that the engine writes."""
    facts = found(trained, "recoveries")[stage]
    assert facts["equal"]
    assert (facts["said"], facts["by_hand"]) == ("nothing", "nothing")
    assert facts["sizes"] == [1536, 1024]


def test_a_recovered_model_in_pieces_is_made_anew(trained: Path) -> None:
    """Who trains or evaluates it all the same is told so."""
    facts = found(trained, "recoveries")["3"]
    for said in (facts["evaluated"], facts["trained"]):
        assert "whole weights were put into the model" in said
        assert "make a new model and a new Trainer" in said


def test_a_model_that_was_divided_too_early_is_refused(trained: Path) -> None:
    """Its library had nothing to initialise."""
    facts = found(trained, "constructed")
    assert facts["sizes"] == [0, 0]
    assert "were divided by zero.Init before the library could initialise them" in facts["said"]


def test_models_that_the_library_divides_are_trained(trained: Path) -> None:
    """Loaded ones with their weights; new ones with the library's initialisation: losses begin near log(48)."""
    facts = found(trained, "loaded_in_pieces")
    assert facts["from_pretrained"]["sizes"] == facts["from_config"]["sizes"] == [0, 0]
    assert facts["from_pretrained"]["losses"] == pytest.approx(alone()["loss"], rel=5e-5)
    assert 3.7 < facts["from_config"]["losses"][0] < 4.1
