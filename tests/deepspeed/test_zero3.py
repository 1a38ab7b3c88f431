"""Models that are divided before there is a trainer, or without one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.deepspeed.read import alone, found as read
from tests.deepspeed.runs import EVALUATES, model, whole
from tests.deepspeed.zero3 import FORMATS, LOOKS, WORDS, inputs_of, texts_to_texts

pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]


def found(folder: Path, name: str, rank: int = 0) -> Any:
    """What a process noted."""
    return read(folder, name, "zero3", rank)


def _is_divided(note: dict[str, Any], numbers: int) -> None:
    assert note["ids"]
    assert (note["here"], note["pieces"], note["whole"]) == (0, numbers / 2, numbers)


# ---- which configuration is in force ----


def test_the_first_thing_of_a_script_is_a_model_in_pieces(zero3: Path) -> None:
    """Arguments alone join nobody; `from_pretrained` does, and divides over both processes."""
    note = found(zero3, "first_load")
    assert not note["joined"]
    assert (note["world"], note["world_size"], note["stage"], note["wrapper"]) == (2, 2, 3, "DeepSpeedEngine")
    _is_divided(note, whole())
    assert note["loss"] == pytest.approx(alone()["loss"], rel=5e-5)


@pytest.mark.parametrize(
    ("moment", "in_force"),
    [
        ("before", False),
        ("ours", True),
        ("theirs_of_stage_2", False),
        ("theirs", True),
        ("theirs_gone", False),
        ("unset_there", False),
        ("unset_here", False),
        ("gone", False),
    ],
)
def test_both_doors_say_the_same(moment: str, in_force: bool, zero3: Path) -> None:
    """Whichever class a configuration is of, and whoever puts it out of force; the newest wins."""
    assert found(zero3, "both_registries")[moment] == [in_force, in_force]


def test_both_doors_give_the_same_configuration(zero3: Path) -> None:
    """Of either class."""
    note = found(zero3, "both_registries")
    assert note["config"] == [True, True]
    assert note["same"]


# ---- without a trainer ----


@pytest.mark.parametrize("rank", [0, 1])
def test_the_documented_example_without_a_trainer(rank: int, zero3: Path) -> None:
    """Each process generates from its input what a whole model would."""
    note = found(zero3, "documented", rank)
    own = texts_to_texts().eval()
    with torch.no_grad():
        expected = own.generate(inputs_of(rank), max_new_tokens=12)
    assert note["tokens"] == expected.tolist()
    assert note["stage"] == 3
    _is_divided(note, sum(p.numel() for p in own.parameters()))


# ---- evaluation and generation without training ----


def test_evaluations_make_neither_optimizer_nor_schedule(zero3: Path) -> None:
    """And say that they leave those of the configuration out; the weights stay in pieces."""
    note = found(zero3, "evaluations")
    assert note["optimizers"] == ["DeepSpeedZeRoOffload", True, True]
    assert note["lines"] == ["DeepSpeed evaluates without optimizer and scheduler, which train() will make"]
    assert note["numbers"] == whole() / 2
    assert note["before"] == pytest.approx(alone(**EVALUATES)["eval_loss"][0], rel=1e-6)


def test_training_after_an_evaluation_makes_both(zero3: Path) -> None:
    """It goes on from the weights that were evaluated."""
    note = found(zero3, "evaluations")
    assert (note["optimizer"], note["inner"], note["stage"]) == ("SteppedByEngine", "AdamW", 3)
    assert note["loss"][0] == pytest.approx(alone()["loss"][0], rel=5e-5)
    assert note["after"] < note["before"]


def test_texts_of_different_lengths_on_each_process(zero3: Path) -> None:
    """Who is done first goes on with the others; no text is changed by it."""
    divided, expected = found(zero3, "uneven_texts"), found(zero3, "uneven_texts_whole")
    assert divided == expected
    ranks = divided["lengths"][0::2], divided["lengths"][1::2]
    assert any(one != other for one, other in zip(*ranks, strict=False)), "all processes ended together"


# ---- models that were divided in other ways ----


@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_a_class_called_under_zero_init_is_refused(kind: str, zero3: Path) -> None:
    """By its embeddings, or by its linear layers where it has none."""
    said = found(zero3, "constructed")[kind]
    assert "were divided by zero.Init before the library could initialise them" in said
    assert "from_pretrained or from_config" in said


def test_other_modules_are_trained_with_a_word(zero3: Path) -> None:
    """What a constructor did to inner modules is lost, which nobody can see: it is said."""
    note = found(zero3, "constructed")
    assert note["plain"]["losses"] == pytest.approx(note["whole"], rel=5e-5)
    assert note["own_start"]["losses"] == note["plain"]["losses"], "what a constructor did was kept: say so instead"
    for way in ("plain", "own_start"):
        (line,) = note[way]["lines"]
        assert line.startswith("the weights of this Tower were divided while it was made (zero.Init)")


def test_models_from_a_configuration_keep_their_initialisation(zero3: Path) -> None:
    """Their weights spread as those of a whole one, and losses begin near log(48)."""
    note = found(zero3, "constructed")
    _is_divided(note["from_config"], whole())
    assert note["from_config"]["spreads"] == pytest.approx(note["whole_spreads"], rel=0.15, abs=1e-9)
    assert note["from_config"]["losses"][0] == pytest.approx(math.log(WORDS), abs=0.15)
    assert note["other_from_config"] == "nothing"


def test_divided_models_want_stage_3(zero3: Path) -> None:
    """Others would train on empty weights."""
    note = found(zero3, "for_other_engines")
    assert note["plain"].startswith("ValueError: the weights of the model lie in pieces: ")
    assert note["stage2"].startswith("OptionError: deepspeed zero_optimization.stage=2: the weights of the model lie")


@pytest.mark.parametrize("case", ["changed", "shares"])
def test_weights_that_scripts_gather_or_share(case: str, zero3: Path) -> None:
    """Changed within `GatheredParameters`; used in the forward pass of another module."""
    note = found(zero3, "changed_by_hand")
    assert note[case] == pytest.approx(note[f"{case}_whole"], rel=5e-5)


# ---- what looks at the weights before training ----


@pytest.mark.parametrize("name", LOOKS)
def test_looks_at_weights_in_pieces(name: str, zero3: Path) -> None:
    """Trials find whole weights; losses and counts are those of a whole model."""
    note = found(zero3, "looks")
    divided, expected = note[f"{name}_divided"], note[f"{name}_whole"]
    for key in ("loss", "grad_norm"):
        assert divided[key] == pytest.approx(expected[key], rel=5e-5), key
    assert divided["count"] == expected["count"] == whole()
    assert divided["flops"] == expected["flops"] > 0


def test_a_larger_vocabulary(zero3: Path) -> None:
    """Resized while the configuration is in force; trained, and saved whole."""
    note = found(zero3, "resized")
    assert note["size"] == note["saved"] == [WORDS + 8, 32]
    assert note["tied"]
    assert note["numbers"] == (whole() + 8 * 32) / 2
    assert note["before"] == pytest.approx(math.log(WORDS + 8), abs=0.15)


def test_each_run_of_model_init_loads_in_pieces(zero3: Path) -> None:
    """By the configuration of the arguments."""
    note = found(zero3, "new_models")
    _is_divided(note["before"], whole())
    assert note["first"] == note["second"] == pytest.approx(alone()["loss"], rel=5e-5)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_second_trainer_goes_on_with_the_model_of_another(stage: str, zero3: Path) -> None:
    """Its engine takes the place of the first one's, which says so."""
    note = found(zero3, "second_trainers")
    for number in range(2):
        assert note[f"{stage}_{number}"] == pytest.approx(note[f"None_{number}"], rel=5e-5)
    assert note[f"{stage}_said"].startswith("RuntimeError: another trainer has set this model up")


# ---- weights that are loaded into pieces ----


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "misfit"])
def test_weights_are_put_into_pieces(name: str, zero3: Path) -> None:
    """From whole, sharded and pickled files, with the report of a whole model; never more than a module is whole."""
    note = found(zero3, "filled")[name]
    assert (note["said"], note["plain"]) == ("nothing", "nothing")
    report, expected = note["reports"]
    assert report == expected
    assert note["equal"]
    assert note["most"] == 2, "weight and bias of one layer"
    assert note["here"] == 0
    if name != "lacking":
        assert note["loss"] == pytest.approx(alone(**EVALUATES)["eval_loss"][0], rel=1e-6)


def test_weights_of_another_shape_are_refused(zero3: Path) -> None:
    """With the shape of the whole weight."""
    note = found(zero3, "filled")["misfit"]
    assert note["said"] == note["plain"]
    assert "transformer.ln_f.bias has shape [3]" in note["said"]
    assert "but [32] in GPT2LMHeadModel" in note["said"]


@pytest.mark.parametrize("name", ["whole", "shards", "pickled"])
def test_what_transformers_loads_in_pieces(name: str, zero3: Path) -> None:
    """Equals the file's weights."""
    note = found(zero3, "loaded")[name]
    _is_divided(note, whole())
    assert note["equal"]
    assert note["loss"] == pytest.approx(alone(**EVALUATES)["eval_loss"][0], rel=1e-6)


def test_experts_that_are_joined_are_put_into_pieces(zero3: Path) -> None:
    """Whom transformers asks to join them, while a configuration is in force, which stays in force."""
    note = found(zero3, "loaded")["experts"]
    assert note == {"reports": [[], []], "equal": True, "kept": True}


# ---- saving ----


@pytest.mark.parametrize("way", ["trainer", "given", "joined", "loaded"])
def test_saved_weights_are_the_trained_ones(way: str, zero3: Path) -> None:
    """`save_model`, `save_pretrained` with a gathered state, DeepSpeed's own pieces joined, and a whole model of the file."""
    note = found(zero3, "saved")
    assert note[way]
    assert note["sizes"] == [len(model().state_dict())] * 3
    assert (note["stage"], note["wrapper"], note["numbers"]) == (3, "DeepSpeedEngine", whole() / 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_script_that_saves_pieces_as_a_model_is_told(rank: int, zero3: Path) -> None:
    """Once, and only where nobody but the script reads them."""
    note = found(zero3, "saved", rank)
    (line,) = note["bare"]
    assert "state_dict() gave empty ones" in line
    assert "trainer.save_model(folder)" in line
    assert note["quiet"]
